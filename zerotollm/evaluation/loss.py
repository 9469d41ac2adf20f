"""How well a model predicts text that it has not seen, comparable across tokenizers."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from zerotollm.data.batches.windows import evaluation_batches
from zerotollm.data.feed import evaluation_rows
from zerotollm.data.tokens.text import TokenizedSplit
from zerotollm.errors import DivergedError

__all__ = ["IN_FLIGHT", "evaluate_batches", "evaluate_split", "evaluation_rows"]

IN_FLIGHT = 4
"""Batches given to the device before the first is read: it never waits, and memory stays bounded."""


def evaluate_split(
    eval_step: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]],
    params: Any,
    split: TokenizedSplit,
    *,
    context: int,
    batch_size: int,
) -> dict[str, float | int]:
    """Loss over the whole split, each token predicted once, in windows of `context`; see `evaluate_batches`."""
    batches = evaluation_batches(split, context=context, batch_size=batch_size)
    return evaluate_batches(eval_step, params, batches, num_bytes=split.num_bytes)


def evaluate_batches(
    eval_step: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]],
    params: Any,
    batches: Iterable[Mapping[str, Any]],
    *,
    num_bytes: int,
) -> dict[str, float | int]:
    """Loss over batches that predict `num_bytes` bytes of text, as `Feed.num_bytes` counts them.

    `eval_step(params, batch)` gives `nats` (summed over the batch) and `tokens` (sum of its weights), and of labels
    `correct` (summed weights of those found). Returns `loss` (nats per token), `bpb` (bits per byte of the UTF-8 text:
    total nats / ln 2 / bytes), `tokens` and `bytes`, and of labels `accuracy`. Deterministic: batches come in one
    order, and sums are exact (`math.fsum`). Raises DivergedError where the loss is not finite.
    """
    nats: list[float] = []
    tokens: list[float] = []
    correct: list[float] = []
    waiting: deque[Mapping[str, Any]] = deque()

    def read() -> None:
        sums = waiting.popleft()
        nats.append(float(sums["nats"]))
        tokens.append(float(sums["tokens"]))
        if "correct" in sums:
            correct.append(float(sums["correct"]))

    for batch in batches:
        waiting.append(eval_step(params, batch))
        if len(waiting) > IN_FLIGHT:
            read()
    while waiting:
        read()
    total = math.fsum(nats)
    count = round(math.fsum(tokens))
    if not math.isfinite(total):
        raise DivergedError(
            f"the loss over {count:,} held-out tokens is {total}, no finite number: the model has diverged, or its "
            "activations overflow. Train with a lower optimizer.learning_rate, or take another compute.precision"
        )
    return {
        "loss": total / count,
        "bpb": total / math.log(2) / num_bytes,
        "tokens": count,
        "bytes": num_bytes,
    } | ({"accuracy": math.fsum(correct) / count} if correct else {})
