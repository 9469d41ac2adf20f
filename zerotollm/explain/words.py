"""Tokens as words: how they are shown, and what kind each is."""

import unicodedata
from typing import Literal

import numpy as np

from zerotollm.data.tokenizer import Tokenizer

Kind = Literal["word", "word part", "punctuation", "digit", "white space", "byte", "special"]
KINDS: tuple[Kind, ...] = ("word", "word part", "punctuation", "digit", "white space", "byte", "special")


def shown(tokenizer: Tokenizer, token_id: int) -> str:
    """A token as a person can read it: a space is a space, a lone byte `<0xE2>`, a line end `\\n`."""
    piece = tokenizer.piece(int(token_id)) if token_id < tokenizer.vocab_size else f"<{int(token_id)}>"
    text = piece if piece.startswith("<") else piece.replace("\u2581", " ")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def kind_of(tokenizer: Tokenizer, token_id: int) -> Kind:
    """What a token is: a word or the start of one, a part inside a word, or something else."""
    meaning = tokenizer.token_bytes(token_id)
    if token_id <= tokenizer.unk_id:
        return "special"
    if tokenizer.piece(token_id).startswith("<0x"):
        return "byte"
    text = meaning.decode("utf-8", errors="replace")
    bare = text.strip()
    if not bare:
        return "white space"
    if bare.isdigit():
        return "digit"
    if any(unicodedata.category(c)[0] in "LM" for c in bare):
        return "word" if text[0] == " " else "word part"
    return "punctuation"


def kinds_of(tokenizer: Tokenizer) -> np.ndarray:
    """The index into `KINDS` of every id, (V,)."""
    return np.array([KINDS.index(kind_of(tokenizer, i)) for i in range(tokenizer.vocab_size)])


def token_counts(tokens_N: np.ndarray, vocab_size: int) -> np.ndarray:
    """How often each id occurs, (V,)."""
    return np.bincount(np.asarray(tokens_N), minlength=vocab_size)[:vocab_size]


def sentence_ends(tokenizer: Tokenizer) -> np.ndarray:
    """True for ids that end a sentence, (V,): those with a full stop, a question or exclamation mark or a line end,
    and bos, which begins a document."""
    marks = set(".?!\n。！？")
    ends = [
        bool(marks & set(tokenizer.token_bytes(i).decode("utf-8", "ignore")))
        for i in range(tokenizer.vocab_size)
    ]
    ends[tokenizer.bos_id] = True
    return np.array(ends)
