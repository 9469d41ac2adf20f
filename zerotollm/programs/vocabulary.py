"""The tokens of a model as JSON, for programs that know no library of tokenizers."""

from zerotollm.data.tokens.sentencepiece import SPACE, AnyTokenizer, Tokenizer
from zerotollm.errors import UsageError
from zerotollm.types import Json

UNKNOWN_PENALTY = 10.0
"""SentencePiece's score of an unknown character is this much below the lowest score of a piece."""
WORDS = "\n|\u2581| *[^ \n\u2581]+| +"
"""Regular expression of the words of a text: no token spans two, and U+2581 is a word of its own."""


def vocabulary(tokenizer: AnyTokenizer) -> Json:
    """Return the JSON of a tokenizer trained here. Raises UsageError for an imported one.

    `tokens` holds the text of each id; a number stands for a byte, and null for a special token. BPE merges the
    neighbours whose union has the best of `scores`; unigram finds the segmentation with the highest sum.
    """
    if not isinstance(tokenizer, Tokenizer):
        raise UsageError(
            "this model has an imported tokenizer, which a program without libraries cannot read: leave --format out, "
            "or take --format gguf"
        )
    pieces = tokenizer._proto.pieces
    tokens: list[str | int | None] = []
    for piece in pieces:
        if piece.type == piece.BYTE:
            tokens.append(int(piece.piece[3:5], 16))  # <0xE2>
        elif piece.type == piece.CONTROL:
            tokens.append(None)
        else:
            tokens.append("\ufffd" if piece.type == piece.UNKNOWN else piece.piece.replace(SPACE, " "))
    lowest = min(piece.score for piece in pieces if piece.type == piece.NORMAL)
    return {
        "kind": tokenizer.kind,
        "byte_fallback": tokenizer.byte_fallback,
        "normalization": None if tokenizer.normalization == "identity" else tokenizer.normalization.upper(),
        "pad": tokenizer.pad_id,
        "bos": tokenizer.bos_id,
        "eos": tokenizer.eos_id,
        "unk": tokenizer.unk_id,
        "stop": list(tokenizer.stop_ids),
        "unknown_score": lowest - UNKNOWN_PENALTY,
        "tokens": tokens,
        "scores": [piece.score for piece in pieces],
    }
