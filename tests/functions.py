"""Training functions of bare configurations, for tests that need no data: see `zerotollm.components`."""

from collections.abc import Callable
from functools import cache

import jax

from zerotollm.components import Training, label_step_of, training_of
from zerotollm.data.config import DataConfig
from zerotollm.data.tokens.utf8 import Utf8Automaton
from zerotollm.experiment import Experiment
from zerotollm.model import build
from zerotollm.model.build import Params, build_net
from zerotollm.model.compute_config import ComputeConfig
from zerotollm.model.config import TransformerConfig
from zerotollm.training.config import OptimizerConfig, TrainConfig
from zerotollm.training.step import EvalStep, TrainState, TrainStep

AUTO = ComputeConfig()


def training(
    model: TransformerConfig,
    optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
    train: TrainConfig = TrainConfig(),  # noqa: B008
    *,
    masked: bool = False,
    compute: ComputeConfig = AUTO,
    pad_id: int = 0,
) -> Training:
    data = DataConfig(document_mask=masked)
    return training_of(
        Experiment(data=data, model=model, optimizer=optimizer, train=train, compute=compute), pad_id
    )


def init_params(model: TransformerConfig, seed: int | jax.Array) -> Params:
    return build.init_params(build_net(model), seed)


def init_state(
    model: TransformerConfig,
    optimizer: OptimizerConfig,
    train: TrainConfig,
    seed: int | jax.Array | None = None,
    compute: ComputeConfig = AUTO,
    init_from: Params | None = None,
) -> TrainState:
    init = training(model, optimizer, train, compute=compute).init
    return init(train.seed if seed is None else seed, init_from)


def seeded_train_step(
    model: TransformerConfig, optimizer: OptimizerConfig, train: TrainConfig, **options
) -> TrainStep:
    return training(model, optimizer, train, **options).train_step


def make_train_step(
    model: TransformerConfig,
    optimizer: OptimizerConfig,
    train: TrainConfig,
    out_shardings: object = None,
    **options,
) -> Callable:
    step = seeded_train_step(model, optimizer, train, **options)
    return jax.jit(
        lambda state, batch: step(state, batch, train.seed), donate_argnums=0, out_shardings=out_shardings
    )


def make_eval_step(model: TransformerConfig, **options) -> EvalStep:
    return jax.jit(training(model, **options).eval_step)


def objective_of(model: TransformerConfig, train: TrainConfig, **options) -> Callable:
    return training(model, train=train, **options).loss


def make_label_step(model: TransformerConfig, pad_id: int = 0) -> Callable:
    return label_step_of(Experiment(model=model), pad_id)


def whole_characters(num_tokens: int) -> Utf8Automaton:
    """Return the automaton of a vocabulary whose tokens may follow each other in any order."""
    return Utf8Automaton.of([b" "] * num_tokens)


@cache
def forward(model: TransformerConfig) -> Callable[..., jax.Array]:
    """Return the jitted (params, tokens[, segments]) -> logits; with an encoder (params, sources, source mask, tokens).

    It is the same function for the same model, so that tests share what is compiled.
    """
    net = build_net(model)

    @jax.jit
    def logits(params: Params, *inputs: jax.Array | None) -> jax.Array:
        names = ("sources", "source_mask", "inputs") if model.encoder_layers else ("inputs", "segments")
        batch = {name: x for name, x in zip(names, inputs, strict=False) if x is not None}
        return net.apply({"params": params}, batch).logits()

    return logits
