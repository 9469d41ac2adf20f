"""The train step: (state, batch, seed) -> (state, metrics), a pure function compiled once.

`make_train_step` is made of two functions, gradients and update. Variants replace a part of these: `in_micro_batches`
sums gradients over parts of a batch, `skip_overflow` belongs to float16, and `with_frozen` trains some of the
parameters, or adapters.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from zerotollm.model.build import Params
from zerotollm.randomness import Seed, stream_key
from zerotollm.sharding.constraints import ROWS, constrain
from zerotollm.training.config import TrainConfig
from zerotollm.training.lora import merge_params
from zerotollm.training.loss_scale import FLOOR, LossScale, all_finite, select_if_finite, update_loss_scale
from zerotollm.training.objectives import Batch
from zerotollm.training.optimizers import at_step
from zerotollm.types import Json

Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """All that changes from step to step."""

    step: jax.Array
    """int32 scalar: steps done"""
    params: Params
    """trainable parameters, a nested dict of float32 arrays"""
    opt_state: optax.OptState
    loss_scale: LossScale | None = None
    """in float16 only"""
    frozen: Params | None = None
    """frozen parameters, if `params` are a subset or adapters: see `zerotollm.training.lora`"""

    def saved(self) -> Json:
        """Return the content of a checkpoint: all but `frozen`, which the run it was initialized from holds."""
        return {name: value for name, value in self._asdict().items() if name != "frozen"}


LossFn = Callable[[Params, Batch, jax.Array], tuple[jax.Array, jax.Array]]
"""(all parameters, batch, dropout key) -> (objective, cross-entropy), both summed over weighted tokens, in nats."""
StateLoss = Callable[[Params, TrainState, Batch, Seed, jax.Array], tuple[jax.Array, jax.Array]]
"""The same of the trainable parameters: (trainable, state, batch, seed, dropout key)."""
SumGradients = Callable[[TrainState, Batch, Seed, jax.Array, jax.Array | None], tuple[jax.Array, Params]]
"""(state, batch, seed, dropout key, factor) -> (cross-entropy, gradients of factor x objective), summed over tokens."""
MeanGradients = Callable[[TrainState, Batch, Seed], tuple[jax.Array, Params]]
"""(state, batch, seed) -> (mean cross-entropy, gradients of the mean objective)."""
Update = Callable[[TrainState, Params], tuple[TrainState, Metrics]]
"""(state, gradients) -> (next state, metrics)."""
TrainStep = Callable[[TrainState, Batch, Seed], tuple[TrainState, Metrics]]
EvalStep = Callable[[Params, Batch], dict[str, jax.Array]]


def make_train_step(gradients_of: MeanGradients, update: Update) -> TrainStep:
    """Return the train step. Metrics are float32 scalars; `loss` is the cross-entropy in nats per token."""

    def train_step(state: TrainState, batch: Batch, seed: Seed) -> tuple[TrainState, Metrics]:
        loss, gradients = gradients_of(state, batch, seed)
        state, metrics = update(state, gradients)
        return state, {"loss": loss} | metrics

    return train_step


def mean_gradients(sum_gradients: SumGradients) -> MeanGradients:
    """Return the gradients of the mean over the weighted tokens of the batch.

    In float16 the loss is scaled before the backward pass (arXiv:1710.03740).
    """

    def gradients_of(state: TrainState, batch: Batch, seed: Seed) -> tuple[jax.Array, Params]:
        divisor = weight = jnp.maximum(jnp.sum(batch["weights"]), 1.0)
        factor = None
        if state.loss_scale is not None:  # on the mean loss: its gradients hardly depend on the batch size
            divisor = state.loss_scale.scale
            factor = divisor / weight
        key = stream_key(seed, "dropout", state.step)
        nats, gradients = sum_gradients(state, batch, seed, key, factor)
        return nats / weight, jax.tree.map(lambda g: g / divisor, gradients)

    return gradients_of


def plain_update(
    optimizer: optax.GradientTransformation, learning_rate: Callable[[TrainState], jax.Array] | None
) -> Update:
    """Return the update of one optimizer step. It logs `learning_rate(state)`, if given."""

    def update(state: TrainState, gradients: Params) -> tuple[TrainState, Metrics]:
        with jax.named_scope("optimizer"):
            opt_state = at_step(state.opt_state, state.step)
            updates, opt_state = optimizer.update(gradients, opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        metrics = {"grad_norm": optax.tree.norm(gradients), "param_norm": optax.tree.norm(params)}
        if learning_rate:
            metrics["learning_rate"] = learning_rate(state)
        return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return update


# --- variants


def with_frozen(loss_fn: LossFn, train: TrainConfig) -> StateLoss:
    """Return the loss as a function of the trainable parameters, merged with the frozen ones."""

    def loss(
        trainable: Params, state: TrainState, batch: Batch, seed: Seed, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        adapter_key = stream_key(seed, "lora dropout", state.step)
        return loss_fn(merge_params(trainable, state.frozen, train, adapter_key), batch, key)

    return loss


def sum_gradients(loss: StateLoss) -> SumGradients:
    """Return the gradients of the loss with respect to the trainable parameters."""

    def gradients_of(
        state: TrainState, batch: Batch, seed: Seed, key: jax.Array, factor: jax.Array | None
    ) -> tuple[jax.Array, Params]:
        def objective(trainable: Params) -> tuple[jax.Array, jax.Array]:
            total, nats = loss(trainable, state, batch, seed, key)
            return total if factor is None else factor * total, nats

        (_, nats), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
        return nats, gradients

    return gradients_of


def in_micro_batches(sum_gradients: SumGradients, parts: int) -> SumGradients:
    """Return the same gradients, summed over equal parts of the batch by `lax.scan`, which takes less memory."""
    if parts == 1:
        return sum_gradients

    def gradients_of(
        state: TrainState, batch: Batch, seed: Seed, key: jax.Array, factor: jax.Array | None
    ) -> tuple[jax.Array, Params]:
        def accumulate(carry, part_and_key):
            part, key = part_and_key
            return jax.tree.map(jnp.add, carry, sum_gradients(state, part, seed, key, factor)), None

        def split_rows(x: jax.Array) -> jax.Array:
            x = x.reshape(parts, x.shape[0] // parts, *x.shape[1:])
            return constrain(x, None, ROWS)  # every device has rows of every part

        zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
        split = jax.tree.map(split_rows, dict(batch))
        return jax.lax.scan(accumulate, zeros, (split, jax.random.split(key, parts)))[0]

    return gradients_of


def skip_overflow(update: Update) -> Update:
    """Return an update that changes only `step` and the loss scale if a gradient is not finite.

    Metrics gain loss_scale and skipped_steps. The grad_norm of a skipped step is 0, unless the scale is at its floor.
    """

    def skipping(state: TrainState, gradients: Params) -> tuple[TrainState, Metrics]:
        assert state.loss_scale is not None
        new, metrics = update(state, gradients)
        finite = all_finite(gradients)
        params, opt_state = select_if_finite(
            finite, (new.params, new.opt_state), (state.params, state.opt_state)
        )
        hidden = ~finite & (state.loss_scale.scale > FLOOR)
        scale = update_loss_scale(state.loss_scale, finite)
        metrics |= {
            "grad_norm": jnp.where(hidden, 0.0, metrics["grad_norm"]),
            "param_norm": optax.tree.norm(params),
            "loss_scale": scale.scale,
            "skipped_steps": scale.skipped.astype(jnp.float32),
        }
        return new._replace(params=params, opt_state=opt_state, loss_scale=scale), metrics

    return skipping
