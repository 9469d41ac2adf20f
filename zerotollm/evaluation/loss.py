"""Loss on held-out text, in bits per byte comparable across tokenizers."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import SupportsFloat, TypeVar

from zerotollm.data.feed import Feed
from zerotollm.errors import DivergedError
from zerotollm.model.build import Params
from zerotollm.sharding.rules import Placement
from zerotollm.training.metrics import OF_SOURCE
from zerotollm.training.prefetch import DeferredMetrics, prefetched
from zerotollm.training.step import EvalStep

IN_FLIGHT = 4
"""Batches given to the device before the first result is read: the device never waits, and memory stays bounded."""
B = TypeVar("B")


def evaluate_batches(
    eval_step: Callable[[Params, B], Mapping[str, SupportsFloat]],
    params: Params,
    batches: Iterable[B],
    *,
    num_bytes: int,
) -> dict[str, float | int]:
    """Return the loss over batches that predict `num_bytes` bytes of text, as `Feed.num_bytes` counts them.

    `eval_step(params, batch)` returns the summed `nats`, the summed weights `tokens`, and for labels `correct`, the
    summed weights of correct predictions. The result has `loss` (nats per token), `bpb` (bits per byte of the UTF-8
    text), `tokens`, `bytes` and, for labels, `accuracy`. Sums are exact (`math.fsum`), so results are deterministic.
    Raises DivergedError where the loss is not finite.
    """
    sums: dict[str, list[float]] = {"nats": [], "tokens": [], "correct": []}

    def read(_: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            sums[name].append(value)

    deferred = DeferredMetrics(read, IN_FLIGHT)
    for number, batch in enumerate(batches):
        deferred.add(number, eval_step(params, batch))
    deferred.drain()
    nats, tokens = math.fsum(sums["nats"]), round(math.fsum(sums["tokens"]))
    if not math.isfinite(nats):
        raise DivergedError(
            f"the loss over {tokens:,} held-out tokens is {nats}: the model has diverged, or its activations overflow. "
            "Lower optimizer.learning_rate, or change compute.precision"
        )
    bits = nats / math.log(2)
    measured = {"loss": nats / tokens, "bpb": bits / num_bytes, "tokens": tokens, "bytes": num_bytes}
    return measured | ({"accuracy": math.fsum(sums["correct"]) / tokens} if sums["correct"] else {})


def evaluate_feed(
    eval_step: EvalStep, params: Params, feed: Feed, split: str, placement: Placement
) -> dict[str, float | int]:
    """Return what `evaluate_batches` measures on a whole split. Batches are made ahead by a second thread.

    Of a mixture, that is the loss on the text of all its corpora, whatever their weights, and for each corpus the bits
    per byte, `bpb/CORPUS`. `weighted_bpb` is their mean, weighted by the shares of the training windows.
    """
    if not feed.sources:
        batches = feed.evaluation(split)
        placed = prefetched(batches, 0, len(batches), placement.place_whole)
        return evaluate_batches(eval_step, params, placed, num_bytes=feed.num_bytes[split])
    measured = [evaluate_feed(eval_step, params, source, split, placement) for source in feed.sources]
    nats = math.fsum(values["loss"] * values["tokens"] for values in measured)
    tokens, num_bytes = (sum(int(values[name]) for values in measured) for name in ("tokens", "bytes"))
    by_source = [(source, values["bpb"]) for source, values in zip(feed.sources, measured, strict=True)]
    return {
        "loss": nats / tokens,
        "bpb": nats / math.log(2) / num_bytes,
        "tokens": tokens,
        "bytes": num_bytes,
        "weighted_bpb": math.fsum(source.share * bpb for source, bpb in by_source),
        **{f"{OF_SOURCE}{source.corpus}": bpb for source, bpb in by_source},
    }
