"""Update rules and schedules, composed from optax. Every function is pure; state is a pytree."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from itertools import accumulate

import jax
import jax.numpy as jnp
import optax

from zerotollm.model.build import Params
from zerotollm.sharding.constraints import axes_for, concurrent_parts, constrain, num_devices
from zerotollm.training.config import OptimizerConfig
from zerotollm.training.moments import store_moments_in

# Each row (a, b, c) maps every singular value s of X to a s + b s^3 + c s^5, pushing it towards 1: the optimal sequence
# for singular values down to 1e-3 (Polar Express, arXiv:2505.16932). The paper also divides them by 1.01, 1.01^3 and
# 1.01^5, as a safety factor for the rounding of bfloat16; float32 needs none.
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)


def orthogonalize(matrix_XY: jax.Array, iterations: int) -> jax.Array:
    """Return approximately U V^T of the singular value decomposition U S V^T, by matrix products alone.

    Newton-Schulz iteration (Jordan 2024) with the coefficients of Polar Express (arXiv:2505.16932). Leading axes are
    batched, and zeros stay zeros. The more iterations, the nearer the singular values of the result are to 1. After 1
    to 5 they are at most 1.99, 1.97, 1.87, 1.56 and 1.12. If they were 0.001 of the norm, they are at least 0.008,
    0.034, 0.13, 0.44 and 0.88.
    """
    wide = matrix_XY.shape[-2] <= matrix_XY.shape[-1]
    x = matrix_XY if wide else matrix_XY.mT  # the smaller Gram matrix
    x /= 1.01 * jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7
    for a, b, c in POLAR_EXPRESS[:iterations]:
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x if wide else x.mT


Orthogonalize = Callable[[jax.Array, int], jax.Array]
"""(matrices (..., X, Y), iterations) -> approximately their nearest orthogonal matrices."""

GROUP_SIZE = 2**24
"""Elements of the kernels that are orthogonalized together: 64 MiB in float32, several times."""


def muon_directions(
    kernels: Sequence[jax.Array],
    writes_residual: Sequence[bool],
    *,
    iterations: int,
    block: int,
    orthogonalize: Orthogonalize = orthogonalize,
) -> list[jax.Array]:
    """Return the orthogonalized updates of kernels (in X, out Y), with Frobenius norm sqrt(min(X, Y) max(1, Y / X)).

    With `block`, groups of that many features of heads or hidden units are orthogonalized separately: several times
    cheaper, since Gram matrices are `block` x `block`. The features are along X if the kernel writes to the residual
    stream and along Y otherwise. A block that does not divide the axis, or 0, means the whole kernel.

    Blocks of one shape are iterated together, on a CPU in two groups (`concurrent_parts`): a program with a few
    products compiles and runs faster than one with a few per kernel. `GROUP_SIZE` limits the memory of the iterations'
    copies in large models.
    """
    blocks: list[jax.Array] = []
    for kernel_XY, writes in zip(kernels, writes_residual, strict=True):
        rows_RC = kernel_XY if writes else kernel_XY.T  # features are rows
        rows, columns = rows_RC.shape
        height = block if block and rows % block == 0 else rows
        blocks.append(rows_RC.reshape(rows // height, height, columns))
    shapes = [b.shape[1:] for b in blocks]
    totals = {shape: sum(b.size for b in blocks if b.shape[1:] == shape) for shape in shapes}
    groups: dict[tuple[tuple[int, ...], int], list[int]] = defaultdict(list)
    before: dict[tuple[int, ...], int] = defaultdict(int)
    for index, (shape, b) in enumerate(zip(shapes, blocks, strict=True)):
        size = min(GROUP_SIZE, -(-totals[shape] // concurrent_parts(2)))
        groups[shape, before[shape] // size].append(index)
        before[shape] += b.size

    updates: dict[int, jax.Array] = {}
    for members in groups.values():
        lengths = [len(blocks[index]) for index in members]
        stacked = jnp.concatenate([constrain(blocks[index]) for index in members])
        # Blocks are independent: on a mesh every device orthogonalizes an equal share, and receives all results.
        axes = axes_for(len(stacked))
        missing = -len(stacked) % num_devices(axes)
        if missing:
            stacked = jnp.pad(stacked, ((0, missing), (0, 0), (0, 0)))
        directions = constrain(orthogonalize(constrain(stacked, axes), iterations))
        if missing:
            directions = directions[:-missing]
        updates |= zip(members, jnp.split(directions, list(accumulate(lengths))[:-1]), strict=True)

    def direction(index: int) -> jax.Array:
        X, Y = kernels[index].shape
        count, height, columns = blocks[index].shape
        norm = (min(X, Y) * max(1.0, Y / X) / (count * min(height, columns))) ** 0.5
        rows_RC = updates[index].reshape(count * height, columns) * norm
        return rows_RC if writes_residual[index] else rows_RC.T

    return [direction(index) for index in range(len(kernels))]


def scale_by_muon(
    momentum: float, iterations: int, block: int, orthogonalize: Orthogonalize = orthogonalize
) -> optax.GradientTransformation:
    """Return Muon (Jordan 2024): Nesterov momentum, orthogonalized, so that all directions of a kernel move equally.

    `orthogonalize` may be another iteration with the same arguments.
    """

    def init(params: optax.Params) -> optax.OptState:
        return optax.TraceState(trace=jax.tree.map(jnp.zeros_like, params))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        assert isinstance(state, optax.TraceState)
        gradients = updates
        trace = jax.tree.map(lambda m, g: momentum * m + g, state.trace, gradients)
        nesterov = jax.tree.map(lambda m, g: momentum * m + g, trace, gradients)

        if not jax.tree.leaves(nesterov):  # no hidden matrix is trained
            return nesterov, optax.TraceState(trace=trace)
        paths, kernels = zip(*jax.tree_util.tree_leaves_with_path(nesterov), strict=True)
        writes = [path[-1].key in ("output", "down") for path in paths]
        directions = muon_directions(
            kernels, writes, iterations=iterations, block=block, orthogonalize=orthogonalize
        )
        return jax.tree.unflatten(jax.tree.structure(nesterov), directions), optax.TraceState(trace=trace)

    return optax.GradientTransformation(init, update)


def learning_rate_schedule(config: OptimizerConfig, peak: float, steps: int) -> optax.Schedule:
    """Return the learning rate of each step: linear warmup from peak / warmup_steps, then `config.schedule`."""
    warmup = max(1, config.warmup_steps)

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        ramp = jnp.minimum(1.0, (step + 1) / warmup)
        if config.schedule == "inverse_sqrt":
            return peak * jnp.minimum(ramp, jnp.sqrt(warmup / (step + 1)))
        if config.schedule == "wsd":
            decay_steps = max(1.0, config.decay_fraction * steps)
            left = jnp.clip((steps - step) / decay_steps, 0.0, 1.0)
        else:
            done = jnp.clip((step - warmup) / max(1, steps - warmup), 0.0, 1.0)
            left = 1 - done if config.schedule == "linear" else 0.5 * (1 + jnp.cos(jnp.pi * done))
        return peak * ramp * (config.final_fraction + (1 - config.final_fraction) * left)

    return schedule


def at_step(opt_state: optax.OptState, step: jax.Array) -> optax.OptState:
    """Return the optimizer state with its schedules at `step`: skipped steps count too."""

    def is_schedule(state: optax.OptState) -> bool:
        return isinstance(state, optax.ScaleByScheduleState)

    new = optax.ScaleByScheduleState(count=step)
    return jax.tree.map(lambda state: new if is_schedule(state) else state, opt_state, is_leaf=is_schedule)


def parameter_groups(params: Params, tied: bool | None = None) -> Params:
    """Return the group of each leaf: "hidden" matrices inside the blocks, "embedding" tables, or the "rest".

    A `tied` embedding is trained at the head's rate: it is initialized as small, and at the rate of embeddings its
    logits would blow up. With None, `params` must be all parameters of a model: it is tied if they contain no head.
    """
    if tied is None:
        names = {entry.key for path, _ in jax.tree_util.tree_leaves_with_path(params) for entry in path}
        tied = not names & {"head", "classifier"}
    tables = {"positions"} if tied else {"embedding", "positions"}

    def group(path: jax.tree_util.KeyPath, leaf: jax.Array) -> str:
        names = {entry.key for entry in path}
        if names & tables:
            return "embedding"
        in_blocks = not names & {"head", "classifier", "embedding", "token_shift"}
        return "hidden" if leaf.ndim == 2 and in_blocks else "rest"

    return jax.tree_util.tree_map_with_path(group, params)


def peak_rate(config: OptimizerConfig, params: Params, tied: bool | None = None) -> float:
    """Return the peak rate to log: that of hidden matrices.

    If muon trains none of these, it is that of the rest, or else of embeddings. See `parameter_groups`.
    """
    rates = {
        "hidden": config.learning_rate,
        "rest": config.adam_learning_rate,
        "embedding": config.embedding_learning_rate,
    }
    trained = set(jax.tree.leaves(parameter_groups(params, tied)))
    return next(rates[group] for group in rates if group in trained or config.kind != "muon")


def make_optimizer(
    config: OptimizerConfig,
    steps: int,
    tied: bool | None = None,
    hidden: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """Return the optimizer of `steps` steps, for all parameters of a model or some. `tied`: see `parameter_groups`.

    `hidden` replaces the rule of hidden matrices under muon: from gradients to directions, before decay and rate.

    Weight decay is decoupled (arXiv:1711.05101) and acts on matrices. Under muon it acts on hidden matrices only: the
    row of a rare token gets few gradients, and would decay to nothing at the rates that suit embeddings.
    """
    stored = partial(store_moments_in, config.moments)

    def with_decay(
        rule: optax.GradientTransformation, peak: float, decay: float
    ) -> optax.GradientTransformation:
        return optax.chain(
            rule,
            optax.add_decayed_weights(decay, mask=lambda p: jax.tree.map(lambda leaf: leaf.ndim == 2, p)),
            optax.scale_by_learning_rate(learning_rate_schedule(config, peak, steps)),
        )

    def adam() -> optax.GradientTransformation:
        return stored(optax.scale_by_adam(config.beta1, config.beta2, config.epsilon))

    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    if config.kind != "muon":
        rule = {
            "adamw": adam,
            "lion": lambda: stored(optax.scale_by_lion(config.beta1, config.beta2)),
            "adafactor": lambda: optax.chain(
                # The paper's factored second moment, for small matrices too, and its clipping of updates to root
                # mean square 1 (algorithms 4 and 5). Not its scaling by the size of the parameters, with which a
                # head initialized near zero would hardly move.
                optax.scale_by_factored_rms(min_dim_size_to_factor=2),
                optax.clip_by_block_rms(1.0),
            ),
            "sgd": lambda: stored(optax.trace(config.momentum, nesterov=True)),
        }[config.kind]()
        return optax.chain(clip, with_decay(rule, config.learning_rate, config.weight_decay))
    muon = optax.chain(
        hidden or stored(scale_by_muon(config.momentum, config.iterations, config.block)),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(learning_rate_schedule(config, config.learning_rate, steps)),
    )
    groups: dict[Hashable, optax.GradientTransformation] = {
        "hidden": muon,
        "embedding": with_decay(adam(), config.embedding_learning_rate, 0.0),
        "rest": with_decay(adam(), config.adam_learning_rate, 0.0),
    }
    return optax.chain(clip, optax.partition(groups, partial(parameter_groups, tied=tied)))
