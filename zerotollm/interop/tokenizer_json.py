"""Our SentencePiece tokenizer as a `tokenizer.json` of the `tokenizers` library, with the same ids for every text.

Spaces stay spaces there: SentencePiece writes a space as U+2581, and a U+2581 in a text must remain another character.
No text contains special pieces or byte pieces, such as `<s>` and `<0x41>`, as in our own encoder.

BPE: SentencePiece merges any two neighbours whose union is a piece, best score first. The `tokenizers` library merges
only listed pairs. One pair a piece is enough: the last merge when the piece is encoded alone.

Unigram: both find the highest sum of scores and, among equal sums, the one with the longest last piece. Scores are
multiples of 1/64 (see `train_tokenizer`), so float32 sums are exact. Sums above 2^18 are not.

Exception: with nfc and nfkc, the few dozen characters that Unicode normalizes since the library's tables were made.
"""

from itertools import pairwise

from zerotollm.data.tokens.sentencepiece import SCORE_STEPS, SPACE, SPECIAL_PIECES, Tokenizer
from zerotollm.errors import UsageError
from zerotollm.interop.chat_template import SPELLED_PIECE
from zerotollm.interop.config_json import Json

MARK = "\0"
"""Follows every "<" in a unigram vocabulary and in its input, so no input contains `<s>` or `<0x41>`. No piece of ours
contains NUL; a NUL in a text stays a byte."""
EDGES = r"[\s\x1c-\x1f]+"  # the characters that `str.strip` removes


def tokenizer_json(tokenizer: Tokenizer, *, sentences: bool, escapes: bool = False) -> Json:
    """Return the content of tokenizer.json. Raises UsageError where the conversion would not be exact.

    `sentences`: normalize texts as `as_sentence` does and append eos, for an encoder-decoder; otherwise prepend bos.
    `escapes`: read what `chat_template` escapes.
    """
    proto = tokenizer._proto
    normal = proto.SentencePiece.NORMAL
    pieces = [
        (piece.piece.replace(SPACE, " ") if piece.type == normal else piece.piece, piece.score, piece.type)
        for piece in proto.pieces
    ]
    unigram, fallback = tokenizer.kind == "unigram", proto.trainer_spec.byte_fallback
    normalizers: list[Json] = []
    decoders: list[Json] = []
    if sentences:
        for pattern in (rf"\A{EDGES}", rf"{EDGES}\z"):
            normalizers.append({"type": "Replace", "pattern": {"Regex": pattern}, "content": ""})
        normalizers.append({"type": "Prepend", "prepend": " "})
    if escapes:
        normalizers.append({"type": "Replace", "pattern": {"Regex": SPELLED_PIECE}, "content": "<"})
    if tokenizer.normalization != "identity":
        normalizers.append({"type": tokenizer.normalization.upper()})
    isolated = "\u2581"  # `Tokenizer.encode` makes each an unk of its own where there are no byte pieces
    if unigram:
        if any(score * SCORE_STEPS % 1 for text, score, kind in pieces if kind == normal):
            raise UsageError(
                "the scores of this unigram tokenizer, trained by an earlier version, are rounded differently in other "
                "programs: train the model again to export it"
            )
        if any("<" in text for text, _, kind in pieces if kind == normal):
            pieces = [
                (text.replace("<", "<" + MARK) if kind == normal else text, score, kind)
                for text, score, kind in pieces
            ]
            normalizers.append({"type": "Replace", "pattern": {"String": "<"}, "content": "<" + MARK})
            decoders.append({"type": "Replace", "pattern": {"String": "<" + MARK}, "content": "<"})
        elif fallback:
            isolated += "<"
        else:  # an unknown character in both, joined with unknown neighbours
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
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    name, added_id = ("eos", Tokenizer.eos_id) if sentences else ("bos", Tokenizer.bos_id)
    added = SPECIAL_PIECES[name]
    special = {"SpecialToken": {"id": added, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token_id, "content": piece, **plain, "special": True}
            for token_id, piece in enumerate(SPECIAL_PIECES.values())
        ],
        "normalizer": {"type": "Sequence", "normalizers": normalizers} if normalizers else None,
        # Words: no piece spans two, and a line end is a word (see `sentencepiece._BETWEEN_WORDS`).
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": f"\n|[{isolated}]| *[^ \n{isolated}]+| +"},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [text, special] if sentences else [special, text],
            "pair": [text, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {added: {"id": added, "ids": [added_id], "tokens": [added]}},
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def _merges(scores: dict[str, float]) -> list[list[str]]:
    """Return the merges of BPE, best first: the last merge of every piece when it is encoded alone."""
    if len(set(scores.values())) < len(scores):
        raise UsageError(
            "two pieces of this BPE tokenizer have the same score, so the order of merges is unknown: train it again"
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
