"""Pairs made from windows of text, for an encoder and a decoder (T5, arXiv:1910.10683, section 3.1.4).

The decoder writes the hidden spans of a window (span corruption) or its continuation (prefix LM). Batches have the
arrays of `batches.rows`; all sources have one length, and so have all targets. In span corruption each hidden span
becomes one sentinel in the source. The target is each sentinel followed by the tokens it hides. Sentinel i is the id
`first + i`, after the tokenizer's own ids.

Bits per byte are the bits of all target tokens, sentinels and eos included, per byte of text in the target. They
compare runs of the same objective and context, not with a decoder, which predicts all of the text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from zerotollm.data.batches.windows import Batch
from zerotollm.data.lazy_sequence import LazySequence
from zerotollm.data.tokens.sentencepiece import Tokenizer
from zerotollm.errors import UsageError

SENTINELS = 64  # fixed, so that the vocabulary does not depend on the context
DENSITY, SPAN = 0.15, 3  # share of hidden tokens, mean span (arXiv:1910.10683, section 3.3.4)

Corrupt = Callable[[np.random.Generator, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(random, tokens [n], at least 2) -> (source, target), both without eos."""


@dataclass(frozen=True)
class Corruption:
    """A way to make a source and a target from a window."""

    corrupt: Corrupt
    source_length: int  # most tokens in a source, eos included
    target_length: int  # most tokens in a target, eos included
    mean_target: float  # mean tokens in the target of a full window, eos included
    mean_text: float  # mean tokens of the window in its target: neither sentinels nor eos


def denoising_batches(
    windows: Sequence[Batch], corruption: Corruption, seed: int, batch_size: int, first_row: int = 0
) -> Sequence[Batch]:
    """Return pairs made from batches of windows, each by (seed, number of the window) alone.

    `batch_size` counts the rows of all processes, `first_row` is the first of this process.
    """

    def make(step: int) -> Batch:
        sources, targets = [], []
        for row, tokens_T in enumerate(windows[step]["inputs"], step * batch_size + first_row):
            text_N = tokens_T[tokens_T != Tokenizer.pad_id]
            source, target = text_N[:0], text_N[:0]
            if len(text_N) > 1:
                source, target = corruption.corrupt(np.random.default_rng([seed, row]), text_N)
                source, target = np.append(source, Tokenizer.eos_id), np.append(target, Tokenizer.eos_id)
            sources.append(source)
            targets.append(target)
        sources_BS = _padded(sources, corruption.source_length)
        targets_BT = _padded(targets, corruption.target_length)
        weights_BT = (targets_BT != Tokenizer.pad_id).astype(np.float32)
        # Attention needs at least one token, also in a row of padding.
        sources_BS[:, 0] = np.where(sources_BS[:, 0] == Tokenizer.pad_id, Tokenizer.eos_id, sources_BS[:, 0])
        inputs_BT = np.roll(targets_BT, 1, axis=1)
        inputs_BT[:, 0] = Tokenizer.bos_id
        inputs_BT[weights_BT == 0] = Tokenizer.pad_id
        return {"sources": sources_BS, "inputs": inputs_BT, "targets": targets_BT, "weights": weights_BT}

    return LazySequence(len(windows), make)


def _padded(texts: Sequence[np.ndarray], length: int) -> np.ndarray:
    padded_BT = np.full((len(texts), length), Tokenizer.pad_id, np.int32)
    for row, text in enumerate(texts):
        padded_BT[row, : len(text)] = text
    return padded_BT


def num_hidden(length: int) -> tuple[int, int]:
    """Return the (tokens, spans) hidden in a window of `length` tokens: at least 1, and at most length - 1 tokens."""
    tokens = min(max(1, round(DENSITY * length)), length - 1)
    return tokens, min(max(1, round(tokens / SPAN)), length - tokens)


def span_corruption(first: int, context: int) -> Corruption:
    """Replace each random span by one sentinel; `first` is the id of sentinel 0. May raise UsageError."""
    if context < 2:
        raise UsageError(f"data.context is {context}, and span corruption needs at least 2 tokens: raise it")
    tokens, spans = num_hidden(context)
    if spans > SENTINELS:
        raise UsageError(
            f"data.context {context} has {spans} hidden spans, and there are {SENTINELS} sentinels: lower it"
        )

    def corrupt(random: np.random.Generator, tokens_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tokens, spans = num_hidden(len(tokens_N))
        visible = _random_lengths(random, len(tokens_N) - tokens, spans)
        hidden = _random_lengths(random, tokens, spans)
        ends = np.cumsum(np.stack([visible, hidden], axis=-1))[:-1]  # of visible and hidden runs in turn
        runs = np.split(tokens_N, ends)
        sentinels = [np.array([first + number], np.int32) for number in range(spans)]
        source = [array for pair in zip(runs[::2], sentinels, strict=True) for array in pair]
        target = [array for pair in zip(sentinels, runs[1::2], strict=True) for array in pair]
        return np.concatenate(source), np.concatenate(target)

    target = tokens + spans + 1
    return Corruption(corrupt, context - tokens + spans + 1, target, target, tokens)


def _random_lengths(random: np.random.Generator, total: int, count: int) -> np.ndarray:
    """Return `count` numbers of at least 1 with sum `total`, each such sum being equally likely."""
    cuts = np.sort(random.choice(total - 1, count - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]])).astype(int)


def prefix_lm(context: int) -> Corruption:
    """Split each window at a random place into source and target. Raises UsageError if windows are too short."""
    if context < 2:
        raise UsageError(f"data.context is {context}, and a prefix LM needs at least 2 tokens: raise it")

    def corrupt(random: np.random.Generator, tokens_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cut = int(random.integers(1, len(tokens_N)))
        return tokens_N[:cut], tokens_N[cut:]

    # The cut is uniform over 1 to context - 1.
    return Corruption(corrupt, context + 1, context + 1, context / 2 + 1, context / 2)
