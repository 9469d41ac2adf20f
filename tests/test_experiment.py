"""Experiments as JSON and back, their differences, and what `validate` and `resolve` refuse."""

import dataclasses
import inspect
import json
from dataclasses import replace
from typing import Literal, get_args, get_origin

import pytest

from zerotollm.errors import UsageError
from zerotollm.experiment import (
    ADDED,
    Experiment,
    describe_type,
    differences,
    field_types,
    flatten,
    from_json,
    on_own_pairs,
    to_json,
    validate,
)
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.suggest import did_you_mean

FIELDS = field_types(Experiment)


def changed(name: str, value) -> Experiment:
    """The default experiment with one field, by its dotted name, given another value."""
    group, _, part = name.rpartition(".")
    base = Experiment()
    return replace(
        base, **({group: replace(getattr(base, group), **{part: value})} if group else {part: value})
    )


def another_value(name: str):
    """A value of the right type that is not the default one."""
    kind, value = FIELDS[name], flatten(Experiment())[name]
    if get_origin(kind) is Literal:
        return next(choice for choice in get_args(kind) if choice != value)
    change = {bool: lambda value: not value, str: "é\n".__add__, int: (1).__add__, float: (0.1).__add__}
    return change[kind](value)


def json_with(name: str, value) -> str:
    """The default experiment's JSON with one field replaced by a JSON value."""
    raw = json.loads(to_json(Experiment()))
    *groups, part = name.split(".")
    inner = raw
    for group in groups:
        inner = inner[group]
    inner[part] = value
    return json.dumps(raw)


def refused(text: str) -> str:
    with pytest.raises(UsageError) as error:
        from_json(text, "here.json")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_survives_json_and_shows_as_the_only_difference(name):
    other = changed(name, another_value(name))
    assert from_json(to_json(other)) == other
    assert differences(Experiment(), other) == [(name, flatten(Experiment())[name], another_value(name))]


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in ADDED])
def test_every_missing_field_is_named(name):
    raw = json.loads(to_json(Experiment()))
    *groups, part = name.split(".")
    del (raw[groups[0]] if groups else raw)[part]
    message = refused(json.dumps(raw))
    assert "here.json" in message
    assert name in message
    assert "missing" in message


def test_a_file_of_an_earlier_version_is_read_as_what_it_did():
    raw = json.loads(to_json(Experiment()))
    for name in ADDED:
        group, part = name.split(".")
        del raw[group][part]
    found = flatten(from_json(json.dumps(raw)))
    assert found == flatten(Experiment()) | ADDED
    assert found.keys() == FIELDS.keys()


@pytest.mark.parametrize("name", FIELDS)
def test_every_wrong_type_is_refused(name):
    for value in (None, [1], {"a": 1}, "7" if FIELDS[name] in (int, float, bool) else 7):
        assert f"{name} is {value!r}, and must be {describe_type(FIELDS[name])}" in refused(
            json_with(name, value)
        )


def test_true_is_no_number_and_a_whole_number_is_one():
    assert "train.steps is True" in refused(json_with("train.steps", True))
    assert "train.steps is 5.0" in refused(json_with("train.steps", 5.0))
    rate = from_json(json_with("optimizer.learning_rate", 1)).optimizer.learning_rate
    assert (rate, type(rate)) == (1.0, float)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_only_finite_numbers_are_read_and_written(number):
    assert "optimizer.learning_rate" in refused(json_with("optimizer.learning_rate", number))
    with pytest.raises(ValueError, match="JSON"):
        to_json(changed("optimizer.learning_rate", number))


def test_wrong_files_are_refused_with_the_nearest_match():
    assert "did you mean num_layers?" in refused(json_with("model.num_layer", 4))
    assert "did you mean swiglu?" in refused(json_with("model.feed_forward", "swigl"))
    assert "one of rms, layer" in refused(json_with("model.norm", "batch"))
    assert "model is 3" in refused(json_with("model", 3))
    assert "format 99" in refused(json_with("format", 99))
    assert "not JSON" in refused("{")
    assert "no JSON object" in refused("[]")


def test_fields_are_documented():
    for part in dataclasses.fields(Experiment)[1:]:
        source = inspect.getsource(part.type)
        for field in dataclasses.fields(part.type):
            after = source.split(f"    {field.name}: ", 1)[1].split("\n", 1)[1]
            assert after.lstrip().startswith('"""'), (
                f"{part.name}.{field.name} needs a docstring: --help shows it"
            )


def test_the_default_experiment_is_valid():
    validate(Experiment())


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("data.context", 0, "at least 1"),
        ("data.batch_size", 0, "at least 1"),
        ("data.validation_fraction", 1.0, "below 1"),
        ("data.test_fraction", -0.1, "at least 0"),
        ("data.corpus", "", "--data.corpus"),
        ("data.corpus", 3, "must be text"),
        ("data.documents", "line", "one of auto, file, paragraph"),
        ("tokenizer.vocab_size", 261, "at least 262"),
        ("model.num_layers", 0, "above 0"),
        ("model.width", 250, "is not divisible by"),
        ("model.num_heads", 5, "take 4 heads"),
        ("model.width", 191, "take 1 head, or set"),
        ("model.num_kv_heads", 2, "does not divide"),
        ("model.head_width", 7, "even"),
        ("model.max_length", 64, "data.context 256 is longer than model.max_length 64"),
        ("model.vocab_size", -64, "must be 0"),
        ("model.dropout", 1.0, "below 1"),
        ("model.dropout", float("nan"), "must be a number"),
        ("optimizer.learning_rate", 0.0, "above 0"),
        ("optimizer.warmup_steps", -1, "at least 0"),
        ("optimizer.decay_fraction", 1.5, "at most 1"),
        ("optimizer.beta2", 1.0, "below 1"),
        ("optimizer.weight_decay", -0.1, "at least 0"),
        ("optimizer.iterations", 6, "at most 5"),
        ("train.steps", 0, "at least 1"),
        ("train.steps", True, "whole number"),
        ("train.steps", 10**20, "at most 2147483647"),
        ("model.width", 2**31, "at most 2147483647"),
        ("sample.top_k", 10**20, "at most 2147483647"),
        ("optimizer.learning_rate", 10**400, "must be a number"),
        ("train.micro_batches", 3, "does not divide data.batch_size 4"),
        ("train.seed", 2**32, "at most 4294967295"),
        ("train.keep", 0, "at least 1"),
        ("train.label_smoothing", 1.0, "below 1"),
        ("train.z_loss", -1e-4, "at least 0"),
        ("model.initialization", "small", "one of scaled, plain, zero"),
        ("optimizer.schedule", "constant", "one of wsd, cosine, linear, inverse_sqrt"),
        ("sample.temperature", -1.0, "at least 0"),
        ("sample.top_p", 0.0, "above 0"),
        ("sample.min_p", 1.1, "at most 1"),
        ("name", "../elsewhere", "names a folder"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line_that_names_the_field(name, value, says):
    with pytest.raises(UsageError) as error:
        validate(changed(name, value))
    message = str(error.value)
    assert says in message
    assert name.rpartition(".")[2] in message
    assert "\n" not in message


@pytest.mark.parametrize("name", [name for name, kind in FIELDS.items() if kind in (int, float)])
def test_no_number_may_be_negative(name):
    with pytest.raises(UsageError, match=name):
        validate(changed(name, FIELDS[name](-1)))


def test_held_out_fractions_leave_something_to_train_on():
    data = replace(Experiment().data, validation_fraction=0.5, test_fraction=0.5)
    with pytest.raises(UsageError, match="nothing to train on"):
        validate(replace(Experiment(), data=data))


@pytest.mark.parametrize("feed_forward", ["swiglu", "gelu", "relu", "relu2"])
@pytest.mark.parametrize("width", [32, 64, 128, 256, 768])
def test_resolving_fills_the_zeros_once_and_keeps_the_cost_of_the_feed_forward(feed_forward, width):
    config = TransformerConfig(width=width, num_heads=4, feed_forward=feed_forward)
    resolved = resolve(config, vocab_size=2001, context=96)
    assert resolve(resolved, vocab_size=2001, context=96) == resolved
    assert 0 not in (resolved.num_kv_heads, resolved.head_width, resolved.ff_width)
    assert resolved.vocab_size == 2048
    assert resolved.max_length == 96
    assert resolved.head_width * resolved.num_heads == width
    matrices = 3 if feed_forward == "swiglu" else 2
    assert 1 <= matrices * resolved.ff_width / (2 * 4 * width) < 1.2
    assert resolved.ff_width % 8 == 0


def test_resolving_keeps_what_was_given():
    config = TransformerConfig(
        vocab_size=4096,
        max_length=512,
        num_heads=4,
        num_kv_heads=2,
        head_width=32,
        key_width=16,
        ff_width=100,
    )
    assert resolve(config, vocab_size=2048, context=128) == config


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused():
    with pytest.raises(UsageError, match="2000"):
        resolve(TransformerConfig(vocab_size=1024), vocab_size=2000, context=128)


def test_suggestions_ignore_case_hyphens_and_a_missing_group():
    fields = ["data.corpus", "train.steps", "model.num_layers"]
    assert "train.steps" in did_you_mean("--steps", fields)
    assert "model.num_layers" in did_you_mean("num-layer", fields)
    assert "model.num_layers" in did_you_mean("Model.NUM-LAYERS", fields)
    assert did_you_mean("zzz", fields) == ""


def test_numbers_chosen_for_other_pairs_are_told_unless_they_are_given(caplog):
    """A prompt in the language of other pairs goes; what else was chosen for them stays, and is told."""
    base = Experiment()
    named = replace(
        base,
        data=replace(base.data, corpus="bible-a:bible-b"),
        model=replace(base.model, architecture="encoder-decoder"),
        sample=replace(base.sample, prompt="In the bigynnyng", length_penalty=1.4),
    )
    own = replace(named, data=replace(named.data, corpus="mine.tsv"))

    def told() -> str:
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return "".join(lines)

    assert on_own_pairs(named, own, {"data.corpus"}) == replace(own, sample=replace(own.sample, prompt=""))
    line = told()
    assert line.startswith("chosen for bible-a:bible-b and taken for mine.tsv too: train.steps ")
    assert "tokenizer.vocab_size 4096 (usual: 8,000 for two languages)" in line
    assert line.endswith("sample.length_penalty 1.4 (usual: 0.6)")
    begun = replace(own, train=replace(own.train, start_from="runs/a"))
    assert on_own_pairs(named, begun, {"sample.prompt", "sample.length_penalty"}) == begun
    assert "vocab_size" not in (line := told())
    assert "train.steps" in line
    assert on_own_pairs(named, named, set()) == named
    text = replace(base, data=replace(base.data, corpus="mine.txt"))
    assert on_own_pairs(base, text, {"data.corpus"}) == text
    assert not told()
