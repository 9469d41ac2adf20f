"""Plain text -> pairs for an encoder and a decoder (T5, arXiv:1910.10683, section 3.1.4): what is hidden of a window of
text, or how it goes on, is to be written. `batch = dataset[step]` as everywhere.

A batch is that of `pair_batches.py`; sources and targets have one length each, and only real text has weight. In span
corruption every hidden span is one sentinel in the source, and the target is each sentinel and what it hides. Sentinel
i is the id `first + i` after the tokenizer's own.

Bits per byte are the bits of all target tokens, sentinels and eos included, per byte of the text in the target. They
compare runs of the same objective and context, not with those of a decoder, which predicts all of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from zerotollm.data.batches.windows import Batch
from zerotollm.data.tokens.sentencepiece import Tokenizer
from zerotollm.errors import UsageError

SENTINELS = 64
"""Ids kept for them, so that models trained on windows of different length agree."""
DENSITY, SPAN = 0.15, 3
"""Share of the tokens that is hidden, and tokens in a span on average (arXiv:1910.10683, section 3.3.4)."""

Corrupt = Callable[[np.random.Generator, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(random, tokens [n], at least 2) -> (source, target), both without eos."""


@dataclass(frozen=True)
class Corruption:
    """A way to make a source and a target of a window."""

    corrupt: Corrupt
    source_length: int
    """most tokens in a source, eos included"""
    target_length: int
    """most tokens in a target, eos included"""
    mean_target: float
    """mean number of tokens in the target of a full window, eos included"""
    mean_text: float
    """those of them that are tokens of the window: neither sentinels nor eos"""


@dataclass(frozen=True)
class Denoising:
    """Batches made from batches of windows. What is hidden of a window depends on (seed, number of the window in the
    whole data) alone: neither on the batch size nor on the number of processes."""

    windows: Sequence[Batch]
    corruption: Corruption
    seed: int
    batch_size: int
    """rows of a batch over all processes"""
    first_row: int = 0
    """of this process"""

    def __len__(self) -> int:
        return len(self.windows)

    def __iter__(self) -> Iterator[Batch]:
        # Python would ask for items until there is an IndexError, and windows begin anew instead: it would never end.
        return (self[number] for number in range(len(self)))

    def __getitem__(self, step: int) -> Batch:
        tokens_BW = self.windows[int(step)]["inputs"]
        first = int(step) * self.batch_size + self.first_row
        rows = [self._row(first + row, tokens_W) for row, tokens_W in enumerate(tokens_BW)]
        lengths = self.corruption.source_length, self.corruption.target_length
        sources_BS, targets_BT = (
            _padded([row[side] for row in rows], length) for side, length in enumerate(lengths)
        )
        weights_BT = (targets_BT != Tokenizer.pad_id).astype(np.float32)
        # A row of padding still needs something to look at.
        sources_BS[:, 0] = np.where(sources_BS[:, 0] == Tokenizer.pad_id, Tokenizer.eos_id, sources_BS[:, 0])
        inputs_BT = np.roll(targets_BT, 1, axis=1)
        inputs_BT[:, 0] = Tokenizer.bos_id
        inputs_BT[weights_BT == 0] = Tokenizer.pad_id
        return {"sources": sources_BS, "inputs": inputs_BT, "targets": targets_BT, "weights": weights_BT}

    def _row(self, number: int, tokens_W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source and target of a window, each with eos; both are empty where the text has ended before it."""
        text_N = tokens_W[tokens_W != Tokenizer.pad_id]
        if len(text_N) < 2:
            return text_N[:0], text_N[:0]
        source, target = self.corruption.corrupt(np.random.default_rng([self.seed, number]), text_N)
        return np.append(source, Tokenizer.eos_id), np.append(target, Tokenizer.eos_id)


def _padded(texts: Sequence[np.ndarray], length: int) -> np.ndarray:
    padded_BT = np.full((len(texts), length), Tokenizer.pad_id, np.int32)
    for row, text in enumerate(texts):
        padded_BT[row, : len(text)] = text
    return padded_BT


def hidden(length: int) -> tuple[int, int]:
    """(tokens, spans) that are hidden of a window of `length` tokens: at least 1, and one token is left."""
    tokens = min(max(1, round(DENSITY * length)), length - 1)
    return tokens, min(max(1, round(tokens / SPAN)), length - tokens)


def span_corruption(first: int, context: int) -> Corruption:
    """Random spans, each replaced by one sentinel. Raises UsageError for windows too short or with too many spans."""
    if context < 2:
        raise UsageError(f"data.context is {context}, and span corruption needs 2 tokens: raise it")
    tokens, spans = hidden(context)
    if spans > SENTINELS:
        raise UsageError(
            f"data.context {context} has {spans} hidden spans, and there are {SENTINELS} sentinels: lower it"
        )

    def corrupt(random: np.random.Generator, tokens_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tokens, spans = hidden(len(tokens_N))
        seen = _parts(random, len(tokens_N) - tokens, spans)
        gone = _parts(random, tokens, spans)
        source, target, at = [], [], 0
        for number in range(spans):
            sentinel = np.array([first + number], np.int32)
            source += [tokens_N[at : at + seen[number]], sentinel]
            at += seen[number]
            target += [sentinel, tokens_N[at : at + gone[number]]]
            at += gone[number]
        return np.concatenate(source), np.concatenate(target)

    target = tokens + spans + 1
    return Corruption(corrupt, context - tokens + spans + 1, target, target, tokens)


def _parts(random: np.random.Generator, total: int, count: int) -> np.ndarray:
    """`total` as a sum of `count` numbers of at least 1, each such sum being as likely."""
    cuts = np.sort(random.choice(total - 1, count - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]])).astype(int)


def prefix_lm(context: int) -> Corruption:
    """The source is the window up to a random place, and the target is the rest. Raises UsageError for windows too
    short."""
    if context < 2:
        raise UsageError(f"data.context is {context}, and a prefix and its end need 2 tokens: raise it")

    def corrupt(random: np.random.Generator, tokens_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cut = int(random.integers(1, len(tokens_N)))
        return tokens_N[:cut], tokens_N[cut:]

    # The cut is uniform over 1 to context - 1.
    return Corruption(corrupt, context + 1, context + 1, context / 2 + 1, context / 2)
