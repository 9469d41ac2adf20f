"""How well a model predicts text that it has not seen, comparable across tokenizers."""

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from zerotollm.data.batches import evaluation_batches
from zerotollm.data.tokens import TokenizedSplit

IN_FLIGHT = 4
"""Batches given to the device before the first is read: it never waits, and memory stays bounded."""


def evaluation_rows(micro_batch_size: int) -> int:
    """Windows in an evaluation batch: four micro-batches, since no activation is kept for a backward pass."""
    return 4 * micro_batch_size


def evaluate_split(
    eval_step: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]],
    params: Any,
    split: TokenizedSplit,
    *,
    context: int,
    batch_size: int,
) -> dict[str, float | int]:
    """Loss over the whole split, each token predicted once, in windows of `context`.

    `eval_step(params, batch)` gives `nats` (summed over the batch) and `tokens` (sum of its weights). Returns
    `loss` (nats per token), `bpb` (bits per byte of the documents' UTF-8 text: total nats / ln 2 / bytes),
    `tokens` and `bytes`. Deterministic: batches come in one order, and sums are exact (`math.fsum`).
    """
    nats: list[float] = []
    tokens: list[float] = []
    waiting: deque[Mapping[str, Any]] = deque()

    def read() -> None:
        sums = waiting.popleft()
        nats.append(float(sums["nats"]))
        tokens.append(float(sums["tokens"]))

    for batch in evaluation_batches(split, context=context, batch_size=batch_size):
        waiting.append(eval_step(params, batch))
        if len(waiting) > IN_FLIGHT:
            read()
    while waiting:
        read()
    total = math.fsum(nats)
    count = round(math.fsum(tokens))
    return {
        "loss": total / count,
        "bpb": total / math.log(2) / split.num_bytes,
        "tokens": count,
        "bytes": split.num_bytes,
    }
