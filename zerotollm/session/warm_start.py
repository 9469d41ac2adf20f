"""What train and fit share: the model of an experiment, how its steps are computed, and the parameters that it begins
with."""

from dataclasses import dataclass, replace
from typing import Any

from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment
from zerotollm.model.config import TransformerConfig, resolve


@dataclass(frozen=True)
class Beginning:
    """Where training begins."""

    model: TransformerConfig
    """resolved"""
    run: Any = None
    """zerotollm.run.Run that `train.start_from` names, None where there is none"""
    params: Any = None
    """what is taken over of it; heads that are new are missing"""


def step_options(experiment: Experiment, feed: Any) -> dict[str, Any]:
    """What every step of an experiment, of training and of evaluation, is made with besides its model."""
    return {
        "masked": experiment.data.document_mask,
        "compute": experiment.compute,
        "pad_id": feed.tokenizer.pad_id,
    }


def beginning_of(experiment: Experiment, feed: Any) -> Beginning:
    """The model of an experiment on its `feed` (`zerotollm.data.feed.Feed`), begun as `train.start_from` says.

    Raises UsageError where that is no run, or where its model is not the experiment's: which field, or which tensor.
    """
    config = replace(experiment.model, num_classes=len(feed.labels))
    context = experiment.data.context
    start = experiment.train.start_from
    if not start:
        return Beginning(resolve(config, vocab_size=feed.vocab_size, context=context))
    from zerotollm.run import load
    from zerotollm.training.parameter_transfer import check_same_model, given_params

    run = load(start)
    theirs = run.model_config
    if feed.vocab_size > theirs.vocab_size:
        raise UsageError(
            f"{start}: the tensor embedding has {theirs.vocab_size} rows, and {feed.vocab_size} ids are needed: "
            "train.objective was another one there"
        )
    config = replace(config, vocab_size=config.vocab_size or theirs.vocab_size)
    if config.position == "learned":
        config = replace(config, max_length=config.max_length or theirs.max_length)
    model = resolve(config, vocab_size=feed.vocab_size, context=context)
    check_same_model(theirs, model, start)
    return Beginning(
        model, run, given_params(run.params, model, start, same_labels=run.labels == feed.labels)
    )
