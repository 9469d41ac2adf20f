"""No tokenizer encodes text to a special token, and decoding returns the text."""

import json
import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from zerotollm.data.config import TokenizerConfig
from zerotollm.data.tokens.pretrained import PretrainedTokenizer, pretrained_tokenizer
from zerotollm.data.tokens.sentencepiece import Tokenizer as Own
from zerotollm.data.tokens.sentencepiece import train_tokenizer
from zerotollm.interop.tokenizer_json import tokenizer_json

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|end|>", "[CLS]"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["hello", "sea", "<", "</", "s>", "pad>", "|end|", "[", "CLS]", "unk>", "0x41>", *SPECIAL]


def lines() -> list[str]:
    """Return text with special pieces and all of their characters."""
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=20)) for _ in range(200)]


def own(kind: str, fallback: bool) -> Own:
    vocab_size = {"bpe": 70, "unigram": 37, "char": 60}[kind] + 256 * fallback
    return train_tokenizer(TokenizerConfig(kind, vocab_size, fallback), lines())


def exported(kind: str, fallback: bool) -> PretrainedTokenizer:
    ours = own(kind, fallback)
    ids = {"bos_id": ours.bos_id, "eos_id": ours.eos_id, "pad_id": ours.pad_id}
    return pretrained_tokenizer(tokenizer_json(ours, sentences=False), **ids, source="here")


def imported(made: Tokenizer, special: bool = True) -> PretrainedTokenizer:
    """Import a tokenizer with special ids as in a config.json; `special` marks the pieces as special."""
    made.add_tokens([AddedToken(piece, special=special, normalized=False) for piece in SPECIAL])
    fields = json.loads(made.to_str())
    bos, eos, pad = (made.token_to_id(piece) for piece in ("<s>", "</s>", "<pad>"))
    return pretrained_tokenizer(fields, bos_id=bos, eos_id=eos, pad_id=pad, source="here")


def byte_level(special: bool) -> PretrainedTokenizer:
    """A tokenizer like GPT-2's, with merges that produce special pieces."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(lines(), trainer)
    return imported(made, special)


def merged(ignore_merges: bool) -> PretrainedTokenizer:
    """A tokenizer like Llama 2's, with merges that produce special pieces."""
    letters = sorted({c for line in lines() for c in line.replace(" ", "\u2581")} | {"\n"})
    vocabulary, merges = [*SPECIAL[:4], *BYTES, *letters], []
    for piece in SPECIAL:
        for end in range(2, len(piece) + 1):
            if piece[:end] not in vocabulary:
                vocabulary.append(piece[:end])
            merges.append((piece[: end - 1], piece[end - 1]))
    options = {"unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True, "ignore_merges": ignore_merges}
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(vocabulary)}, merges, **options))
    made.normalizer = normalizers.Replace(" ", "\u2581")
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return imported(made)


def unigram(fallback: bool) -> PretrainedTokenizer:
    """A tokenizer like T5's, which matches every piece of the vocabulary, special ones included."""
    letters = sorted({c for line in lines() for c in line.replace(" ", "\u2581")} | {"\n"})
    scored = [(piece, 0.0) for piece in [*SPECIAL[:4], *(BYTES if fallback else [])]]
    scored += [(piece, -1.0 - i / 64) for i, piece in enumerate(["\u2581hello", "s>", "</", *letters])]
    made = Tokenizer(models.Unigram(scored, 0, fallback))
    made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return imported(made)


MAKERS = {
    **{
        f"own-{kind}-{fallback}": (own, kind, fallback)
        for kind in ("bpe", "unigram")
        for fallback in (True, False)
    },
    "own-char": (own, "char", False),
    **{f"exported-{kind}": (exported, kind, True) for kind in ("bpe", "unigram")},
    "byte-level": (byte_level, True),
    "byte-level-not-called-special": (byte_level, False),
    "merged": (merged, False),
    "merged-ignoring-merges": (merged, True),
    "unigram": (unigram, False),
    "unigram-with-bytes": (unigram, True),
}
every_tokenizer = pytest.mark.parametrize("name", MAKERS)


@cache
def made(name: str) -> Own | PretrainedTokenizer:
    maker, *options = MAKERS[name]
    return maker(*options)


def special_ids(tokenizer: Own | PretrainedTokenizer) -> set[int]:
    """Return the ids of the model's special tokens and of all pieces marked as special."""
    ids = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    if isinstance(tokenizer, Own):
        return ids | {tokenizer.unk_id}
    return ids | {token["id"] for token in tokenizer.tokenizer_json["added_tokens"] if token["special"]}


def check(tokenizer: Own | PretrainedTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert not special_ids(tokenizer) & set(ids.tolist()), text
    assert tokenizer.decode(ids) == text


@every_tokenizer
def test_text_spelled_like_a_special_token_stays_text(name):
    tokenizer = made(name)
    assert len(special_ids(tokenizer)) == (
        3 if "not-called" in name else 4 if name.startswith(("own", "exp")) else 6
    )
    for piece in SPECIAL:
        for text in (
            piece,
            f"hello{piece}",
            f"{piece}hello",
            f"hello {piece} sea",
            piece * 3,
            f"<{piece}>\n",
        ):
            check(tokenizer, text)
        assert tokenizer.decode([*tokenizer.encode("hello"), tokenizer.eos_id]) == "hello"


@every_tokenizer
@given(parts=st.lists(st.sampled_from([*WORDS, " ", "\n", "e"]), max_size=12))
@settings(max_examples=50, deadline=None)
def test_no_text_of_such_pieces_is_special(name, parts):
    check(made(name), "".join(parts))


@pytest.mark.parametrize("name", [name for name in MAKERS if not name.endswith(("False", "unigram", "char"))])
def test_text_spelled_like_a_byte_or_a_noncharacter_stays_text(name):
    """For vocabularies with all bytes. Special tokens are renamed with a character that the text does not contain."""
    tokenizer = made(name)
    for text in ("<0x41>", "hello<0x0A><0xFF> \U0010ffff<0x41>", "\U0010ffff" * 3 + "\U0010fffe"):
        check(tokenizer, text)
    for mark in ("\U0010ffff", "\U0010fffe"):
        check(tokenizer, f"{mark}{tokenizer.eos_id}{mark}</s>")


@pytest.mark.parametrize("name", ["byte-level", "merged", "unigram", "unigram-with-bytes"])
def test_other_text_has_the_ids_of_the_library(name):
    tokenizer = made(name)
    library = Tokenizer.from_str(json.dumps(tokenizer.tokenizer_json))
    draw = random.Random(1)
    words = ["hello", "sea", "a>", "[", "|", "CLS", "\u00e9", "h\u0301"]
    texts = [" ".join(draw.choices(words, k=30)) for _ in range(50)]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids.tolist() == library.encode(text, add_special_tokens=False).ids


def test_a_single_character_that_serves_as_padding_stays_text():
    """GPT-2 has "!" as id 0, and some configurations pad with 0."""
    fields = json.loads(byte_level(True).model)["tokenizer"]
    zero = next(piece for piece, i in fields["model"]["vocab"].items() if i == 0)
    tokenizer = pretrained_tokenizer(fields, bos_id=None, eos_id=0, pad_id=0, source="here")
    assert tokenizer.encode(zero).tolist() == [0]
    assert tokenizer.decode([0]) == zero
