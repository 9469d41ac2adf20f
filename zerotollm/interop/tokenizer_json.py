"""Our SentencePiece tokenizer as a `tokenizer.json` of the `tokenizers` library, with the same ids for every text.

Spaces stay spaces there, so that U+2581 in a text, which SentencePiece cannot tell from one, is a character like any
other. Special pieces and pieces of bytes, such as `<s>` and `<0x41>`, are met in no text, as with us.

BPE: SentencePiece merges any two neighbours whose union is a piece, the best first, the `tokenizers` library only pairs
on a list. One pair for each piece is enough, the last merge when the piece is encoded alone: until a piece stands in a
longer text no merge has crossed its borders, and those within come in the order in which they come there.

Unigram: both find the best sum of scores and, among equal sums, the one with the longest last piece. Scores are
multiples of 1/64 (see `train_tokenizer`), so that sums are exact in SentencePiece's float32 too, and equal sums equal;
above 2^18, that is in words of thousands of characters, they no longer are.

With nfc and nfkc the few dozen characters are excepted that Unicode normalizes since the library's tables were made.
"""

from itertools import pairwise
from typing import Any

from zerotollm.data.tokens.sentencepiece import SCORE_STEPS, SPACE, SPECIAL_PIECES, Tokenizer
from zerotollm.errors import UsageError

MARK = "\0"
"""Follows every "<" in a unigram vocabulary and in what it reads: so no text holds `<s>` or `<0x41>`. NUL is in no
piece of ours; one in a text is a byte as before."""
EDGES = r"[\s\x1c-\x1f]+"
"""What `str.strip` removes."""


def tokenizer_json(tokenizer: Tokenizer, *, sentences: bool) -> dict[str, Any]:
    """The content of tokenizer.json.

    With `sentences`, for an encoder-decoder, a text is what `sources.pairs.as_sentence` makes of it, with eos behind;
    else bos stands before it. Raises UsageError where the conversion would not be exact.
    """
    proto = tokenizer._proto
    normal = proto.SentencePiece.NORMAL
    pieces = [
        (piece.piece.replace(SPACE, " ") if piece.type == normal else piece.piece, piece.score, piece.type)
        for piece in proto.pieces
    ]
    unigram, fallback = tokenizer.kind == "unigram", proto.trainer_spec.byte_fallback
    normalizers: list[dict[str, Any]] = []
    decoders: list[dict[str, Any]] = []
    if sentences:
        for pattern in (rf"\A{EDGES}", rf"{EDGES}\z"):
            normalizers.append({"type": "Replace", "pattern": {"Regex": pattern}, "content": ""})
        normalizers.append({"type": "Prepend", "prepend": " "})
    if tokenizer.normalization != "identity":
        normalizers.append({"type": tokenizer.normalization.upper()})
    apart = "\u2581"  # as in `Tokenizer.encode`, which gives it an unk of its own where there are no bytes
    if unigram:
        if any(score * SCORE_STEPS % 1 for text, score, kind in pieces if kind == normal):
            raise UsageError(
                "this unigram tokenizer was trained by an earlier version, whose scores other programs add up "
                "differently: train anew to export"
            )
        if any("<" in text for text, _, kind in pieces if kind == normal):
            pieces = [
                (text.replace("<", "<" + MARK) if kind == normal else text, score, kind)
                for text, score, kind in pieces
            ]
            normalizers.append({"type": "Replace", "pattern": {"String": "<"}, "content": "<" + MARK})
            decoders.append({"type": "Replace", "pattern": {"String": "<" + MARK}, "content": "<"})
        elif fallback:
            apart += "<"
        else:  # unknown either way, and in one run with unknown neighbours
            normalizers.append({"type": "Replace", "pattern": {"String": "<"}, "content": MARK})
        model = {
            "type": "Unigram",
            "unk_id": Tokenizer.unk_id,
            "vocab": [[text, score] for text, score, _ in pieces],
            "byte_fallback": fallback,
        }
    else:
        scores = {text: score for text, score, kind in pieces if kind == normal}
        model = {
            "type": "BPE",
            "dropout": None,
            "unk_token": SPECIAL_PIECES["unk"],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": fallback,
            "ignore_merges": False,
            "vocab": {text: token_id for token_id, (text, _, _) in enumerate(pieces)},
            "merges": [] if tokenizer.kind == "char" else _merges(scores),
        }
    if fallback:
        decoders.append({"type": "ByteFallback"})
    decoders.append({"type": "Fuse"})
    if sentences:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    outside = "eos" if sentences else "bos"
    special = {"SpecialToken": {"id": SPECIAL_PIECES[outside], "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token_id,
                "content": piece,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token_id, piece in enumerate(SPECIAL_PIECES.values())
        ],
        "normalizer": {"type": "Sequence", "normalizers": normalizers} if normalizers else None,
        # Words: no piece spans two (see `sentencepiece._BETWEEN_WORDS`), and a line end is one.
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": f"\n|[{apart}]| *[^ \n{apart}]+| +"},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [text, special] if sentences else [special, text],
            "pair": [text, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {
                SPECIAL_PIECES[outside]: {
                    "id": SPECIAL_PIECES[outside],
                    "ids": [Tokenizer.eos_id if sentences else Tokenizer.bos_id],
                    "tokens": [SPECIAL_PIECES[outside]],
                }
            },
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def _merges(scores: dict[str, float]) -> list[list[str]]:
    """The pairs of BPE, best first: of each piece the two that it is made of when it is encoded alone."""
    if len(set(scores.values())) < len(scores):
        raise UsageError(
            "two pieces of this BPE tokenizer have one score, and nobody knows which comes first"
        )
    pairs = {}
    for piece in scores:
        symbols, last = list(piece), []
        while len(symbols) > 1:
            places = [
                (-scores[left + right], place)
                for place, (left, right) in enumerate(pairwise(symbols))
                if left + right in scores
            ]
            if not places:
                break
            _, place = min(places)
            last = symbols[place : place + 2]
            symbols[place : place + 2] = ["".join(last)]
        if len(symbols) == 1 and last:
            pairs[piece] = last
    return [pairs[piece] for piece in sorted(pairs, key=lambda piece: -scores[piece])]
