"""An experiment is a value; everything that happens to it is a function. No heavy imports here."""

import dataclasses
import json
import logging
import math
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from zerotollm.data.config import DataConfig, TokenizerConfig, names_pairs
from zerotollm.decoding.config import SamplingConfig
from zerotollm.errors import UsageError
from zerotollm.model.compute_config import ComputeConfig
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.own_code import REPLACEABLE, OwnCode
from zerotollm.sharding.config import parse_mesh
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
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    sample: SamplingConfig = field(default_factory=SamplingConfig)
    code: OwnCode = field(default_factory=OwnCode)


# --- fields by dotted name


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name to value, in the order of declaration: `{"name": "base", "data.corpus": "bible-web"}`."""
    flat = {}
    for part in dataclasses.fields(value):
        if part.name == "code":
            continue
        inner = getattr(value, part.name)
        nested = dataclasses.is_dataclass(inner)
        flat |= flatten(inner, f"{prefix}{part.name}.") if nested else {prefix + part.name: inner}
    return flat


def field_types(kind: type, prefix: str = "") -> dict[str, Any]:
    """Dotted name to annotation, in the order of declaration."""
    flat = {}
    for name, annotation in get_type_hints(kind).items():
        if annotation is OwnCode:
            continue
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


def translates(experiment: Experiment) -> bool:
    """Whether the experiment learns to translate: with an encoder, or as completions of sources by a decoder."""
    objective, corpus = experiment.train.objective, experiment.data.corpus
    if experiment.model.architecture == "encoder-decoder":
        return objective == "likelihood"
    return objective == "completion" and names_pairs(corpus)


def on_own_pairs(named: Experiment, experiment: Experiment, given: Collection[str]) -> Experiment:
    """The experiment that overrides made of the one `named`, for other pairs than it was made for.

    Its sample prompt, unless that is among the fields `given`, becomes empty: then the first validation source is
    translated. Logs which numbers were chosen for the other pairs, and what is usual.
    """
    if not translates(experiment) or experiment.data.corpus == named.data.corpus:
        return experiment
    usual = {
        "train.steps": "as many as read the pairs 5 to 20 times",
        "tokenizer.vocab_size": "8,000 for two languages",
        "sample.length_penalty": "0.6",
    }
    values = flatten(experiment)
    kept = [
        f"{name} {values[name]} (usual: {text})"
        for name, text in usual.items()
        if name not in given and not (name == "tokenizer.vocab_size" and experiment.train.start_from)
    ]
    if kept:
        logging.getLogger(__name__).warning(
            "chosen for %s and taken for %s too: %s",
            named.data.corpus,
            experiment.data.corpus,
            "; ".join(kept),
        )
    if "sample.prompt" in given:
        return experiment
    return replace(experiment, sample=replace(experiment.sample, prompt=""))


def inherit_model(experiment: Experiment, other: Experiment) -> Experiment:
    """The experiment on another one's model, as `train.start_from` needs it: dropout alone is its own. The tokenizer is
    the other's too."""
    model = replace(other.model, dropout=experiment.model.dropout)
    if model.position == "learned":  # as many places as there are vectors
        model = replace(model, max_length=model.max_length or other.data.context)
    return replace(experiment, model=model, tokenizer=other.tokenizer)


# --- JSON

ADDED: dict[str, Any] = {
    "data.extra_steps": 0,
    "data.old": "",
    "data.replay": 0.0,
    "model.num_classes": 0,
    "model.cross_rope": False,
    "train.trainable": "",
    "train.lora_rank": 0,
    "train.lora_alpha": 16.0,
    "train.lora_targets": "attention/|feed_forward/",
    "train.lora_dropout": 0.0,
    "train.mesh": "",
    "sample.patience": 1.0,
}
"""Fields that earlier versions did not have, each with the value that says what they did: their runs stay readable. A
new field goes here too, unless no value of it says that."""


def to_json(experiment: Experiment) -> str:
    """The whole experiment as indented JSON, marked with the version of this form. See `from_json`."""
    values = {"format": FORMAT} | dataclasses.asdict(experiment)
    if not experiment.code.functions:
        del values["code"]
    return json.dumps(values, indent=2, allow_nan=False) + "\n"


def from_json(text: str, source: str = "config.json") -> Experiment:
    """The experiment that `to_json` wrote, in this version or an earlier one: a field of `ADDED` that is missing has
    the value there. Nothing else is guessed, and nothing is left out.

    `source` says in messages where the text came from. Raises UsageError where the text is no JSON object of
    this version, where a field is missing or unknown, and where a value has the wrong type or is not allowed.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source} is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise UsageError(f"{source} holds no JSON object, so it is not an experiment")
    version = raw.pop("format", None)
    if version != FORMAT:
        raise UsageError(
            f"{source} has format {version!r}, and this version of ZeroToLLM reads format {FORMAT}"
        )
    code = raw.pop("code", None)
    experiment = _build(Experiment, raw, "", source)
    return replace(experiment, code=_code(code, source)) if code is not None else experiment


def _code(raw: object, source: str) -> OwnCode:
    match raw:
        case {"module": str(module), "functions": [*functions], "sha256": str(sha256), **rest} if not rest:
            if set(functions) <= set(REPLACEABLE):
                return OwnCode(module, tuple(functions), sha256)
    raise UsageError(f"{source}: code names no functions of an experiment's file: {raw!r}")


def _build(kind: type, raw: Any, prefix: str, source: str) -> Any:
    """A dataclass `kind` from a JSON value; `prefix` is its dotted name with a dot at the end."""
    if not isinstance(raw, dict):
        raise UsageError(f"{source}: {prefix[:-1]} is {raw!r}, and must be an object of fields")
    types = {name: hint for name, hint in get_type_hints(kind).items() if hint is not OwnCode}
    for name in raw.keys() - types.keys():
        raise UsageError(f"{source}: unknown field {prefix}{name}{did_you_mean(name, types)}")
    raw = {name: ADDED[prefix + name] for name in types if prefix + name in ADDED} | raw
    for name in types:
        if name not in raw:
            raise UsageError(
                f"{source}: the field {prefix}{name} is missing; another version of ZeroToLLM wrote this file"
            )
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
        # `isfinite` raises for a whole number that no float holds.
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and abs(value) <= sys.float_info.max
        )
    return type(value) is annotation


def _wrong_value(name: str, value: Any, annotation: Any) -> str:
    near = did_you_mean(value, get_args(annotation)) if isinstance(value, str) else ""
    return f"{name} is {value!r}, and must be {describe_type(annotation)}{near}"


# --- validation

# No number may be below 0; here is what else is asked. The bounds of a model are in its `resolve`.
_AT_LEAST = {
    "data.context": 1,
    "data.batch_size": 1,
    "data.buckets": 1,
    "tokenizer.vocab_size": 5,
    "optimizer.iterations": 1,
    "train.steps": 1,
    "train.micro_batches": 1,
    "train.keep": 1,
    "train.average": 1,
    "train.log_every": 1,
    "sample.max_tokens": 1,
    "sample.beam_size": 1,
    "sample.n_best": 1,
    "sample.patience": 1,
}
_AT_MOST = {
    "optimizer.iterations": 5,
    "optimizer.decay_fraction": 1,
    "optimizer.final_fraction": 1,
    "train.seed": 2**32 - 1,
    "sample.top_p": 1,
    "sample.min_p": 1,
    "sample.seed": 2**32 - 1,
}
_ABOVE_ZERO = {"train.lora_alpha", "optimizer.learning_rate", "optimizer.epsilon", "sample.top_p"}
_BELOW_ONE = {
    "data.replay",
    "train.lora_dropout",
    "data.validation_fraction",
    "data.test_fraction",
    "optimizer.momentum",
    "optimizer.beta1",
    "optimizer.beta2",
    "train.label_smoothing",
}


def validate(experiment: Experiment) -> None:
    """Raises UsageError, one line that names the field, where the experiment cannot be run as it stands.

    Looks at the experiment alone; whether its corpus exists is found when that is opened.
    """
    types = field_types(Experiment)
    for name, value in flatten(experiment).items():
        if not _is_a(value, types[name]):
            raise UsageError(_wrong_value(name, value, types[name]))
        if types[name] not in (int, float):
            continue
        most = _AT_MOST.get(name, 2**31 - 1 if types[name] is int else math.inf)
        if value > most:  # of an int32, where nothing else is said
            raise UsageError(f"{name} is {value}, and must be at most {most}")
        if name.startswith("model."):
            continue
        rules = {
            f"at least {_AT_LEAST.get(name, 0)}": value >= _AT_LEAST.get(name, 0),
            "above 0": value > 0 or name not in _ABOVE_ZERO,
            "below 1": value < 1 or name not in _BELOW_ONE,
        }
        for rule, kept in rules.items():
            if not kept:
                raise UsageError(f"{name} is {value}, and must be {rule}")

    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", experiment.name):
        raise UsageError(
            f"name is {experiment.name!r}, and names a folder: letters, digits, '_', '-' and '.' only"
        )
    data, tokenizer, train = experiment.data, experiment.tokenizer, experiment.train
    if not data.corpus:
        needs, file, example = "a text", "FILE", "input.txt"
        if translates(experiment):
            needs, file, example = "pairs of texts", "SOURCE:TARGET", "source.txt:target.txt"
        raise UsageError(
            f"the experiment {experiment.name} needs {needs}: "
            f"add --data.corpus {file}, for example --data.corpus {example}"
        )
    if data.validation_fraction + data.test_fraction >= 1:
        raise UsageError(
            "data.validation_fraction and data.test_fraction leave nothing to train on: lower them"
        )
    if tokenizer.byte_fallback and tokenizer.vocab_size < 4 + 256 + 2:
        raise UsageError(
            f"tokenizer.vocab_size is {tokenizer.vocab_size}, and must be at least 262 with "
            "tokenizer.byte_fallback: 4 special tokens, 256 bytes, space and line end come first"
        )
    if data.batch_size % train.micro_batches:
        raise UsageError(
            f"train.micro_batches {train.micro_batches} does not divide data.batch_size {data.batch_size}"
        )
    parse_mesh(train.mesh)
    if experiment.optimizer.kind == "adafactor" and experiment.optimizer.moments != "float32":
        raise UsageError(
            f"optimizer.moments {experiment.optimizer.moments} is not for adafactor, whose state is rows and "
            "columns only: set it to float32"
        )
    if experiment.sample.n_best > experiment.sample.beam_size:
        raise UsageError(
            f"sample.n_best {experiment.sample.n_best} is above sample.beam_size {experiment.sample.beam_size}"
        )
    if data.replay and not data.old:
        raise UsageError("data.replay reads an old corpus again, and there is none: set data.old")
    for name in ("trainable", "lora_rank"):
        if getattr(train, name) and not train.start_from:
            raise UsageError(
                f"train.{name} trains a part of what another run has learned: add --init-from RUN, for example "
                "--init-from runs/base"
            )
    for name in ("trainable", "lora_targets"):
        try:
            re.compile(getattr(train, name))
        except re.error as error:
            raise UsageError(f"train.{name} is no regular expression: {error}") from None
    if experiment.model.num_classes:
        raise UsageError("model.num_classes is as many as the data has labels: leave it out")
    pair = experiment.model.architecture == "encoder-decoder"
    if train.objective in ("span_corruption", "prefix_lm") and not pair:
        raise UsageError(
            f"train.objective {train.objective} needs an encoder: set model.architecture to encoder-decoder"
        )
    if train.objective == "completion" and pair:
        raise UsageError(
            "train.objective completion is for decoders alone: set it to likelihood, of a target given its source"
        )
    translation = pair and train.objective == "likelihood"
    examples = train.objective in ("completion", "label")
    for name in ("validation", "test", "extra", "reverse"):
        known = translation or (
            examples and (train.objective == "completion" or name in ("validation", "test"))
        )
        if getattr(data, name) and not known:
            raise UsageError(
                f"data.{name} is for pairs to translate, and this experiment has none: leave it out"
            )
    if data.extra_steps and not (data.extra and translation):
        raise UsageError(
            "data.extra_steps says how long an encoder-decoder reads data.extra too: set data.extra, or leave it out"
        )
    named = re.fullmatch(r"bible-\w+", data.corpus)
    if translation and named:
        raise UsageError(
            f"{data.corpus} is no pair to translate: give data.corpus as {data.corpus}:bible-bbe perhaps, or "
            "train.objective as span_corruption or prefix_lm"
        )
    if not pair and not examples and re.match(r"bible-[\w+-]+:", data.corpus):
        raise UsageError(
            f"{data.corpus} is a pair to translate, which takes an encoder: set model.architecture to encoder-decoder, "
            "or train.objective to completion"
        )
    if train.objective == "completion" and named:
        raise UsageError(
            f"{data.corpus} is no completion of anything: give a .jsonl, or pairs such as {data.corpus}:bible-bbe"
        )
    if examples and data.document_mask:
        raise UsageError(
            "data.document_mask is for plain text: examples are apart from each other, set it to False"
        )
    if pair and experiment.compute.attention not in ("auto", "plain"):
        raise UsageError(
            f"compute.attention is {experiment.compute.attention}, and an encoder-decoder's is plain: leave it out"
        )
    if data.old and (pair or examples):
        raise UsageError("data.old is for plain text that a decoder goes on to learn: leave it out")
    if data.document_mask and pair:
        raise UsageError("data.document_mask is for decoders alone: set it to False")
    # The tokenizer does not exist yet; what it turns out to hold is checked when the model is built.
    resolve(
        experiment.model, vocab_size=experiment.model.vocab_size or tokenizer.vocab_size, context=data.context
    )
