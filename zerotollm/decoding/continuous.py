"""Many texts in one batch, each as far as it is: continuous batching (Orca, OSDI 2022, section 3.2).

A text has a row of the KV cache while it is written, and its token at position p lies in slot p of that row. `admit`
reads a part of a prompt into a row and draws the token after it, `step` draws the next token of every row. What a row
draws depends on its own text, settings and seed: each program has one shape, whoever else is there. A long prompt is
read in parts, between which the others are written on (chunked prefill: Sarathi-Serve, arXiv:2403.02310, section 4).
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zerotollm.decoding.sample import SamplingParams, draw
from zerotollm.model.build import Net, Params
from zerotollm.model.config import round_up
from zerotollm.model.layers import KVCache

SHORTEST, CHUNK = 32, 256
"""Parts of prompts are padded to the first of these, or twice, four times, ... as many tokens, up to the second; those
behind the first part have all as many as the second."""
SCORED = 64
"""Tokens of a prompt whose logits are in memory at once."""
ALTERNATIVES = 20
"""Likeliest tokens that are told of each draw."""


class Slots(NamedTuple):
    """R rows of S slots each."""

    last_RN: jax.Array
    """the newest token, which no cache holds yet, behind the `token_shift` tokens before it"""
    position_R: jax.Array
    """of the newest token"""
    choice: SamplingParams
    caches: tuple[KVCache, ...]


class Drawn(NamedTuple):
    """A token for each row, and how likely the model held it and others, before temperature and filters."""

    token_R: jax.Array
    log_p_R: jax.Array
    likeliest_RA: jax.Array
    """the A = ALTERNATIVES likeliest tokens, the best first; zeros, as are the log-probabilities, if nobody asks"""
    likeliest_log_p_RA: jax.Array


def empty_slots(net: Net, rows: int, context: int) -> Slots:
    """Rows without texts, for `net` and texts of at most `context` tokens."""
    return Slots(
        last_RN=jnp.zeros((rows, net.config.token_shift + 1), jnp.int32),
        position_R=jnp.zeros(rows, jnp.int32),
        choice=jax.tree.map(
            lambda x_1: jnp.repeat(x_1, rows, axis=0), SamplingParams.row(0.0, 0, 1.0, 0.0, jnp.uint32(0), 0)
        ),
        caches=_empty_caches(net, rows, round_up(context, 16)),
    )


def reaches(context: int) -> list[int]:
    """How many slots a part of a prompt may look at, each a program: a part takes the first in which it ends."""
    found, most = [], round_up(context, 16)
    while not found or found[-1] < most:
        found.append(min(most, 2 * found[-1] if found else SHORTEST))
    return found


def part_length(read: int, length: int, chunk: int) -> int:
    """Tokens of the next part of a prompt of which so many are read. The first part takes what the others, all of
    `chunk` tokens, leave: so no padding lies behind a part that ends in the last slot."""
    return (length - read - 1) % chunk + 1


@partial(jax.jit, static_argnames=("reach", "net", "num_tokens"), donate_argnames="slots")
def admit(
    params: Params,
    slots: Slots,
    row: jax.Array,
    tokens_M: jax.Array,
    targets_T: jax.Array,
    start: jax.Array,
    length: jax.Array,
    settings: tuple[Any, ...],
    alternatives: jax.Array,
    scored: jax.Array,
    *,
    reach: int,
    net: Net,
    num_tokens: int,
) -> tuple[Slots, Drawn, Drawn]:
    """Reads a part of a prompt into a row, from position `start` on; the draw after it, and its `targets_T` told.

    `tokens_M` are the `token_shift` tokens in front of the part, and its own `length`, padded on the right;
    `targets_T` are those that follow each. The part ends in the first `reach` slots, and looks at no others.
    `settings` are the arguments of `SamplingParams.row`. With `alternatives` the likeliest tokens of the draw are told,
    with `scored` those of every target. Ids from `num_tokens` on, which only round the matrix up, are never drawn.
    """
    N, T, choice = net.config.token_shift, targets_T.shape[0], SamplingParams.row(*settings)
    positions_T = start + jnp.arange(T)
    slots_S = jnp.arange(reach)

    def own(all_RKSC: jax.Array) -> jax.Array:
        sizes = (1, all_RKSC.shape[1], reach, all_RKSC.shape[3])
        return jax.lax.dynamic_slice(all_RKSC, (row, 0, 0, 0), sizes)

    readout, filled = net.apply(
        {"params": params},
        tokens_M[None, N:],
        jax.tree.map(own, slots.caches),
        positions_BT=positions_T[None],
        mask_BTS=(slots_S[None] <= positions_T[:, None])[None],
        slot=start,
        before_BN=tokens_M[None, :N],
        method="decode",
    )
    x_BTD = readout.x_BTD

    def put_part(all_RKSC: jax.Array, own_BKSC: jax.Array) -> jax.Array:
        new_BKTC = jax.lax.dynamic_slice_in_dim(own_BKSC, start, T, axis=2)
        return jax.lax.dynamic_update_slice(all_RKSC, new_BKTC, (row, 0, start, 0))

    # Keys of the padding are overwritten before anything looks at them.
    caches = jax.tree.map(put_part, slots.caches, filled)
    last_BTD = jax.lax.dynamic_slice_in_dim(x_BTD, length - 1, 1, axis=1)
    logits_BV = readout._replace(x_BTD=last_BTD).logits()[:, 0]
    drawn = _draw(logits_BV, choice, (start + length)[None], alternatives, num_tokens)

    def score(x_TD: jax.Array) -> Drawn:
        def block(part: tuple[jax.Array, jax.Array]) -> Drawn:
            logits_XV = readout._replace(x_BTD=part[0][None]).logits()[0]
            logits_XV = jnp.where((jnp.arange(logits_XV.shape[-1]) < num_tokens)[None], logits_XV, -jnp.inf)
            return _told(logits_XV, part[1], num_tokens)

        X = math.gcd(T, SCORED)
        blocks = jax.lax.map(block, (x_TD.reshape(-1, X, x_TD.shape[-1]), targets_T.reshape(-1, X)))
        return jax.tree.map(lambda y: y.reshape(T, *y.shape[2:]), blocks)

    told = jax.lax.cond(scored, score, lambda _: _nothing_told(targets_T, num_tokens), x_BTD[0])
    before_N = jax.lax.dynamic_slice_in_dim(tokens_M, length, N)
    state = Slots(jnp.append(before_N, drawn.token_R)[None], (start + length)[None], choice, ())
    put = lambda all_R, own_1: all_R.at[row].set(own_1[0])  # noqa: E731
    return jax.tree.map(put, slots._replace(caches=()), state)._replace(caches=caches), drawn, told


@partial(jax.jit, static_argnames=("net", "num_tokens"), donate_argnames="slots")
def step(
    params: Params,
    slots: Slots,
    active_R: jax.Array,
    alternatives: jax.Array,
    *,
    net: Net,
    num_tokens: int,
) -> tuple[Slots, Drawn]:
    """The next token of every row; of those that are not `active_R` it means nothing."""
    positions_R1 = slots.position_R[:, None]
    slots_S = jnp.arange(slots.caches[0].keys_BKSC.shape[2])
    readout, caches = net.apply(
        {"params": params},
        slots.last_RN[:, -1:],
        slots.caches,
        positions_BT=positions_R1,
        mask_BTS=(slots_S[None] <= positions_R1)[:, None],
        slot=slots.position_R,
        before_BN=slots.last_RN[:, :-1],
        method="decode",
    )
    # Settings of a text that is gone must cost nothing.
    choice = slots.choice._replace(temperature_B=jnp.where(active_R, slots.choice.temperature_B, 0))
    position_R = slots.position_R + active_R
    drawn = _draw(readout.logits()[:, 0], choice, position_R, alternatives, num_tokens)
    last_RN = jnp.concatenate([slots.last_RN[:, 1:], drawn.token_R[:, None]], axis=1)
    return Slots(last_RN, position_R, slots.choice, caches), drawn


def _draw(logits_RV, choice, positions_R, alternatives, num_tokens) -> Drawn:
    logits_RV = jnp.where((jnp.arange(logits_RV.shape[-1]) < num_tokens)[None], logits_RV, -jnp.inf)
    token_R = draw(logits_RV, choice, positions_R)

    def tell(logits_RV):
        return _told(logits_RV, token_R, num_tokens)

    return jax.lax.cond(alternatives, tell, lambda _: _nothing_told(token_R, num_tokens), logits_RV)


def _told(logits_RV, token_R, num_tokens) -> Drawn:
    log_p_RV = jax.nn.log_softmax(logits_RV)
    best_RA, ids_RA = jax.lax.top_k(log_p_RV, min(ALTERNATIVES, num_tokens))
    log_p_R = jnp.take_along_axis(log_p_RV, token_R[:, None], axis=1)[:, 0]
    return Drawn(token_R, log_p_R, ids_RA, best_RA)


def _nothing_told(token_R, num_tokens) -> Drawn:
    R, A = len(token_R), min(ALTERNATIVES, num_tokens)
    return Drawn(token_R, jnp.zeros(R), jnp.zeros((R, A), jnp.int32), jnp.zeros((R, A)))


def _empty_caches(net: Net, rows: int, slots: int) -> tuple[KVCache, ...]:
    lead = (rows, net.config.num_kv_heads, slots)
    return tuple(
        KVCache(jnp.zeros((*lead, net.config.key_width)), jnp.zeros((*lead, net.config.head_width)))
        for _ in range(net.config.num_layers)
    )
