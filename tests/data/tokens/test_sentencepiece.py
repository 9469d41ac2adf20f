"""Decoding returns the text exactly; a tokenizer depends on the text and the settings alone."""

import hashlib
import random
import subprocess
import sys
import unicodedata
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zerotollm.data.config import TokenizerConfig
from zerotollm.data.tokens import sentencepiece, word_cache
from zerotollm.data.tokens.sentencepiece import (
    CHUNK,
    SPACE,
    Tokenizer,
    load_tokenizer,
    may_lose_text,
    train_tokenizer,
)
from zerotollm.errors import RunError, UsageError

KINDS = ["bpe", "unigram", "char"]
WHO, WHERE = ["king", "queen", "daughter"], ["north", "island", "old mountain"]
DID, WHAT = ["crossed", "saw", "loved"], ["sea", "river", "garden"]
NAME = [
    "".join(parts) for parts in product(["Ab", "Mel", "Jor"], ["ia", "chi", "do"], ["dan", "zedek", "thar"])
]
TEXT = "\n".join(
    f'In the year {year} {NAME[year % 27]}, {who} of the {where}, {did} the {what}: "Who\'s there?"\n'
    for year, (who, where, did, what) in enumerate(product(WHO, WHERE, DID, WHAT))
)


@cache
def trained(kind="bpe", normalization="identity", byte_fallback=True) -> Tokenizer:
    vocab_size = (330 if kind == "unigram" else 400) - (0 if byte_fallback else 256)
    config = TokenizerConfig(kind, vocab_size, byte_fallback, normalization)
    return train_tokenizer(config, [TEXT])


AWKWARD = f"{SPACE}|   |\n|\r\n|\t|\0|\u2585|\u2047|\ufeff|\ufffd|\ufffe|\U0010ffff|e\u0301|\u0301|\u200d"
WORDS = "<s>|</s>|<unk>|<pad>|<0x0A>|the| the sea|1900|👩\u200d👩\u200d👧"
awkward = st.sampled_from([" ", *AWKWARD.split("|"), *WORDS.split("|")])
texts = st.lists(st.one_of(st.text(), awkward)).map("".join)


# --- round trip


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts)
@example(text=" " * 3000 + "x" * 3000 + SPACE * 3)
def test_every_text_comes_back_exactly(kind, text):
    tokenizer = trained(kind)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("normalization", ["nfc", "nfkc"])
@given(text=texts)
@example(text="e\u0301 \ufb01 \u212b")
def test_normalization_is_all_that_changes_a_text(normalization, text):
    tokenizer = trained(normalization=normalization)
    expected = unicodedata.normalize(normalization.upper(), text)
    assert tokenizer.decode(tokenizer.encode(text)) == expected


@given(text=texts)
def test_a_text_is_the_bytes_of_its_tokens(text):
    tokenizer = trained()
    assert b"".join(tokenizer.token_bytes(int(i)) for i in tokenizer.encode(text)) == text.encode()


@given(many=st.lists(texts))
def test_a_batch_encodes_each_text_as_alone(many):
    tokenizer = trained()
    batch = tokenizer.encode_batch(many)
    assert len(batch) == len(many)
    for text, ids in zip(many, batch, strict=True):
        assert ids.dtype == np.int32
        np.testing.assert_array_equal(ids, tokenizer.encode(text))


@given(ids=st.lists(st.integers(0, 399)))
def test_any_ids_are_a_text(ids):
    tokenizer = trained()
    assert tokenizer.decode(ids) == tokenizer.decode(np.array(ids, np.int32))


def test_text_never_encodes_to_special_tokens_and_they_decode_to_nothing():
    tokenizer = trained()
    assert [tokenizer.piece(i) for i in range(4)] == ["<pad>", "<s>", "</s>", "<unk>"]
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2, 3)
    assert tokenizer.encode("<pad><s></s><unk>").min() > 3
    assert tokenizer.decode([0, 1, 2]) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_without_bytes_an_unknown_character_is_one_unk(kind):
    tokenizer = trained(kind, byte_fallback=False)
    assert not any(tokenizer.piece(i).startswith("<0x") for i in range(tokenizer.vocab_size))
    for unknown in ("\u03a9", SPACE):
        ids = tokenizer.encode(f"the {unknown} sea")
        assert list(ids).count(tokenizer.unk_id) == 1
        assert tokenizer.decode(ids) == "the \ufffd sea"


def test_half_a_surrogate_pair_is_refused_in_one_line():
    with pytest.raises(UsageError, match=r"^character 3 .* surrogate"):
        trained().encode("abc\ud800")


# --- how text is cut


@pytest.mark.parametrize("kind", KINDS)
def test_long_texts_get_the_tokens_that_sentencepiece_gives_them_whole(kind):
    from sentencepiece import SentencePieceProcessor

    tokenizer = trained(kind)
    whole = SentencePieceProcessor(model_proto=tokenizer.model)
    for text in (TEXT, TEXT.replace("\n", " "), TEXT.replace(" ", "  "), TEXT.replace("\n", "\n ")):
        assert len(text) > 5 * CHUNK
        np.testing.assert_array_equal(tokenizer.encode(text), whole.encode(text))


@pytest.mark.parametrize(
    ("kind", "byte_fallback"), [*product(KINDS, [True]), ("unigram", False), ("char", False)]
)
@given(many=st.lists(texts, max_size=4))
@example(many=["  the  sea \n\n \nthe", "", SPACE + " the" + SPACE * 2 + "\n", "x" * 3000, "天天 天\n天"])
def test_words_from_the_cache_have_the_tokens_of_the_whole_text(kind, byte_fallback, many):
    tokenizer = trained(kind, byte_fallback=byte_fallback)
    expected = tokenizer.encode_batch(many)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentencepiece, "MANY", 0)
        patch.setattr(word_cache, "LONG_WORDS", 10**6)
        for _ in range(2):
            ids = tokenizer.encode_batch(many)
            assert [ids_N.tolist() for ids_N in ids] == [ids_N.tolist() for ids_N in expected]
            assert all(ids_N.dtype == np.int32 for ids_N in ids)


def test_the_cache_of_words_begins_anew_when_it_is_full_or_failed(monkeypatch):
    monkeypatch.setattr(sentencepiece, "MANY", 0)
    monkeypatch.setattr(word_cache, "MOST_WORDS", 20)
    tokenizer = Tokenizer(trained().model)
    lines = TEXT.split("\n")
    whole = [trained().encode(line).tolist() for line in lines]
    assert [tokenizer.encode(line).tolist() for line in lines] == whole
    assert len(tokenizer._encode_words.__self__._numbers) < 60
    with pytest.raises(UsageError, match=r"^character 8 .* surrogate"):
        tokenizer.encode("the sea \ud800")
    assert [tokenizer.encode(line).tolist() for line in lines] == whole


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_no_token_spans_words_or_lines_or_two_digits(kind):
    tokenizer = trained(kind)
    pieces = [tokenizer.piece(i) for i in range(4, tokenizer.vocab_size)]
    assert max(map(len, pieces)) > 3
    for piece in pieces:
        assert SPACE not in piece.lstrip(SPACE), piece
        assert "\n" not in piece or piece == "\n"
        assert sum(c.isdigit() for c in piece) <= 1 or piece.startswith("<0x")


@pytest.mark.parametrize("byte_fallback", [False, True])
def test_a_character_tokenizer_has_one_token_for_each_character(byte_fallback):
    tokenizer = trained("char", byte_fallback=byte_fallback)
    assert tokenizer.vocab_size == 4 + 256 * byte_fallback + len(set(TEXT))
    ids = tokenizer.encode(TEXT)
    assert [tokenizer.decode([i]) for i in ids] == list(TEXT)


def test_characters_next_to_reserved_ones_are_learned():
    """SentencePiece stops at NUL, drops sentences with U+2585 and skips the names of special tokens."""
    text = "a\0b c\u2585d e\u2581f <s> g<0x41>h <unk>" + "x" * 20_000 + "i\tj"
    tokenizer = train_tokenizer(TokenizerConfig("char", 100, byte_fallback=False), [text])
    unknown = [c for c, i in zip(text, tokenizer.encode(text), strict=True) if i == tokenizer.unk_id]
    assert unknown == ["\0", "\u2585", "\u2581"]


@pytest.mark.parametrize("kind", KINDS)
def test_spaces_come_back_where_the_training_text_had_none(kind):
    tokenizer = train_tokenizer(TokenizerConfig(kind, 266), ["abcabcddee\nabcabcddee"])
    assert tokenizer.decode(tokenizer.encode("a b  c")) == "a b  c"


# --- training


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_is_the_same_in_every_process_and_on_any_number_of_cores(kind):
    script = (
        "import os, hashlib; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from zerotollm.data.tokens.sentencepiece import *\n"
        f"model = train_tokenizer(TokenizerConfig({kind!r}, {trained(kind).vocab_size}), [{TEXT!r}]).model\n"
        "print(hashlib.sha256(model).hexdigest())"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == hashlib.sha256(trained(kind).model).hexdigest()
    assert out.stderr == "", "training is quiet"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_an_error_for_a_large_vocabulary_names_the_largest(kind):
    with pytest.raises(UsageError, match=r"tokenizer.vocab_size 9000 .* at most \d+") as caught:
        train_tokenizer(TokenizerConfig(kind, 9000), [TEXT])
    largest = int(str(caught.value).split("at most ")[1].split(",")[0])
    assert train_tokenizer(TokenizerConfig(kind, largest), [TEXT]).vocab_size == largest
    with pytest.raises(UsageError):
        train_tokenizer(TokenizerConfig(kind, largest + 1), [TEXT])


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("byte_fallback", [True, False])
def test_an_error_for_a_small_vocabulary_names_the_smallest(kind, byte_fallback):
    with pytest.raises(UsageError, match=r"tokenizer.vocab_size 5 .* at least \d+") as caught:
        train_tokenizer(TokenizerConfig(kind, 5, byte_fallback), [TEXT])
    least = int(str(caught.value).split("at least ")[1].split()[0])
    assert train_tokenizer(TokenizerConfig(kind, least, byte_fallback), [TEXT]).vocab_size == least
    with pytest.raises(UsageError):
        train_tokenizer(TokenizerConfig(kind, least - 1, byte_fallback), [TEXT])


@pytest.mark.parametrize("kind", KINDS)
def test_the_rarest_of_too_many_characters_become_bytes(kind):
    common = "the cat and the dog sat on the mat " * 200
    text = common + "".join(map(chr, range(0x4E00, 0x4E00 + 2000)))
    tokenizer = train_tokenizer(TokenizerConfig(kind, 600), [text])
    assert tokenizer.vocab_size == 600
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(" cat")) == (4 if kind == "char" else 1)


@pytest.mark.parametrize("texts", [[], [""], ["\n\n", ""]])
def test_no_text_no_tokenizer(texts):
    with pytest.raises(UsageError, match="no text"):
        train_tokenizer(TokenizerConfig(), texts)


def test_a_text_larger_than_the_sample_is_learned_from_throughout(monkeypatch):
    monkeypatch.setattr("zerotollm.data.tokens.sentencepiece.SAMPLE_CHARACTERS", 5_000)
    blocks = [letter * 9 + "\n" for letter in "abcdefghijklmnopqrstuvwxyz" for _ in range(100)]
    tokenizer = train_tokenizer(TokenizerConfig("char", 100, byte_fallback=False), blocks)
    assert tokenizer.vocab_size == 4 + 2 + 26


# --- files


def test_a_saved_tokenizer_is_the_same(tmp_path):
    trained().save(tmp_path / "tokenizer.model")
    loaded = load_tokenizer(tmp_path / "tokenizer.model")
    assert loaded == trained()
    assert loaded.encode(TEXT).tolist() == trained().encode(TEXT).tolist()


@pytest.mark.parametrize("keep", [0, 1, 50, 0.5, 0.9, -1])
def test_a_damaged_file_is_an_error_of_one_line(tmp_path, keep):
    model = trained(normalization="nfc").model
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model[: int(keep * len(model)) if isinstance(keep, float) else keep])
    with pytest.raises(RunError, match=r"damaged|not a tokenizer"):
        load_tokenizer(path)


def test_a_file_cut_between_two_of_its_parts_is_damaged(tmp_path):
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    path = tmp_path / "tokenizer.model"
    for part in ("pieces", "trainer_spec", "normalizer_spec"):
        proto = ModelProto.FromString(trained().model)
        proto.ClearField(part)
        path.write_bytes(proto.SerializeToString())
        with pytest.raises(RunError, match="damaged"):
            load_tokenizer(path)
    with pytest.raises(RunError, match="cannot read"):
        load_tokenizer(tmp_path / "absent.model")


def test_slow_unigram_training_is_announced(monkeypatch, caplog):
    """Unigram trains far more slowly on text without spaces."""
    monkeypatch.setattr("zerotollm.data.tokens.sentencepiece.SLOW", 5000)
    spaced, unbroken = ("".join(random.Random(0).choices(f"acgt{space}", k=6000)) for space in ("      ", ""))
    for kind, text, expected in (("unigram", unbroken, 1), ("unigram", spaced, 0), ("bpe", unbroken, 0)):
        caplog.clear()
        train_tokenizer(TokenizerConfig(kind=kind, vocab_size=300), [text])
        assert (
            len([r for r in caplog.records if "6,000 characters without spaces" in r.getMessage()])
            == expected
        )


@pytest.mark.parametrize("byte_fallback", [True, False])
@pytest.mark.parametrize("normalization", ["identity", "nfc"])
def test_a_tokenizer_that_may_lose_text_text_says_so(byte_fallback, normalization):
    """The answer is the same before and after training."""
    expected = not byte_fallback or normalization == "nfc"
    assert may_lose_text(TokenizerConfig("bpe", 400, byte_fallback, normalization)) == expected
    assert may_lose_text(trained("bpe", normalization, byte_fallback)) == expected


@pytest.mark.parametrize(("letters", "kept"), [(9, 9), (10, 9)])
def test_every_character_has_a_token_in_a_quarter_of_the_vocabulary(letters, kept):
    """38 of 300 ids are neither special nor a byte nor white space; beyond 9 characters the rarest have no token."""
    draw = random.Random(0)
    common, rare = "abcdefghijklmnopq"[: letters - 1], "z"
    words = ["".join(draw.choices(common, k=draw.randint(1, 6))) for _ in range(4000)]
    tokenizer = train_tokenizer(TokenizerConfig("bpe", 300), [" ".join([*words, rare])])
    pieces = {tokenizer.piece(i) for i in range(4 + 256, 300)}
    assert len(pieces & {*common, rare}) == kept
    assert (rare in pieces) == (kept == letters)


def test_many_characters_take_at_most_half_of_the_vocabulary():
    draw = random.Random(0)
    letters = [chr(0x4E00 + i) for i in range(60)]
    words = ["".join(draw.choices(letters, k=2)) for _ in range(300)] * 20
    tokenizer = train_tokenizer(TokenizerConfig("bpe", 300), [" ".join(words)])
    pieces = {tokenizer.piece(i) for i in range(4 + 256, 300)}
    assert len(pieces & set(letters)) == (300 - 4 - 256 - 2) // 2


@pytest.mark.parametrize(("length", "told"), [(64, False), (65, True)])
def test_only_words_beyond_the_usual_length_are_announced(monkeypatch, caplog, length, told):
    monkeypatch.setattr("zerotollm.data.tokens.sentencepiece.SLOW", 5000)
    draw = random.Random(0)
    text = " ".join("".join(draw.choices("acgt", k=length)) for _ in range(100))
    train_tokenizer(TokenizerConfig("unigram", 300), [text])
    assert bool(caplog.records) == told
