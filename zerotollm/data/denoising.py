"""Plain text -> pairs for an encoder and a decoder (T5, arXiv:1910.10683, section 3.1.4): what is hidden of a window of
text, or how it goes on, is to be written. `batch = dataset[step]` as everywhere.

A batch is that of `pair_batches.py`; sources and targets have one length each. In span corruption every hidden span is
one sentinel in the source, and the target is each sentinel and what it hides. Sentinel i is the id `first + i` after
the tokenizer's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from zerotollm.data.batches import Batch
from zerotollm.data.tokenizer import Tokenizer
from zerotollm.errors import UsageError

SENTINELS = 64
"""Ids kept for them, so that models trained on windows of different length agree."""
DENSITY, SPAN = 0.15, 3
"""Share of the tokens that is hidden, and tokens in a span on average (arXiv:1910.10683, section 3.3.4)."""

Corrupt = Callable[[np.random.Generator, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(random, tokens [W]) -> (source [S], target [T]), both without eos, of the same lengths for all windows of a length,
or shorter and padded."""


@dataclass(frozen=True)
class Denoising:
    """Batches made from batches of windows, each row with its own randomness of (seed, batch, row)."""

    windows: Sequence[Batch]
    corrupt: Corrupt
    seed: int

    def __len__(self) -> int:
        return len(self.windows)

    def __iter__(self) -> Iterator[Batch]:
        # Python would ask for items until there is an IndexError, and windows begin anew instead: it would never end.
        return (self[number] for number in range(len(self)))

    def __getitem__(self, step: int) -> Batch:
        tokens_BW = self.windows[int(step)]["inputs"]
        rows = [
            self.corrupt(np.random.default_rng([self.seed, int(step), row]), tokens_W)
            for row, tokens_W in enumerate(tokens_BW)
        ]
        sources_BS, targets_BT = (_with_eos([row[side] for row in rows]) for side in (0, 1))
        inputs_BT = np.roll(targets_BT, 1, axis=1)
        inputs_BT[:, 0] = Tokenizer.bos_id
        # Nothing is asked of the padding of a last window, nor of what follows it.
        weights_BT = (targets_BT != Tokenizer.pad_id).astype(np.float32)
        inputs_BT[weights_BT == 0] = Tokenizer.pad_id
        return {"sources": sources_BS, "inputs": inputs_BT, "targets": targets_BT, "weights": weights_BT}


def _with_eos(texts: list[np.ndarray]) -> np.ndarray:
    """Rows of one length, eos after the last token that is no padding."""
    out_BT = np.full((len(texts), len(texts[0]) + 1), Tokenizer.pad_id, np.int32)
    for row, text in enumerate(texts):
        real = np.flatnonzero(text != Tokenizer.pad_id)
        end = real[-1] + 1 if len(real) else 0
        out_BT[row, :end] = text[:end]
        out_BT[row, end] = Tokenizer.eos_id
    return out_BT


def hidden(length: int) -> tuple[int, int]:
    """(tokens, spans) that are hidden of a window of `length` tokens: at least 1, and one token is left."""
    tokens = min(max(1, round(DENSITY * length)), length - 1)
    return tokens, min(max(1, round(tokens / SPAN)), length - tokens)


def span_corruption(first: int, context: int) -> Corrupt:
    """Random spans, each replaced by one sentinel. Raises UsageError for windows too short or with too many spans."""
    if context < 2:
        raise UsageError(f"data.context is {context}, and span corruption needs 2 tokens: raise it")
    tokens, spans = hidden(context)
    if spans > SENTINELS:
        raise UsageError(
            f"data.context {context} has {spans} hidden spans, and there are {SENTINELS} sentinels: lower it"
        )

    def corrupt(random: np.random.Generator, tokens_W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen = _parts(random, len(tokens_W) - tokens, spans)
        gone = _parts(random, tokens, spans)
        source, target, at = [], [], 0
        for number in range(spans):
            sentinel = np.array([first + number], np.int32)
            source += [tokens_W[at : at + seen[number]], sentinel]
            at += seen[number]
            target += [sentinel, tokens_W[at : at + gone[number]]]
            at += gone[number]
        return np.concatenate(source), np.concatenate(target)

    return corrupt


def _parts(random: np.random.Generator, total: int, count: int) -> np.ndarray:
    """`total` as a sum of `count` numbers of at least 1, each such sum being as likely."""
    cuts = np.sort(random.choice(total - 1, count - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]])).astype(int)


def prefix_lm(context: int) -> Corrupt:
    """The source is the window up to a random place, the target the rest; both are padded to the window's length."""
    if context < 2:
        raise UsageError(f"data.context is {context}, and a prefix and its end need 2 tokens: raise it")

    def corrupt(random: np.random.Generator, tokens_W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cut = int(random.integers(1, len(tokens_W)))
        source, target = np.zeros_like(tokens_W), np.zeros_like(tokens_W)
        source[:cut], target[: len(tokens_W) - cut] = tokens_W[:cut], tokens_W[cut:]
        return source, target

    return corrupt
