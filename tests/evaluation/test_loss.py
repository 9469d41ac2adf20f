"""The loss of a split is the loss of its tokens, whatever the batches."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from zerotollm.data.batches.windows import evaluation_batches
from zerotollm.data.tokens.text import TokenizedSplit
from zerotollm.errors import DivergedError, UsageError
from zerotollm.evaluation.loss import IN_FLIGHT, evaluate_batches

NATS_V = np.linspace(0.5, 3.0, 32)
"""What a model without any context pays for each token."""


def eval_step(params, batch):
    nats_BT = jnp.asarray(NATS_V, jnp.float32)[batch["targets"]] * batch["weights"]
    return {"nats": nats_BT.sum(), "tokens": batch["weights"].sum()}


def split_of(num_tokens: int) -> TokenizedSplit:
    tokens_N = np.random.default_rng(0).integers(4, 32, num_tokens).astype(np.uint16)
    tokens_N[0] = 1
    return TokenizedSplit(tokens_N, np.zeros(1, np.int64), num_bytes=3 * num_tokens)


def evaluate_split(step, split, *, context, batch_size):
    batches = evaluation_batches(split, context=context, batch_size=batch_size)
    return evaluate_batches(step, {}, batches, num_bytes=split.num_bytes)


@pytest.mark.parametrize(("context", "batch_size"), [(8, 1), (8, 4), (7, 3), (64, 2)])
def test_every_token_counts_once(context, batch_size):
    split = split_of(301)
    scores = evaluate_split(eval_step, split, context=context, batch_size=batch_size)
    nats = NATS_V[split.tokens_N[1:]].sum()
    assert scores["tokens"] == 300
    assert scores["bytes"] == 903
    assert scores["loss"] == pytest.approx(nats / 300, rel=1e-6)
    assert scores["bpb"] == pytest.approx(nats / math.log(2) / 903, rel=1e-6)


def test_it_is_the_same_every_time():
    first, second = (evaluate_split(eval_step, split_of(99), context=8, batch_size=4) for _ in range(2))
    assert first == second


def test_a_split_without_text_has_no_loss():
    empty = TokenizedSplit(np.zeros(0, np.uint16), np.zeros(0, np.int64), num_bytes=0)
    with pytest.raises(UsageError):
        evaluate_split(eval_step, empty, context=8, batch_size=4)


def test_the_accuracy_of_labels_is_by_weight_and_absent_without_labels():
    batches = [{"weights": 3, "correct": 1}, {"weights": 1, "correct": 1}]

    def step(params, batch):
        return {"nats": 2.0 * batch["weights"], "tokens": batch["weights"], "correct": batch["correct"]}

    scores = evaluate_batches(step, None, batches, num_bytes=4)
    assert scores == {
        "loss": 2.0,
        "bpb": pytest.approx(2 / math.log(2)),
        "tokens": 4,
        "bytes": 4,
        "accuracy": 0.5,
    }
    assert "accuracy" not in evaluate_split(eval_step, split_of(9), context=8, batch_size=1)


def test_the_device_always_has_batches_to_do_and_never_many():
    """`IN_FLIGHT` wait while the next is made; reading the oldest is what blocks."""
    waiting, seen = set(), []

    class Sum:
        def __init__(self, number):
            self.number = number
            waiting.add(number)

        def __float__(self):
            if self.number in waiting:
                assert self.number == min(waiting), "the oldest is read first"
                seen.append(len(waiting))
                waiting.remove(self.number)
            return 1.0

    step = lambda params, number: {"nats": Sum(number), "tokens": 1.0}  # noqa: E731
    assert evaluate_batches(step, None, range(20), num_bytes=1)["tokens"] == 20
    assert seen == [IN_FLIGHT + 1] * (20 - IN_FLIGHT) + list(range(IN_FLIGHT, 0, -1))


@pytest.mark.parametrize("nats", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_an_error_and_no_result(nats):
    """JSON has no such number; nor is it to be called the best of a run."""

    def broken(params, batch):
        return {"nats": jnp.float32(nats), "tokens": batch["weights"].sum()}

    with pytest.raises(DivergedError, match=f"over 98 held-out tokens is {nats}"):
        evaluate_split(broken, split_of(99), context=8, batch_size=4)
