"""The tokens of a model as JSON, for programs that know no library of tokenizers."""

from zerotollm.data.tokens.pretrained import PretrainedTokenizer
from zerotollm.data.tokens.sentencepiece import SPACE, SPECIAL_PIECES, AnyTokenizer
from zerotollm.programs.imported_vocabulary import imported_vocabulary
from zerotollm.types import Json

UNKNOWN_PENALTY = 10.0
"""SentencePiece's score of an unknown character is this much below the lowest score of a piece."""


def vocabulary(tokenizer: AnyTokenizer) -> Json:
    """Return the JSON of a tokenizer. Raises UsageError for an imported one with parts that it does not express.

    `tokens` holds the text of each id; a list has bytes, and null stands for a special token. BPE merges the
    neighbours whose union has the best of `scores`; unigram finds the segmentation with the highest sum. See
    `imported_vocabulary` for an imported tokenizer.
    """
    if isinstance(tokenizer, PretrainedTokenizer):
        return imported_vocabulary(tokenizer)
    pieces = tokenizer._proto.pieces
    tokens: list[str | list[int] | None] = []
    for piece in pieces:
        if piece.type == piece.BYTE:
            tokens.append([int(piece.piece[3:5], 16)])  # <0xE2>
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
        "names": {str(i): piece for i, piece in enumerate(SPECIAL_PIECES.values())},
        "unknown_score": lowest - UNKNOWN_PENALTY,
        "bytes": [tokens.index([byte]) for byte in range(256)] if tokenizer.byte_fallback else [],
        "tokens": tokens,
        "scores": [piece.score for piece in pieces],
    }
