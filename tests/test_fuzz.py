"""Damaged and random input of every kind gives one clear line, no other exception, and no hang.

`python -m pytest -m slow tests/test_fuzz.py` tries 10,000 of each; the tests that always run try a few.
"""

import json
import struct

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from zerotollm.cli import describe_error, override, split
from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.sources.own_files import open_files
from zerotollm.data.tokens.sentencepiece import load_tokenizer, train_tokenizer
from zerotollm.errors import RunError, UsageError
from zerotollm.experiment import Experiment, from_json, to_json
from zerotollm.fields import field_types, flatten
from zerotollm.interop import folder
from zerotollm.validation import validate

FEW, MANY = 20, 10_000
SIZES = [FEW, pytest.param(MANY, marks=pytest.mark.slow)]
LINE = "\n"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def tried(number: int):
    return settings(
        max_examples=number,
        deadline=5000,  # ms: a longer run counts as a hang
        suppress_health_check=list(HealthCheck),
        database=None,
    )


def one_line(error: Exception) -> None:
    message = str(error)
    assert message.strip()
    assert LINE not in message.strip()


def printed(error: Exception) -> None:
    """As `one_line`, for the command line, whose words may contain line breaks."""
    line, code = describe_error(error)
    assert line
    assert LINE not in line
    assert code == 2


def damaged(content: bytes):
    """Return bytes with random changes, deletions and insertions."""

    def change(edits: list[tuple[int, bytes, int]]) -> bytes:
        data = bytearray(content)
        for place, new, gone in edits:
            at = place % (len(data) + 1)
            data[at : at + gone] = new
        return bytes(data)

    edit = st.tuples(st.integers(0, 2**20), st.binary(max_size=4), st.integers(0, 40))
    return st.lists(edit, min_size=1, max_size=4).map(change)


@pytest.mark.parametrize("number", SIZES)
def test_configuration(number):
    whole = to_json(Experiment())
    names = [name.split(".") for name in flatten(Experiment())]

    def with_values(changes: list[tuple[list[str], object]]) -> str:
        raw = json.loads(whole)
        for path, value in changes:
            inner = raw
            for name in path[:-1]:
                inner = inner[name] if isinstance(inner.get(name), dict) else {}
            inner[path[-1]] = value
        return json.dumps(raw)

    texts = (
        st.text(max_size=40)
        | damaged(whole.encode()).map(lambda data: data.decode(errors="replace"))
        | json_values.map(json.dumps)
        | st.lists(st.tuples(st.sampled_from(names), json_values), min_size=1, max_size=3).map(with_values)
    )

    @tried(number)
    @given(texts)
    def attempt(text):
        try:
            validate(from_json(text))
        except UsageError as error:
            one_line(error)

    attempt()


@pytest.mark.parametrize("number", SIZES)
def test_overrides(number):
    names = list(field_types(Experiment))
    words = st.text(max_size=12) | st.sampled_from(
        ["train", "--help", "--data.corpus", "--train.mesh", "data=2"]
    )

    @tried(number)
    @given(st.lists(words, max_size=5), st.sampled_from(names), st.text(max_size=12) | st.integers().map(str))
    def attempt(command, name, value):
        try:
            split(command)
        except UsageError as error:
            printed(error)
        try:
            validate(override(Experiment(), [(name, value)]))
        except UsageError as error:
            printed(error)

    attempt()


@pytest.mark.parametrize("number", SIZES)
def test_jsonl(number, tmp_path):
    path = tmp_path / "a.jsonl"
    good = "".join(
        json.dumps({"text": f"verse {i} \U0001f600 of many words"}) + LINE for i in range(4)
    ).encode()
    lines = st.lists(json_values.map(json.dumps), max_size=4).map(lambda lines: LINE.join(lines).encode())

    @tried(number)
    @given(damaged(good) | lines | st.binary(max_size=60))
    @example(rb'{"\n!": null}')
    def attempt(content):
        path.write_bytes(content)
        try:
            corpus = open_files(DataConfig(corpus=str(path)))
            for documents in corpus.splits.values():
                for document in documents:
                    assert isinstance(document.text, str)
        except (UsageError, RunError) as error:
            one_line(error)

    attempt()


@pytest.mark.parametrize("number", SIZES)
def test_safetensors(number, tmp_path):
    """Random headers before a little data."""
    import numpy as np
    from safetensors.numpy import save

    path = tmp_path / "model.safetensors"
    good = save({"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float16)})

    def framed(header: object) -> bytes:
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + b"\0" * 32

    tensor = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "BF16", "I64", "Q9"]) | json_values,
            "shape": st.lists(st.integers(-1, 2**40), max_size=3) | json_values,
            "data_offsets": st.lists(st.integers(-1, 2**63), max_size=3) | json_values,
        }
    )
    headers = st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), tensor | json_values, max_size=3)

    @tried(number)
    @given(damaged(good) | headers.map(framed) | st.binary(max_size=40))
    def attempt(content):
        path.write_bytes(content)
        try:
            for name, file in folder._tensor_files(tmp_path).items():
                folder._read(file, name, (2, 3))
        except (UsageError, RunError) as error:
            one_line(error)

    attempt()


@pytest.mark.parametrize("number", SIZES)
def test_tokenizers(number, tmp_path):
    path = tmp_path / "tokenizer.model"
    config = TokenizerConfig(vocab_size=270)
    good = train_tokenizer(
        config, ["in the beginning was the word", "and the word was with light"] * 20
    ).model

    @tried(number)
    @given(damaged(good) | st.binary(max_size=60))
    @example(good.replace(b"<pad>", b"\x80pad>"))
    @example(good.replace(b"word", b"w\0rd"))
    def attempt(content):
        path.write_bytes(content)
        try:
            load_tokenizer(path).encode("the word")
        except (UsageError, RunError) as error:
            one_line(error)

    attempt()
