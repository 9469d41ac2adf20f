"""Experiments: JSON, differences, documentation of fields, other pairs."""

import dataclasses
import inspect
import json
from dataclasses import replace
from typing import Literal, get_args, get_origin

import pytest

from zerotollm.errors import UsageError
from zerotollm.experiment import (
    Experiment,
    differences,
    from_json,
    has_other_pairs,
    on_own_pairs,
    to_json,
)
from zerotollm.fields import added_defaults, describe_type, field_types, flatten
from zerotollm.studies.suite import changed
from zerotollm.suggest import did_you_mean

FIELDS = field_types(Experiment)
ADDED = {
    f"{group.name}.{name}": default
    for group in dataclasses.fields(Experiment)[1:]
    for name, default in added_defaults(group.type).items()
}


def another_value(name: str):
    """Return a value of the right type other than the default."""
    kind, value = FIELDS[name], flatten(Experiment())[name]
    if get_origin(kind) is Literal:
        return next(choice for choice in get_args(kind) if choice != value)
    change = {bool: lambda value: not value, str: "é\n".__add__, int: (1).__add__, float: (0.1).__add__}
    return change[kind](value)


def json_with(name: str, value) -> str:
    """Return the JSON of the default experiment with one field replaced."""
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
    other = changed(Experiment(), {name: another_value(name)})
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


def test_fields_that_an_earlier_version_did_not_write_have_their_defaults():
    raw = json.loads(to_json(Experiment()))
    for name in ADDED:
        group, part = name.split(".")
        del raw[group][part]
    assert from_json(json.dumps(raw)) == Experiment()


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
        to_json(changed(Experiment(), {"optimizer.learning_rate": number}))


def test_invalid_files_are_refused_with_the_nearest_match():
    assert "did you mean num_layers?" in refused(json_with("model.num_layer", 4))
    assert "did you mean swiglu?" in refused(json_with("model.feed_forward", "swigl"))
    assert "one of rms, layer" in refused(json_with("model.norm", "batch"))
    assert "model is 3" in refused(json_with("model", 3))
    assert "format 99" in refused(json_with("format", 99))
    assert "not JSON" in refused("{")
    assert "must be a JSON object" in refused("[]")


def test_fields_are_documented():
    for part in dataclasses.fields(Experiment)[1:]:
        source = inspect.getsource(part.type)
        for field in dataclasses.fields(part.type):
            after = source.split(f"    {field.name}: ", 1)[1].split("\n", 1)[1]
            assert after.lstrip().startswith('"""'), (
                f"{part.name}.{field.name} needs a docstring: --help shows it"
            )


def test_suggestions_ignore_case_hyphens_and_a_missing_group():
    fields = ["data.corpus", "train.steps", "model.num_layers"]
    assert "train.steps" in did_you_mean("--steps", fields)
    assert "model.num_layers" in did_you_mean("num-layer", fields)
    assert "model.num_layers" in did_you_mean("Model.NUM-LAYERS", fields)
    assert did_you_mean("zzz", fields) == ""


def test_other_pairs_drop_the_prompt_and_warn_of_the_numbers_that_stay(caplog):
    base = Experiment()
    original = replace(
        base,
        data=replace(base.data, corpus="bible-a:bible-b"),
        model=replace(base.model, architecture="encoder-decoder"),
        sample=replace(base.sample, prompt="In the bigynnyng", length_penalty=1.4),
    )
    own = replace(original, data=replace(original.data, corpus="mine.tsv"))

    def warning() -> str:
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return "".join(lines)

    without_prompt = replace(own, sample=replace(own.sample, prompt=""))
    assert on_own_pairs(original, own, {"data.corpus"}) == without_prompt
    line = warning()
    assert line.startswith("chosen for bible-a:bible-b and kept for mine.tsv: train.steps ")
    assert "tokenizer.vocab_size 4096 (usual: 8,000 for two languages)" in line
    assert line.endswith("sample.length_penalty 1.4 (usual: 0.6)")
    finetuned = replace(own, train=replace(own.train, start_from="runs/a"))
    assert on_own_pairs(original, finetuned, {"sample.prompt", "sample.length_penalty"}) == finetuned
    assert "vocab_size" not in (line := warning())
    assert "train.steps" in line
    assert has_other_pairs(original, own)
    assert not has_other_pairs(original, original)
    assert not has_other_pairs(changed(original, {"data.corpus": ""}), own), "a benchmark's own files"
    assert not has_other_pairs(base, changed(base, {"data.corpus": "mine.txt"})), "plain text"
