"""The train step of an experiment as a value, from which its size and time are computed."""

from dataclasses import replace

from zerotollm.data.feed import sentinels
from zerotollm.data.sources.examples import open_examples
from zerotollm.experiment import Experiment
from zerotollm.model.accelerator import this_accelerator
from zerotollm.model.compute_config import Accelerator
from zerotollm.model.compute_config import resolve as resolve_compute
from zerotollm.model.config import resolve
from zerotollm.planning.flops import head_rows
from zerotollm.planning.memory import Job


def job_for(experiment: Experiment, accelerator: Accelerator) -> Job:
    """The experiment's train step with every choice made for `accelerator`. Where that is cuDNN's attention, and
    jax has none here, it stands as chunked attention, which holds as little. With an encoder the
    batch is that of the widest bucket. A corpus of labels is read for these, unless the model is resolved."""

    shape, model, objective = experiment.data, experiment.model, experiment.train.objective
    if objective == "label" and not model.num_classes:
        model = replace(model, num_classes=len(open_examples(shape, objective).labels))
    vocab_size = model.vocab_size or experiment.tokenizer.vocab_size + sentinels(objective)
    model = resolve(model, vocab_size=vocab_size, context=shape.context)
    rows = shape.batch_size // experiment.train.micro_batches
    how = resolve_compute(
        experiment.compute,
        accelerator,
        rows=rows,
        context=shape.context,
        vocab_size=head_rows(model),
        masked=shape.document_mask,
        even=model.key_width in (0, model.head_width),
        pairs=model.encoder_layers > 0,
    )
    if how.attention == "cudnn" and not this_accelerator().has_flash():
        how = replace(how, attention="chunked")
    return Job(
        model,
        experiment.optimizer,
        experiment.train,
        how,
        shape.batch_size,
        shape.context,
        shape.document_mask,
        experiment.code,
    )
