"""The JSON of an imported tokenizer gives its ids for any text; a tokenizer with other parts is refused by name."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from tokenizers import Regex, normalizers, pre_tokenizers

from tests.imported_tokenizers import (
    LINES,
    MAKERS,
    TEXT,
    byte_level,
    characters,
    imported_tokenizer,
    split,
    texts,
)
from zerotollm.data.tokens.pretrained import PretrainedTokenizer
from zerotollm.errors import UsageError
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.programs.source import render
from zerotollm.programs.split_pattern import parse_pattern
from zerotollm.programs.vocabulary import vocabulary
from zerotollm.types import Json


@dataclass(frozen=True)
class Program:
    """The functions of the NumPy program of a tokenizer."""

    tokens: Json
    encode: Callable[[Json, str], list[int]]
    decode: Callable[[Json, list[int]], str]


@cache
def program(name: str) -> Program:
    tokens = json.loads(json.dumps(vocabulary(imported_tokenizer(name))))
    size = len(tokens["tokens"])
    model = resolve(TransformerConfig(num_layers=1, width=8, num_heads=1), vocab_size=size, context=8)
    source = render("model.py.jinja", model, title="tokens", parameters=1, vocabulary=tokens)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.py"
        file.write_text(source, encoding="utf-8")
        spec = spec_from_file_location("model", file)
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
    return Program(tokens, module.encode, module.decode)


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=150, deadline=None)
@given(text=texts())
def test_it_gives_the_ids_of_the_library_for_any_text(name, text):
    tokenizer, made = imported_tokenizer(name), program(name)
    ids = tokenizer.encode(text).tolist()
    assert made.encode(made.tokens, text) == ids
    assert made.decode(made.tokens, ids) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", MAKERS)
def test_it_gives_the_ids_of_the_library_for_many_scripts(name):
    tokenizer, made = imported_tokenizer(name), program(name)
    for text in [TEXT, *LINES]:
        assert made.encode(made.tokens, text) == tokenizer.encode(text).tolist()


@pytest.mark.parametrize("name", ["qwen", "tekken"])
def test_every_character_is_normalized_and_split_as_by_the_library(name):
    """Classes and normal forms are those of the library, whatever versions of Unicode Python and it know."""
    tokenizer, made = imported_tokenizer(name), program(name)
    for first in range(0, 0x30000, 2048):
        codes = [code for code in range(first, first + 2048) if not 0xD800 <= code < 0xE000]
        text = "".join(f"a{chr(code)}\u0301\u0334 1{chr(code)}" for code in codes)
        assert made.encode(made.tokens, text) == tokenizer.encode(text).tolist(), hex(first)


def changed(tokenizer: PretrainedTokenizer, **parts: Json | None) -> PretrainedTokenizer:
    """Return a tokenizer with other parts of its tokenizer.json; parts of its model are in `model`."""
    fields = json.loads(tokenizer.model)
    model = fields["tokenizer"]["model"] | parts.pop("model", {})
    fields["tokenizer"] |= parts | {"model": model}
    return PretrainedTokenizer(json.dumps(fields).encode())


def metaspace_after(first: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([split(first), pre_tokenizers.Metaspace("\u2581", "first", split=False)])


SPACED = normalizers.Replace(" ", "\u2581")
REFUSED = {
    "the normalizer Lowercase": lambda: byte_level(normalizer=normalizers.Lowercase()),
    "the normalizer Replace 'a+'": lambda: byte_level(normalizer=normalizers.Replace(Regex("a+"), "b")),
    "the pre-tokenizer Punctuation": lambda: byte_level(pre_tokenizers.Punctuation()),
    "the pre-tokenizer Split of behavior 'Removed'": lambda: byte_level(pre_tokenizers.Split(" ", "removed")),
    r"the pattern '(?<=a)b'": lambda: byte_level(split("(?<=a)b")),
    r"the pattern '\\\\w+?'": lambda: byte_level(split(r"\w+?")),
    "the pre-tokenizer Metaspace": lambda: characters(SPACED, metaspace_after("a")),
    "a decoder that replaces": lambda: characters(),
    "add_prefix_space": lambda: changed(
        imported_tokenizer("unsplit"), pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}
    ),
    "continuing_subword_prefix": lambda: changed(
        imported_tokenizer("unsplit"), model={"continuing_subword_prefix": "##"}
    ),
    "ignore_merges without ByteLevel": lambda: changed(imported_tokenizer("llama2"), model={"ignore_merges": True}),
    "no token for some bytes": lambda: changed(imported_tokenizer("llama2"), model={"byte_fallback": False}),
    "a model of type 'WordPiece'": lambda: changed(imported_tokenizer("llama2"), model={"type": "WordPiece"}),
    "several Unicode normal forms": lambda: byte_level(
        normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.NFC()])
    ),
    "the added token '<think>' with lstrip": lambda: changed(
        imported_tokenizer("unsplit"),
        added_tokens=[
            {"id": 5, "content": "<think>", "special": False, "normalized": False, "lstrip": True, "rstrip": False,
             "single_word": False}
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("part", REFUSED)
def test_a_part_that_is_not_expressed_is_named(part):
    with pytest.raises(UsageError) as caught:
        vocabulary(REFUSED[part]())
    message = str(caught.value)
    assert message.startswith(
        f"the imported tokenizer of this model has {part}".encode().decode("unicode_escape")
    )
    assert message.endswith("leave --format out")
    assert "\n" not in message


@pytest.mark.parametrize(
    "pattern",
    [
        "a(?:b|c)?d",
        r"\w+?",
        "a|b++",
        "^a",
        r"\bx",
        "[a&&b]",
        "(?!a)",
        "a*",
        "[[:alpha:]]",
        "a|",
        "[a",
        "a{,3}",
    ],
)
def test_a_pattern_with_other_parts_is_refused(pattern):
    with pytest.raises(UsageError, match="the pattern"):
        parse_pattern(pattern)
