"""Readable tokens, and the kind of each token."""

import unicodedata
from typing import Literal, get_args

import numpy as np

from zerotollm.data.tokens.sentencepiece import AnyTokenizer

Kind = Literal["word", "word part", "punctuation", "digit", "white space", "byte", "special"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def readable_token(tokenizer: AnyTokenizer, token_id: int) -> str:
    """Return a token as readable text: a space is a space, a lone byte `<0xE2>`, a line end `\\n`."""
    token_id = int(token_id)
    piece = tokenizer.piece(token_id) if token_id < tokenizer.vocab_size else ""
    if _is_special(tokenizer, token_id) or piece.startswith("<"):
        text = piece or f"<{token_id}>"
    else:
        token_bytes = tokenizer.token_bytes(token_id)
        text = _decode(token_bytes)
        if text is None:
            text = "".join(f"<0x{byte:02X}>" for byte in token_bytes)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def exact_text(tokenizer: AnyTokenizer, ids_N: np.ndarray) -> str:
    """Return the text of tokens with the space that the first may begin with; special tokens have none."""
    known = (tokenizer.token_bytes(int(i)) for i in ids_N if i < tokenizer.vocab_size)
    return b"".join(known).decode("utf-8", "replace")


def token_kind(tokenizer: AnyTokenizer, token_id: int) -> Kind:
    """Return the kind of a token: "word" begins with a space and has letters, "word part" has only letters."""
    if _is_special(tokenizer, token_id):
        return "special"
    text = _decode(tokenizer.token_bytes(token_id))
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
    if token_id >= tokenizer.vocab_size or token_id in (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id):
        return True
    return tokenizer.piece(token_id) == "<unk>" or not tokenizer.token_bytes(token_id)


def _decode(token_bytes: bytes) -> str | None:
    """Return None for a part of a character."""
    try:
        return token_bytes.decode("utf-8")
    except UnicodeDecodeError:
        return None


def token_kinds(tokenizer: AnyTokenizer) -> np.ndarray:
    """Return the index into `KINDS` of every id, (V,)."""
    return np.array([KINDS.index(token_kind(tokenizer, i)) for i in range(tokenizer.vocab_size)])


def token_counts(tokens_N: np.ndarray, vocab_size: int) -> np.ndarray:
    """Return the number of times that each id occurs, (V,)."""
    return np.bincount(np.asarray(tokens_N), minlength=vocab_size)[:vocab_size]


def sentence_ends(tokenizer: AnyTokenizer) -> np.ndarray:
    """Return True for ids that end a sentence, (V,): with . ? ! or a line end, and bos, which starts a document."""
    marks = set(".?!\n。！？")
    ends = [
        bool(marks & set(tokenizer.token_bytes(i).decode("utf-8", "ignore")))
        for i in range(tokenizer.vocab_size)
    ]
    ends[tokenizer.bos_id] = True
    return np.array(ends)
