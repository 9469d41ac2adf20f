"""The embeddings of a pretrained model, for another tokenizer."""

import numpy as np

from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.model.build import Params

TABLES = {"embedding": 0, "head": 1, "head_bias": 0}
"""The parameters with an entry for each token -> the axis of tokens."""


def transfer_vocabulary(params: Params, old: AnyTokenizer, new: AnyTokenizer, rows: int) -> Params:
    """Return the parameters of a model of `old` for the tokens of `new`: embedding (rows, D) and head (D, rows).

    A token has the row of the same token, or the mean of the rows of the tokens that `old` splits it into (Fast
    Vocabulary Transfer, arXiv:2402.09977). Special tokens keep their roles. Rows beyond the tokenizer, which no text
    has, have the mean of all.
    """
    parts = [*token_parts(old, new), *[range(old.vocab_size)] * (rows - new.vocab_size)]

    def transferred(table: np.ndarray, axis: int) -> np.ndarray:
        entries_VX = np.moveaxis(table, axis, 0)
        return np.moveaxis(np.stack([entries_VX[list(ids)].mean(0) for ids in parts]), 0, axis)

    tables = {name: transferred(np.asarray(params[name]), TABLES[name]) for name in TABLES if name in params}
    return {**params, **tables}


def token_parts(old: AnyTokenizer, new: AnyTokenizer) -> list[list[int]]:
    """Return the tokens of `old` that have the bytes of each token of `new`: one, where both have it.

    What `old` cannot spell, such as a part of a character, is its `unk`, or else all of its tokens.
    """
    by_bytes = {old.token_bytes(token): token for token in range(old.vocab_size)}
    by_piece = {old.piece(token): token for token in range(old.vocab_size)}  # tells a character from its byte
    roles = [(getattr(new, name), getattr(old, name)) for name in ("unk_id", "pad_id", "eos_id", "bos_id")]
    special = {ours: theirs for ours, theirs in roles if ours is not None and theirs is not None}
    unknown = [old.unk_id] if old.unk_id is not None else list(range(old.vocab_size))

    def parts(token: int) -> list[int]:
        if token in special:
            return [special[token]]
        spelled = new.token_bytes(token)
        same = by_piece.get(new.piece(token), by_bytes.get(spelled))
        if same is not None:
            return [same]
        try:
            return old.encode(spelled.decode()).tolist() or unknown
        except UnicodeDecodeError:
            return unknown

    return [parts(token) for token in range(new.vocab_size)]
