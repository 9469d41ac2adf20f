"""Our tokenizer in the form of the `tokenizers` library: the same ids for every text, and the text back."""

import json
import random
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from zerotollm.data.config import TokenizerConfig
from zerotollm.data.sources.pairs import as_sentence
from zerotollm.data.tokens.sentencepiece import SCORE_STEPS, SPACE, Tokenizer, train_tokenizer
from zerotollm.errors import UsageError
from zerotollm.interop.tokenizer_json import tokenizer_json

KINDS = ["bpe", "unigram", "char"]


def syllables(seed: int) -> str:
    """Text of few letters, in which nearly every run can be cut in many ways."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("aab", k=draw.randint(1, 12))) for _ in range(300)]
    return " ".join(words) + "\n" + "<s> </p> <b>a</b> <unk " * 3 + "ab, (ba): 12 34\n"


@cache
def trained(kind, fallback=True, markup=True, normalization="identity") -> tuple[Tokenizer, Library, Library]:
    text = syllables(0) if markup else syllables(0).replace("<", "")
    vocab_size = 70 if kind == "bpe" else 50
    config = TokenizerConfig(kind, vocab_size + 256 * fallback, fallback, normalization)
    tokenizer = train_tokenizer(config, [text])
    libraries = []
    for sentences in (False, True):
        library = Library.from_str(json.dumps(tokenizer_json(tokenizer, sentences=sentences)))
        library.encode_special_tokens = True
        libraries.append(library)
    return tokenizer, *libraries


SPECIAL = [
    "<s>",
    "</s>",
    "<unk>",
    "<pad>",
    "<0x41>",
    "<0x0A>",
    "<",
    "<\0",
    "\0",
    SPACE,
    "\u2585",
    "\n",
    " ",
    "  ",
    "\r\n",
]
few = st.text(alphabet="aab  <>/s\n", max_size=200)
texts = st.lists(st.one_of(st.text(), st.sampled_from(SPECIAL), few), max_size=30).map("".join)
every_tokenizer = pytest.mark.parametrize(
    ("kind", "fallback", "markup"),
    [(kind, fallback, markup) for kind in KINDS for fallback in (True, False) for markup in (True, False)],
)


@every_tokenizer
@given(text=texts)
@settings(max_examples=50)
@example(text="aabaabab" * 40 + "\n" + " " * 100 + "ab" * 300)
@example(text=f"Ω{SPACE}Ω<Ω\0Ω {SPACE}{SPACE} ΩΩ")
def test_every_text_has_the_same_ids(kind, fallback, markup, text):
    tokenizer, library, pairs = trained(kind, fallback, markup)
    ids = tokenizer.encode(text)
    assert library.encode(text, add_special_tokens=False).ids == ids.tolist()
    assert library.encode(text).ids == [tokenizer.bos_id, *ids]
    if fallback:
        assert library.decode(ids.tolist()) == text
    if text.strip():
        sentence = tokenizer.encode(as_sentence(text))
        assert pairs.encode(text).ids == [*sentence, tokenizer.eos_id]
        if fallback:
            assert pairs.decode(sentence.tolist()) == text.strip()


@settings(max_examples=30)
@given(text=st.text(st.characters(max_codepoint=0x58F, exclude_categories=["Cs"])))
def test_normalization_is_the_same_where_both_know_the_characters(text):
    tokenizer, library, _ = trained("bpe", normalization="nfc")
    assert library.encode(text, add_special_tokens=False).ids == tokenizer.encode(text).tolist()


def test_real_words_in_a_real_vocabulary():
    from tests.data.tokens.test_sentencepiece import TEXT

    for kind, size in (("bpe", 400), ("unigram", 330)):
        tokenizer = train_tokenizer(TokenizerConfig(kind, size), [TEXT])
        library = Library.from_str(json.dumps(tokenizer_json(tokenizer, sentences=False)))
        np.testing.assert_array_equal(
            library.encode(TEXT, add_special_tokens=False).ids, tokenizer.encode(TEXT)
        )


def test_special_pieces_are_special_to_whoever_asks_for_it():
    tokenizer, library, _ = trained("bpe")
    with_specials = Library.from_str(library.to_str())
    assert with_specials.encode("</s>a", add_special_tokens=False).ids[0] == tokenizer.eos_id
    assert library.token_to_id("<pad>") == tokenizer.pad_id


def test_scores_that_do_not_add_up_exactly_are_refused():
    tokenizer, _, _ = trained("unigram")
    proto = type(tokenizer._proto).FromString(tokenizer.model)
    proto.pieces[-1].score += 0.3 / SCORE_STEPS
    with pytest.raises(UsageError, match="train the model again"):
        tokenizer_json(Tokenizer(proto.SerializeToString()), sentences=False)
