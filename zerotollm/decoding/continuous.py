"""Continuous batching (Orca, OSDI 2022, section 3.2): many texts in one batch, each at its own position.

A text has a row of the KV cache while it is generated; its token at position p is in slot p. `admit` reads a part of a
prompt into a row and samples the token after it, `step` samples the next token of every row. The tokens of a row depend
only on its own text, sampling parameters and seed: each program has one shape, whatever the other rows. A long prompt
is read in parts, between which the other rows continue (chunked prefill: Sarathi-Serve, arXiv:2403.02310, section 4).
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from zerotollm.decoding.cache_growth import empty_caches
from zerotollm.decoding.sample import SamplingParams, draw, exclude_invalid
from zerotollm.model.build import Net, Params, decode
from zerotollm.model.config import round_up
from zerotollm.model.layers import KVCache

SHORTEST, CHUNK = 32, 256
"""Parts of prompts are padded to SHORTEST times a power of two, at most CHUNK. All but the first have CHUNK tokens."""
SCORED = 64
"""Prompt tokens whose logits are in memory at once."""
ALTERNATIVES = 20
"""Most likely tokens that are reported with each sampled token."""


class Slots(NamedTuple):
    """R rows of S slots each."""

    last_RN: jax.Array
    """the `token_shift` tokens before the newest one, and the newest one, which no cache holds yet"""
    position_R: jax.Array
    """of the newest token"""
    utf8_R: jax.Array
    """int8: state of `zerotollm.data.tokens.utf8` after the newest token"""
    sampling_params: SamplingParams
    caches: tuple[KVCache, ...]


class SampledTokens(NamedTuple):
    """A token per row, and log-probabilities under the model: before temperature, filters and the exclusion of tokens
    that may not follow in valid UTF-8."""

    token_R: jax.Array
    log_p_R: jax.Array
    likeliest_RA: jax.Array
    """the A = ALTERNATIVES most likely tokens, best first; these and the log-probabilities are 0 unless requested"""
    likeliest_log_p_RA: jax.Array


SamplingArguments = tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike, jax.Array, jax.Array]
"""The arguments of `SamplingParams.row`."""


def empty_slots(net: Net, rows: int, context: int) -> Slots:
    """Return rows without texts, for `net` and texts of at most `context` tokens."""
    return Slots(
        last_RN=jnp.zeros((rows, net.config.token_shift + 1), jnp.int32),
        position_R=jnp.zeros(rows, jnp.int32),
        utf8_R=jnp.zeros(rows, jnp.int8),
        sampling_params=jax.tree.map(
            lambda x_1: jnp.repeat(x_1, rows, axis=0), SamplingParams.row(0.0, 0, 1.0, 0.0, jnp.uint32(0), 0)
        ),
        caches=empty_caches(net.config, rows, round_up(context, 16)),
    )


def reaches(context: int) -> list[int]:
    """Return the numbers of slots that parts of a prompt may attend to, one program each: a part takes the smallest."""
    largest = round_up(context, 16)
    sizes = [min(largest, SHORTEST)]
    while sizes[-1] < largest:
        sizes.append(min(largest, 2 * sizes[-1]))
    return sizes


def part_length(read: int, length: int, chunk: int) -> int:
    """Return the length of the next part of a prompt of which `read` tokens are read.

    The first part is the remainder, all others have `chunk` tokens: a part that ends in the last slot has no padding.
    """
    return (length - read - 1) % chunk + 1


@partial(jax.jit, static_argnames=("reach", "net"), donate_argnames="slots")
def admit(
    params: Params,
    slots: Slots,
    next_state_SV: jax.Array,
    row: jax.Array,
    tokens_M: jax.Array,
    targets_T: jax.Array,
    start: jax.Array,
    length: jax.Array,
    utf8: jax.Array,
    sampling: SamplingArguments,
    alternatives: jax.Array,
    scored: jax.Array,
    *,
    reach: int,
    net: Net,
) -> tuple[Slots, SampledTokens, SampledTokens]:
    """Read a part of a prompt into a row, from position `start` on. Return (slots, next token, scored `targets_T`).

    `tokens_M` are the `token_shift` tokens before the part and its `length` tokens, padded on the right; `targets_T`
    are the tokens after each. The part ends in the first `reach` slots, and attends to no others. `next_state_SV` is
    that of `Utf8Automaton`; ids beyond it are padding of the vocabulary and never drawn. `utf8` is the state after the
    whole prompt. Log-probabilities are computed of the next token with `alternatives`, of the targets if `scored`.
    """
    num_tokens = next_state_SV.shape[1]
    N, T, sampling_params = net.config.token_shift, targets_T.shape[0], SamplingParams.row(*sampling)
    positions_T = start + jnp.arange(T)
    slots_S = jnp.arange(reach)

    def row_of(all_RKSC: jax.Array) -> jax.Array:
        sizes = (1, all_RKSC.shape[1], reach, all_RKSC.shape[3])
        return jax.lax.dynamic_slice(all_RKSC, (row, 0, 0, 0), sizes)

    readout, filled = decode(
        net,
        params,
        tokens_M[None, N:],
        jax.tree.map(row_of, slots.caches),
        positions_BT=positions_T[None],
        mask_BTS=(slots_S[None] <= positions_T[:, None])[None],
        slot=start,
        before_BN=tokens_M[None, :N],
    )
    x_BTD = readout.x_BTD

    def put_part(all_RKSC: jax.Array, row_BKSC: jax.Array) -> jax.Array:
        new_BKTC = jax.lax.dynamic_slice_in_dim(row_BKSC, start, T, axis=2)
        return jax.lax.dynamic_update_slice(all_RKSC, new_BKTC, (row, 0, start, 0))

    # Keys of the padding are overwritten before any query attends to them.
    caches = jax.tree.map(put_part, slots.caches, filled)
    last_BTD = jax.lax.dynamic_slice_in_dim(x_BTD, length - 1, 1, axis=1)
    logits_BV = readout._replace(x_BTD=last_BTD).logits()[:, 0]
    sampled, utf8_B = _sample(
        logits_BV, next_state_SV, utf8[None], sampling_params, (start + length)[None], alternatives
    )

    def score(x_TD: jax.Array) -> SampledTokens:
        def block(part: tuple[jax.Array, jax.Array]) -> SampledTokens:
            logits_XV = readout._replace(x_BTD=part[0][None]).logits()[0]
            logits_XV = jnp.where((jnp.arange(logits_XV.shape[-1]) < num_tokens)[None], logits_XV, -jnp.inf)
            return _with_log_p(logits_XV, part[1], num_tokens)

        X = math.gcd(T, SCORED)
        blocks = jax.lax.map(block, (x_TD.reshape(-1, X, x_TD.shape[-1]), targets_T.reshape(-1, X)))
        return jax.tree.map(lambda y: y.reshape(T, *y.shape[2:]), blocks)

    scores = jax.lax.cond(scored, score, lambda _: _without_log_p(targets_T, num_tokens), x_BTD[0])
    before_N = jax.lax.dynamic_slice_in_dim(tokens_M, length, N)
    last_BN = jnp.append(before_N, sampled.token_R)[None]
    new = Slots(last_BN, (start + length)[None], utf8_B, sampling_params, ())
    slots = jax.tree.map(lambda all_R, row_1: all_R.at[row].set(row_1[0]), slots._replace(caches=()), new)
    return slots._replace(caches=caches), sampled, scores


@partial(jax.jit, static_argnames="net", donate_argnames="slots")
def step(
    params: Params,
    slots: Slots,
    next_state_SV: jax.Array,
    active_R: jax.Array,
    alternatives: jax.Array,
    *,
    net: Net,
) -> tuple[Slots, SampledTokens]:
    """Return the slots with the next token of every row; it is meaningless in rows that are not `active_R`."""
    positions_R1 = slots.position_R[:, None]
    slots_S = jnp.arange(slots.caches[0].keys_BKSC.shape[2])
    readout, caches = decode(
        net,
        params,
        slots.last_RN[:, -1:],
        slots.caches,
        positions_BT=positions_R1,
        mask_BTS=(slots_S[None] <= positions_R1)[:, None],
        slot=slots.position_R,
        before_BN=slots.last_RN[:, :-1],
    )
    # A temperature of 0 in unused rows avoids the cost of sampling.
    temperature_R = jnp.where(active_R, slots.sampling_params.temperature_B, 0)
    sampling_params = slots.sampling_params._replace(temperature_B=temperature_R)
    position_R = slots.position_R + active_R
    sampled, utf8_R = _sample(
        readout.logits()[:, 0], next_state_SV, slots.utf8_R, sampling_params, position_R, alternatives
    )
    last_RN = jnp.concatenate([slots.last_RN[:, 1:], sampled.token_R[:, None]], axis=1)
    return Slots(last_RN, position_R, utf8_R, slots.sampling_params, caches), sampled


def _sample(
    logits_RV: jax.Array,
    next_state_SV: jax.Array,
    utf8_R: jax.Array,
    sampling_params: SamplingParams,
    positions_R: jax.Array,
    alternatives: jax.Array,
) -> tuple[SampledTokens, jax.Array]:
    """Return sampled tokens and the states after them."""
    num_tokens = next_state_SV.shape[1]
    token_R = draw(exclude_invalid(logits_RV, next_state_SV, utf8_R), sampling_params, positions_R)
    logits_RV = jnp.where((jnp.arange(logits_RV.shape[-1]) < num_tokens)[None], logits_RV, -jnp.inf)
    sampled = jax.lax.cond(
        alternatives,
        lambda logits_RV: _with_log_p(logits_RV, token_R, num_tokens),
        lambda _: _without_log_p(token_R, num_tokens),
        logits_RV,
    )
    return sampled, next_state_SV[utf8_R, token_R]


def _with_log_p(logits_RV: jax.Array, token_R: jax.Array, num_tokens: int) -> SampledTokens:
    log_p_RV = jax.nn.log_softmax(logits_RV)
    best_RA, ids_RA = jax.lax.top_k(log_p_RV, min(ALTERNATIVES, num_tokens))
    log_p_R = jnp.take_along_axis(log_p_RV, token_R[:, None], axis=1)[:, 0]
    return SampledTokens(token_R, log_p_R, ids_RA, best_RA)


def _without_log_p(token_R: jax.Array, num_tokens: int) -> SampledTokens:
    R, A = len(token_R), min(ALTERNATIVES, num_tokens)
    return SampledTokens(token_R, jnp.zeros(R), jnp.zeros((R, A), jnp.int32), jnp.zeros((R, A)))
