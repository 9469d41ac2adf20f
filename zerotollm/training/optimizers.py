"""Update rules and schedules, composed from optax. State is a pytree; every function here is pure."""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import accumulate

import jax
import jax.numpy as jnp
import optax

from zerotollm.sharding.constraints import axes_for, constrain, num_devices
from zerotollm.training.config import OptimizerConfig
from zerotollm.training.moments import moments_in

# Each row (a, b, c) maps every singular value s of X to a s + b s^3 + c s^5, pushing it towards 1: the optimal
# sequence for singular values down to 1e-3 (Polar Express, arXiv:2505.16932). The paper divides them by 1.01, 1.01^3
# and 1.01^5 besides, its safety factor against the rounding of bfloat16; float32 needs none.
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)


def orthogonalize(matrix_XY: jax.Array, iterations: int) -> jax.Array:
    """Approximately U V^T of the singular value decomposition U S V^T, by matrix products alone.

    Newton-Schulz iteration (Jordan 2024) with the coefficients of Polar Express (arXiv:2505.16932). Leading axes
    are batched. Returns an array of the same shape whose singular values lie the nearer to 1 the more iterations: at
    most 1.99, 1.97, 1.87, 1.56 and 1.12 after 1 to 5, and at least 0.008, 0.034, 0.13, 0.44 and 0.88 where they were
    0.001 of the norm. Zeros stay zeros.
    """
    wide = matrix_XY.shape[-2] <= matrix_XY.shape[-1]
    x = matrix_XY if wide else matrix_XY.mT  # the smaller Gram matrix
    x /= 1.01 * jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7
    for a, b, c in POLAR_EXPRESS[:iterations]:
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x if wide else x.mT


TOGETHER = 2**24
"""Numbers of kernels whose blocks are orthogonalized at once: 64 MiB in float32, several times."""


def muon_directions(
    kernels: Sequence[jax.Array], writes_residual: Sequence[bool], *, iterations: int, block: int
) -> list[jax.Array]:
    """The orthogonalized updates of kernels (in X, out Y), each of Frobenius norm sqrt(min(X, Y) max(1, Y / X)).

    With `block`, each group of so many heads' or hidden units' features is orthogonalized on its own: they lie
    along X where the kernel writes to the residual stream and along Y elsewhere. Newton-Schulz then works on Gram
    matrices of `block` x `block`, several times cheaper than of the whole width. A block that does not divide
    the axis, or 0, takes the whole kernel. Blocks of one shape go through the iterations together: a program
    with a handful of products, which compiles and runs faster than one with a handful for each kernel. Of large
    models only so many at once that the iterations' copies of them stay small beside the rest.
    """
    blocks, together, numbers = [], defaultdict(list), defaultdict(int)
    for index, (kernel_XY, writes) in enumerate(zip(kernels, writes_residual, strict=True)):
        rows_RC = kernel_XY if writes else kernel_XY.T  # features are rows
        rows, columns = rows_RC.shape
        height = block if block and rows % block == 0 else rows
        blocks.append(rows_RC.reshape(rows // height, height, columns))
        together[height, columns, numbers[height, columns] // TOGETHER].append(index)
        numbers[height, columns] += rows * columns

    updates = {}
    for members in together.values():
        lengths = [len(blocks[index]) for index in members]
        stacked = jnp.concatenate([constrain(blocks[index]) for index in members])
        # On a mesh every device takes as many of the blocks, none of which needs another, and gets all directions.
        axes = axes_for(len(stacked))
        missing = -len(stacked) % num_devices(axes)
        if missing:
            stacked = jnp.pad(stacked, ((0, missing), (0, 0), (0, 0)))
        directions = constrain(orthogonalize(constrain(stacked, axes), iterations))
        if missing:
            directions = directions[:-missing]
        updates |= zip(members, jnp.split(directions, list(accumulate(lengths))[:-1]), strict=True)

    def joined(index: int) -> jax.Array:
        X, Y = kernels[index].shape
        count, height, columns = blocks[index].shape
        norm = (min(X, Y) * max(1.0, Y / X) / (count * min(height, columns))) ** 0.5
        rows_RC = updates[index].reshape(count * height, columns) * norm
        return rows_RC if writes_residual[index] else rows_RC.T

    return [joined(index) for index in range(len(kernels))]


def scale_by_muon(momentum: float, iterations: int, block: int) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalized (Muon, Jordan 2024): every direction of a kernel moves at one speed."""

    def init(params):
        return optax.TraceState(trace=jax.tree.map(jnp.zeros_like, params))

    def update(gradients, state, params=None):
        del params
        trace = jax.tree.map(lambda m, g: momentum * m + g, state.trace, gradients)
        nesterov = jax.tree.map(lambda m, g: momentum * m + g, trace, gradients)

        if not jax.tree.leaves(nesterov):  # where the head alone is trained
            return nesterov, optax.TraceState(trace=trace)
        paths, kernels = zip(*jax.tree_util.tree_leaves_with_path(nesterov), strict=True)
        writes = [path[-1].key in ("output", "down") for path in paths]
        directions = muon_directions(kernels, writes, iterations=iterations, block=block)
        return jax.tree.unflatten(jax.tree.structure(nesterov), directions), optax.TraceState(trace=trace)

    return optax.GradientTransformation(init, update)


def learning_rate_schedule(config: OptimizerConfig, peak: float, steps: int) -> optax.Schedule:
    """Learning rate at each step: linear warmup, then what `config.schedule` says.

    The rate of step 0 is peak / warmup_steps, not 0: no step is wasted.
    """
    warmup = max(1, config.warmup_steps)

    def schedule(step):
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
    """The state of an optimizer of `make_optimizer` with its schedules at `step`, however many steps were skipped."""

    def is_schedule(part) -> bool:
        return isinstance(part, optax.ScaleByScheduleState)

    return jax.tree.map(
        lambda part: optax.ScaleByScheduleState(count=step) if is_schedule(part) else part,
        opt_state,
        is_leaf=is_schedule,
    )


def parameter_groups(params, tied: bool | None = None) -> dict:
    """Which rate trains each leaf: "hidden" matrices inside the blocks, "embedding" tables, or the "rest".

    A table that is also the head, `tied`, is trained at the head's rate: it starts as small, and at the rate of
    embeddings its logits would blow up. None: where all of a model's parameters are there, and no head among them.
    """
    if tied is None:
        every = {entry.key for path, _ in jax.tree_util.tree_leaves_with_path(params) for entry in path}
        tied = not every & {"head", "classifier"}
    tables = {"positions"} if tied else {"embedding", "positions"}

    def group(path, leaf) -> str:
        names = {entry.key for entry in path}
        if names & tables:
            return "embedding"
        in_blocks = not names & {"head", "classifier", "embedding", "token_shift"}
        return "hidden" if leaf.ndim == 2 and in_blocks else "rest"

    return jax.tree_util.tree_map_with_path(group, params)


def peak_rate(config: OptimizerConfig, params, tied: bool | None = None) -> float:
    """The peak rate that a step is said to have: that of hidden matrices or, under muon where none of these is trained,
    of the rest, or else of embeddings. Arguments as of `parameter_groups`."""
    rates = {
        "hidden": config.learning_rate,
        "rest": config.adam_learning_rate,
        "embedding": config.embedding_learning_rate,
    }
    trained = set(jax.tree.leaves(parameter_groups(params, tied)))
    return next(rates[group] for group in rates if group in trained or config.kind != "muon")


def make_optimizer(
    config: OptimizerConfig, steps: int, tied: bool | None = None
) -> optax.GradientTransformation:
    """The optimizer for a parameter tree of `zerotollm.model`, or a part of one, over `steps` steps. `tied`: see
    `parameter_groups`.

    Weight decay is decoupled (arXiv:1711.05101). It acts on matrices; under muon on the hidden ones only, since
    a rare token's row, which gets few gradients, would decay to nothing at the rates that suit embeddings.
    """

    kept = partial(moments_in, config.moments)

    def with_decay(rule: optax.GradientTransformation, peak: float, decay: float):
        return optax.chain(
            rule,
            optax.add_decayed_weights(decay, mask=lambda p: jax.tree.map(lambda leaf: leaf.ndim == 2, p)),
            optax.scale_by_learning_rate(learning_rate_schedule(config, peak, steps)),
        )

    def adamw(peak: float, decay: float) -> optax.GradientTransformation:
        return with_decay(kept(optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)), peak, decay)

    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    if config.kind != "muon":
        rule = {
            "adamw": lambda: kept(optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)),
            "lion": lambda: kept(optax.scale_by_lion(config.beta1, config.beta2)),
            "adafactor": lambda: optax.chain(
                # The paper's second moment as rows x columns, for small matrices too, and its clipping of updates
                # to root mean square 1 (algorithms 4 and 5); not its scaling by the size of the parameters, at
                # which a head that starts near zero would hardly move.
                optax.scale_by_factored_rms(min_dim_size_to_factor=2),
                optax.clip_by_block_rms(1.0),
            ),
            "sgd": lambda: kept(optax.trace(config.momentum, nesterov=True)),
        }[config.kind]()
        return optax.chain(clip, with_decay(rule, config.learning_rate, config.weight_decay))
    muon = optax.chain(
        kept(scale_by_muon(config.momentum, config.iterations, config.block)),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(learning_rate_schedule(config, config.learning_rate, steps)),
    )
    groups = {
        "hidden": muon,
        "embedding": adamw(config.embedding_learning_rate, 0.0),
        "rest": adamw(config.adam_learning_rate, 0.0),
    }
    return optax.chain(clip, optax.partition(groups, partial(parameter_groups, tied=tied)))
