"""An experiment is a value; everything that happens to it is a function. No heavy imports here."""

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.decoding.config import SamplingConfig
from zerotollm.errors import UsageError
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.suggest import did_you_mean
from zerotollm.training.config import OptimizerConfig, TrainConfig

FORMAT = 1
"""Version of the JSON form; raised when a field changes meaning: old files are then refused, not misread."""


@dataclass(frozen=True)
class Experiment:
    """All that decides a run's result."""

    name: str = "base"
    """names the run directory, runs/NAME"""
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: TransformerConfig = field(default_factory=TransformerConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SamplingConfig = field(default_factory=SamplingConfig)


# --- fields by dotted name


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name to value, in the order of declaration: `{"name": "base", "data.corpus": "bible-web"}`."""
    flat = {}
    for part in dataclasses.fields(value):
        inner = getattr(value, part.name)
        nested = dataclasses.is_dataclass(inner)
        flat |= flatten(inner, f"{prefix}{part.name}.") if nested else {prefix + part.name: inner}
    return flat


def field_types(kind: type, prefix: str = "") -> dict[str, Any]:
    """Dotted name to annotation, in the order of declaration."""
    flat = {}
    for name, annotation in get_type_hints(kind).items():
        nested = dataclasses.is_dataclass(annotation)
        flat |= field_types(annotation, f"{prefix}{name}.") if nested else {prefix + name: annotation}
    return flat


def differences(left: Experiment, right: Experiment) -> list[tuple[str, Any, Any]]:
    """Every field in which two experiments differ: (dotted name, left value, right value)."""
    others = flatten(right)
    return [(name, value, others[name]) for name, value in flatten(left).items() if value != others[name]]


def describe_type(annotation: Any) -> str:
    """What a field takes, in words: `a whole number`, `one of bpe, unigram, char`."""
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(str, get_args(annotation)))
    return {int: "a whole number", float: "a number", bool: "True or False", str: "text"}[annotation]


# --- JSON


def to_json(experiment: Experiment) -> str:
    """The whole experiment as indented JSON, marked with the version of this form. See `from_json`."""
    return json.dumps({"format": FORMAT} | dataclasses.asdict(experiment), indent=2, allow_nan=False) + "\n"


def from_json(text: str, source: str = "config.json") -> Experiment:
    """The experiment that `to_json` wrote; nothing is guessed and nothing is left out.

    `source` says in messages where the text came from. Raises UsageError where the text is no JSON object of
    this version, where a field is missing or unknown, and where a value has the wrong type or is not allowed.
    """
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{source} is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise UsageError(f"{source} holds no JSON object, so it is not an experiment")
    version = raw.pop("format", None)
    if version != FORMAT:
        raise UsageError(
            f"{source} has format {version!r}, and this version of ZeroToLLM reads format {FORMAT}"
        )
    return _build(Experiment, raw, "", source)


def _build(kind: type, raw: Any, prefix: str, source: str) -> Any:
    """A dataclass `kind` from a JSON value; `prefix` is its dotted name with a dot at the end."""
    if not isinstance(raw, dict):
        raise UsageError(f"{source}: {prefix[:-1]} is {raw!r}, and must be an object of fields")
    types = get_type_hints(kind)
    for name in raw.keys() - types.keys():
        raise UsageError(f"{source}: unknown field {prefix}{name}{did_you_mean(name, types)}")
    for name in types:
        if name not in raw:
            raise UsageError(f"{source}: the field {prefix}{name} is missing")
    values = {}
    for name, annotation in types.items():
        if dataclasses.is_dataclass(annotation):
            values[name] = _build(annotation, raw[name], f"{prefix}{name}.", source)
        else:
            if not _is_a(raw[name], annotation):
                raise UsageError(f"{source}: {_wrong_value(prefix + name, raw[name], annotation)}")
            values[name] = float(raw[name]) if annotation is float else raw[name]
    return kind(**values)


def _is_a(value: Any, annotation: Any) -> bool:
    """Whether a field so annotated may hold the value. A whole number is a number; True is not."""
    if get_origin(annotation) is Literal:
        return value in get_args(annotation)
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return type(value) is annotation


def _wrong_value(name: str, value: Any, annotation: Any) -> str:
    near = did_you_mean(value, get_args(annotation)) if isinstance(value, str) else ""
    return f"{name} is {value!r}, and must be {describe_type(annotation)}{near}"


# --- validation

# The model's own bounds are in `zerotollm.model.config.resolve`.
_AT_LEAST = {
    "data.context": 1,
    "data.batch_size": 1,
    "tokenizer.vocab_size": 5,
    "optimizer.warmup_steps": 0,
    "optimizer.weight_decay": 0,
    "optimizer.iterations": 1,
    "optimizer.clip_norm": 0,
    "train.steps": 1,
    "train.seed": 0,
    "train.micro_batches": 1,
    "train.eval_every": 0,
    "train.sample_every": 0,
    "train.checkpoint_every": 0,
    "train.keep": 1,
    "train.log_every": 1,
    "sample.max_tokens": 1,
    "sample.temperature": 0,
    "sample.top_k": 0,
    "sample.seed": 0,
}
_ABOVE_ZERO = ("optimizer.learning_rate", "optimizer.adam_learning_rate", "optimizer.epsilon", "sample.top_p")
_BELOW_ONE = (
    "data.validation_fraction",
    "data.test_fraction",
    "optimizer.momentum",
    "optimizer.beta1",
    "optimizer.beta2",
)
_AT_MOST_ONE = ("optimizer.decay_fraction", "optimizer.final_fraction", "sample.top_p", "sample.min_p")
_AT_MOST = {"train.seed": 2**32 - 1, "sample.seed": 2**32 - 1, "optimizer.iterations": 5}


def validate(experiment: Experiment) -> None:
    """Raises UsageError, one line that names the field, where the experiment cannot be run as it stands.

    Looks at the numbers only; whether the corpus exists is found when it is opened.
    """
    values, types = flatten(experiment), field_types(Experiment)

    def refuse(name: str, rule: str) -> None:
        raise UsageError(f"{name} is {values[name]}, and must be {rule}")

    for name, value in values.items():
        if not _is_a(value, types[name]):
            raise UsageError(_wrong_value(name, value, types[name]))
    for name, bound in _AT_LEAST.items():
        if values[name] < bound:
            refuse(name, f"at least {bound}")
    for name in _ABOVE_ZERO:
        if values[name] <= 0:
            refuse(name, "above 0")
    for name in (*_BELOW_ONE, *_AT_MOST_ONE):
        if values[name] < 0 or values[name] > 1 or (values[name] == 1 and name in _BELOW_ONE):
            refuse(name, "at least 0 and " + ("below 1" if name in _BELOW_ONE else "at most 1"))
    for name, bound in _AT_MOST.items():
        if values[name] > bound:
            refuse(name, f"at most {bound}")

    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", experiment.name):
        refuse("name", "letters, digits, '_', '-' and '.' only, because it names a folder")
    data, tokenizer, train = experiment.data, experiment.tokenizer, experiment.train
    if not data.corpus:
        raise UsageError(
            f"the experiment {experiment.name} needs a text: "
            "add --data.corpus FILE, for example --data.corpus input.txt"
        )
    if data.validation_fraction + data.test_fraction >= 1:
        raise UsageError(
            "data.validation_fraction and data.test_fraction leave nothing to train on: lower them"
        )
    if tokenizer.byte_fallback and tokenizer.vocab_size < 4 + 256 + 1:
        refuse(
            "tokenizer.vocab_size",
            "at least 261 with tokenizer.byte_fallback: 256 bytes and 4 special tokens",
        )
    if data.batch_size % train.micro_batches:
        raise UsageError(
            f"train.micro_batches {train.micro_batches} does not divide data.batch_size {data.batch_size}"
        )
    # The tokenizer does not exist yet; what it turns out to hold is checked when the model is built.
    resolve(
        experiment.model, vocab_size=experiment.model.vocab_size or tokenizer.vocab_size, context=data.context
    )
