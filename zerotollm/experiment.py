"""An experiment is a value; everything that happens to it is a function. No heavy imports here."""

import dataclasses
import json
import logging
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_type_hints

from zerotollm.data.config import DataConfig, TokenizerConfig, names_pairs
from zerotollm.decoding.config import SamplingConfig
from zerotollm.errors import UsageError
from zerotollm.fields import ADDED, added_defaults, flatten, is_dataclass_type, is_valid, wrong_type
from zerotollm.model.compute_config import ComputeConfig
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.own_code import OwnCode
from zerotollm.suggest import did_you_mean
from zerotollm.training.config import OptimizerConfig, TrainConfig

FORMAT = 1
"""Version of the JSON form. Raise it when a field changes its meaning: old files are then refused, not misread."""


@dataclass(frozen=True)
class Experiment:
    """Everything that determines the result of a run."""

    name: str = "base"
    """name of the run directory, runs/NAME"""
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: TransformerConfig = field(default_factory=TransformerConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    sample: SamplingConfig = field(default_factory=SamplingConfig)
    code: OwnCode = field(default=OwnCode(), metadata=ADDED | {"hidden": True})
    """functions of the experiment's file that replace built-in ones"""


def differences(left: Experiment, right: Experiment) -> list[tuple[str, object, object]]:
    """Return every field in which two experiments differ: (dotted name, left value, right value)."""
    others = flatten(right)
    return [(name, value, others[name]) for name, value in flatten(left).items() if value != others[name]]


def resolved_model(experiment: Experiment) -> TransformerConfig:
    """Return the model with all its sizes, if the tokenizer gets the vocabulary that is asked for."""
    vocab_size = experiment.tokenizer.vocab_size
    return resolve(experiment.model, vocab_size=vocab_size, context=experiment.data.context)


Task = Literal["continue", "complete", "translate", "denoise", "label"]


def task_of(experiment: Experiment) -> Task:
    """Return what the model is trained to do.

    A decoder continues plain text, or completes the prompts of examples. An encoder-decoder translates pairs, or
    restores the corrupted parts of plain text. Both can label texts.
    """
    objective = experiment.train.objective
    if objective == "likelihood":
        return "translate" if experiment.model.architecture == "encoder-decoder" else "continue"
    return "complete" if objective == "completion" else "label" if objective == "label" else "denoise"


def continues(experiment: Experiment) -> bool:
    """Return whether the model is a language model, which predicts every next token of a text."""
    return task_of(experiment) in ("continue", "complete")


def translates(experiment: Experiment) -> bool:
    """Return whether the model translates: an encoder-decoder, or a decoder that completes sources by targets."""
    task = task_of(experiment)
    return task == "translate" or (task == "complete" and names_pairs(experiment.data.corpus))


def has_other_pairs(original: Experiment, experiment: Experiment) -> bool:
    """Return whether `experiment` translates other pairs than `original`, which names its own."""
    corpus = original.data.corpus
    return translates(experiment) and bool(corpus) and experiment.data.corpus != corpus


def on_own_pairs(original: Experiment, experiment: Experiment, chosen: Collection[str]) -> Experiment:
    """Return an experiment with other pairs than `original`, without the sample prompt that was for those.

    Fields in `chosen` stay. Logs a warning that names the other numbers of the original pairs, and usual values.
    """
    usual = {
        "train.steps": "5 to 20 epochs of the pairs",
        "tokenizer.vocab_size": "8,000 for two languages",
        "sample.length_penalty": "0.6",
    }
    if not makes_tokenizer(experiment):
        del usual["tokenizer.vocab_size"]
    values = flatten(experiment)
    doubtful = [f"{name} {values[name]} (usual: {usual[name]})" for name in usual if name not in chosen]
    if doubtful:
        corpora = f"chosen for {original.data.corpus} and kept for {experiment.data.corpus}"
        logging.getLogger(__name__).warning(f"{corpora}: {'; '.join(doubtful)}")
    if "sample.prompt" in chosen:
        return experiment
    return replace(experiment, sample=replace(experiment.sample, prompt=""))


def makes_tokenizer(experiment: Experiment) -> bool:
    """Return whether the tokenizer is made from the text, and does not come with a pretrained model."""
    return not experiment.train.start_from or experiment.train.start_tokenizer == "new"


def inherit_model(experiment: Experiment, pretrained: Experiment) -> Experiment:
    """Return the experiment with the model, but for dropout, of a pretrained one, for `train.start_from`.

    With it comes the tokenizer, unless `train.start_tokenizer` is new: then the vocabulary has a size of its own.
    """
    model = replace(pretrained.model, dropout=experiment.model.dropout)
    if model.position == "learned":  # its length is the number of position embeddings
        model = replace(model, max_length=model.max_length or pretrained.data.context)
    if experiment.train.start_tokenizer == "new":
        return replace(experiment, model=replace(model, vocab_size=0))
    return replace(experiment, model=model, tokenizer=pretrained.tokenizer)


def to_json(experiment: Experiment) -> str:
    """Return the experiment as indented JSON, with the version of this form. `from_json` reads it."""
    values = {"format": FORMAT} | dataclasses.asdict(experiment)
    if experiment.code == OwnCode():
        del values["code"]
    return json.dumps(values, indent=2, allow_nan=False) + "\n"


def from_json(text: str, source: str = "config.json") -> Experiment:
    """Return the experiment that this or an earlier version wrote. `source` names the text in messages.

    A missing field that is marked `zerotollm.fields.ADDED` has its default. Raises UsageError for any other text.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source} is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise UsageError(f"{source} is not an experiment: it must be a JSON object")
    version = raw.pop("format", None)
    if version != FORMAT:
        message = f"{source} has format {version!r}, and this version of ZeroToLLM reads format {FORMAT}"
        raise UsageError(message)
    return _from_dict(Experiment, raw, "", source)


def _from_dict(kind: type, raw: Any, prefix: str, source: str) -> Any:
    """Return a dataclass from a JSON value. `prefix` is its dotted name with a dot at the end."""
    if not isinstance(raw, dict):
        raise UsageError(f"{source}: {prefix[:-1]} is {raw!r}, and must be an object of fields")
    types = get_type_hints(kind)
    for name in raw.keys() - types.keys():
        raise UsageError(f"{source}: unknown field {prefix}{name}{did_you_mean(name, types)}")
    raw = added_defaults(kind) | raw
    for name in types:
        if name not in raw:
            raise UsageError(
                f"{source}: the field {prefix}{name} is missing; another version of ZeroToLLM wrote this file"
            )
    values = {}
    for name, annotation in types.items():
        if isinstance(raw[name], OwnCode):
            values[name] = raw[name]
        elif is_dataclass_type(annotation):
            values[name] = _from_dict(annotation, raw[name], f"{prefix}{name}.", source)
        else:
            if not is_valid(raw[name], annotation):
                raise wrong_type(f"{source}: {prefix}{name}", raw[name], annotation)
            values[name] = float(raw[name]) if annotation is float else raw[name]
    return kind(**values)
