"""Tokens as words: how they are shown, and what kind each is."""

import unicodedata
from typing import Literal

import numpy as np

from zerotollm.data.tokens.sentencepiece import AnyTokenizer

Kind = Literal["word", "word part", "punctuation", "digit", "white space", "byte", "special"]
KINDS: tuple[Kind, ...] = ("word", "word part", "punctuation", "digit", "white space", "byte", "special")


def shown(tokenizer: AnyTokenizer, token_id: int) -> str:
    """A token as a person can read it: a space is a space, a lone byte `<0xE2>`, a line end `\\n`."""
    token_id = int(token_id)
    piece = tokenizer.piece(token_id) if token_id < tokenizer.vocab_size else ""
    if _is_special(tokenizer, token_id) or piece.startswith("<"):
        text = piece or f"<{token_id}>"
    else:
        meaning = tokenizer.token_bytes(token_id)
        whole = _decoded(meaning)
        text = "".join(f"<0x{byte:02X}>" for byte in meaning) if whole is None else whole
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def kind_of(tokenizer: AnyTokenizer, token_id: int) -> Kind:
    """What a token is: a word or the start of one, a part inside a word, or something else."""
    if _is_special(tokenizer, token_id):
        return "special"
    text = _decoded(tokenizer.token_bytes(token_id))
    if text is None or tokenizer.piece(token_id).startswith("<0x"):
        return "byte"
    bare = text.strip()
    if not bare:
        return "white space"
    if bare.isdigit():
        return "digit"
    if any(unicodedata.category(c)[0] in "LM" for c in bare):
        return "word" if text[0] == " " else "word part"
    return "punctuation"


def _is_special(tokenizer: AnyTokenizer, token_id: int) -> bool:
    """Whether a token is no part of a text, or no token at all."""
    if token_id >= tokenizer.vocab_size or token_id in (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id):
        return True
    return tokenizer.piece(token_id) == "<unk>" or not tokenizer.token_bytes(token_id)


def _decoded(meaning: bytes) -> str | None:
    """Bytes as text; None where they are a part of a character."""
    try:
        return meaning.decode("utf-8")
    except UnicodeDecodeError:
        return None


def kinds_of(tokenizer: AnyTokenizer) -> np.ndarray:
    """The index into `KINDS` of every id, (V,)."""
    return np.array([KINDS.index(kind_of(tokenizer, i)) for i in range(tokenizer.vocab_size)])


def token_counts(tokens_N: np.ndarray, vocab_size: int) -> np.ndarray:
    """How often each id occurs, (V,)."""
    return np.bincount(np.asarray(tokens_N), minlength=vocab_size)[:vocab_size]


def sentence_ends(tokenizer: AnyTokenizer) -> np.ndarray:
    """True for ids that end a sentence, (V,): those with a full stop, a question or exclamation mark or a line end,
    and bos, which begins a document."""
    marks = set(".?!\n。！？")
    ends = [
        bool(marks & set(tokenizer.token_bytes(i).decode("utf-8", "ignore")))
        for i in range(tokenizer.vocab_size)
    ]
    ends[tokenizer.bos_id] = True
    return np.array(ends)
