"""The train step of an experiment as a value, from which its memory and time are computed."""

from dataclasses import replace

from zerotollm.components import compute_on
from zerotollm.data.feed import sentinels
from zerotollm.data.sources.examples import open_examples
from zerotollm.experiment import Experiment
from zerotollm.model.accelerator import this_accelerator
from zerotollm.model.compute_config import Accelerator
from zerotollm.model.config import resolve
from zerotollm.planning.memory import Job


def job_for(experiment: Experiment, accelerator: Accelerator) -> Job:
    """Return the train step of an experiment, with every choice made for `accelerator`.

    With an encoder the batch is that of the widest bucket. cuDNN's attention counts as chunked attention, which needs
    as little memory, if this machine cannot trace it. A corpus of labels is read for their number, unless the model is
    resolved.
    """
    data, model, train = experiment.data, experiment.model, experiment.train
    if train.objective == "label" and not model.num_classes:
        model = replace(model, num_classes=len(open_examples(data, "label").labels))
    vocab_size = model.vocab_size or experiment.tokenizer.vocab_size + sentinels(train.objective)
    model = resolve(model, vocab_size=vocab_size, context=data.context)
    rows = data.batch_size // train.micro_batches
    compute = compute_on(accelerator, replace(experiment, model=model), rows, data.context)
    if compute.attention == "cudnn" and not this_accelerator().has_flash():
        compute = replace(compute, attention="chunked")
    return Job(
        model,
        experiment.optimizer,
        train,
        compute,
        data.batch_size,
        data.context,
        data.document_mask,
        experiment.code,
    )
