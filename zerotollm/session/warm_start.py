"""The resolved model of an experiment, and the parameters that it is initialized from."""

from dataclasses import dataclass, replace

from zerotollm.components import model_of
from zerotollm.data.feed import Feed
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment, makes_tokenizer
from zerotollm.model.build import Params
from zerotollm.model.config import resolve
from zerotollm.run import Run, load
from zerotollm.training.parameter_transfer import check_same_model, transfer_params
from zerotollm.training.vocabulary_transfer import transfer_vocabulary


@dataclass(frozen=True)
class WarmStart:
    """Where training begins."""

    experiment: Experiment
    """with its model resolved"""
    run: Run | None = None
    """the one that `train.start_from` names, if any"""
    params: Params | None = None
    """what is initialized from that run; new heads are missing"""


def warm_start(experiment: Experiment, feed: Feed) -> WarmStart:
    """Return the experiment with its model resolved for `feed`, and the parameters of `train.start_from`.

    Raises UsageError where that is no run, or its model is not the experiment's: which field, or which tensor.
    """
    config = replace(experiment.model, num_classes=len(feed.labels))
    context, start = experiment.data.context, experiment.train.start_from
    run = load(start) if start else None
    new_tokens = run is not None and makes_tokenizer(experiment)
    if run and not new_tokens:
        theirs = run.model_config
        if feed.vocab_size > theirs.vocab_size:
            raise UsageError(
                f"{start}: the tensor embedding has {theirs.vocab_size} rows, and {feed.vocab_size} ids are needed: "
                "train.objective was another one there"
            )
        config = replace(config, vocab_size=config.vocab_size or theirs.vocab_size)
    if run and config.position == "learned":
        config = replace(config, max_length=config.max_length or run.model_config.max_length)
    model = resolve(config, vocab_size=feed.vocab_size, context=context)
    experiment = replace(experiment, model=model)
    if not run:
        return WarmStart(experiment)
    theirs, params = run.model_config, run.params
    if new_tokens:
        theirs = replace(theirs, vocab_size=model.vocab_size)
        params = transfer_vocabulary(params, run.tokenizer, feed.tokenizer, model.vocab_size)
    check_same_model(theirs, model, start)
    net = model_of(experiment)
    params = transfer_params(params, net, start, same_labels=run.labels == feed.labels)
    return WarmStart(experiment, run, params)
