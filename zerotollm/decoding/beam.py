"""Beam search with an encoder-decoder: one compiled loop over a KV cache (arXiv:1706.03762, section 6.1).

A hypothesis ends in eos, and its score is log P(target | source) / ((5 + length) / 6)^alpha, with length its tokens,
eos included (arXiv:1609.08144, equation 14). In every step the likeliest extensions of a beam are looked at; those
that end and are among the best `beam` are finished, the best others go on. A source is done when it has `patience`
times `beam` finished hypotheses (arXiv:2204.05424), or at its own limit, where the only extension is eos. A beam of 1
is greedy search.

Keys and values of the source are computed once and shared by its whole beam. So is the cache of the beam itself: its
hypotheses are queries beside each other, and a mask says which of the slots each one descends from. Nothing is moved
where hypotheses are dropped and others are split.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zerotollm.decoding.cache_growth import cache_bytes, capacities, longer
from zerotollm.model.blocks import EncoderOutput
from zerotollm.model.build import Net, Params
from zerotollm.model.layers import KVCache
from zerotollm.sharding.constraints import constrain

LOWEST = -1e30
"""Stands for minus infinity, so that differences stay numbers."""


class Hypothesis(NamedTuple):
    """A finished target."""

    ids: np.ndarray
    """int32, without bos and eos"""
    score: float
    """log-probability, eos included, over the length penalty; higher is better"""


class BeamState(NamedTuple):
    """B sources with N hypotheses each."""

    slot: jax.Array
    """tokens that every living hypothesis has after bos"""
    tokens_BNT: jax.Array
    log_p_BN: jax.Array
    """of the living; LOWEST where there is none"""
    ended_BNT: jax.Array
    """finished hypotheses, each ending in eos, the best first"""
    scores_BN: jax.Array
    """theirs; LOWEST where there is none"""
    count_B: jax.Array
    """hypotheses finished so far, including those that better ones have replaced"""
    seen_BNS: jax.Array
    """True at the cache's slots whose token is a part of the living hypothesis"""
    caches: tuple[KVCache, ...]
    """of a source: in slot t N + n what was n-th of the living when it had t tokens"""


def length_penalty(length: jax.Array | float, alpha: jax.Array | float) -> jax.Array | float:
    """((5 + length) / 6)^alpha (arXiv:1609.08144, equation 14)."""
    return ((5.0 + length) / 6.0) ** alpha


def beam_search(
    params: Params,
    sources_BS: np.ndarray,
    source_mask_BS: np.ndarray,
    limit_B: np.ndarray,
    alpha: float,
    *,
    net: Net,
    beam: int,
    slots: int,
    num_tokens: int,
    special: tuple[int, int, int],
    patience: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """The `beam` best hypotheses of every source: ids (B, N, T) that end in eos, T = `slots`, and scores (B, N).

    `limit_B` is the most tokens of a target, eos included, from 1 to `slots`. `special` are the ids of pad, bos and
    eos; pad, bos and ids from `num_tokens` on are never chosen, though they keep their share of the probability.
    `patience` is at least 1, and beam 1 has no use for more.
    """
    pad = special[0]
    B, N, K = len(sources_BS), beam, net.config.num_kv_heads
    memory = read_sources(params, sources_BS, source_mask_BS, net=net)
    nothing_BNT = np.full((B, N, slots), pad, np.int32)
    nowhere = KVCache(
        *(np.zeros((B, K, 0, width), np.float32) for width in (net.config.key_width, net.config.head_width))
    )
    state = BeamState(
        np.int32(0),
        nothing_BNT,
        np.where(np.arange(N) == 0, np.float32(0), np.float32(LOWEST))[None].repeat(B, 0),
        nothing_BNT,
        np.full((B, N), LOWEST, np.float32),
        np.zeros(B, np.int32),
        np.zeros((B, N, 0), bool),
        (nowhere,) * net.config.num_layers,
    )
    end = _extend(
        params,
        memory,
        state,
        limit_B,
        alpha,
        np.int32(1 if N == 1 else round(min(N * patience, 2.0**30))),
        net=net,
        stages=capacities(slots, cache_bytes(net.config, B * N)),
        num_tokens=num_tokens,
        special=special,
    )
    return end.ended_BNT, end.scores_BN


@partial(jax.jit, static_argnames="net")
def read_sources(
    params: Params, sources_BS: jax.Array, source_mask_BS: jax.Array, *, net: Net
) -> EncoderOutput:
    """Keys and values of the sources for every layer of the decoder."""
    return net.apply({"params": params}, sources_BS, source_mask_BS, method="precompute_kv")


@partial(jax.jit, static_argnames=("net", "stages", "num_tokens", "special"))
def _extend(
    params: Params,
    memory: EncoderOutput,
    start: BeamState,
    limit_B: jax.Array,
    alpha: jax.Array,
    enough: jax.Array,
    *,
    net: Net,
    stages: tuple[int, ...],
    num_tokens: int,
    special: tuple[int, int, int],
) -> BeamState:
    """Goes on until all sources have `enough` finished hypotheses: a loop a stage, over caches with room for so many
    tokens."""
    pad, bos, eos = special
    B, N, _ = start.tokens_BNT.shape
    V = net.config.vocab_size
    M = min(2 * N, V)
    ids_V = jnp.arange(V)
    never_V = (ids_V == pad) | (ids_V == bos) | (ids_V >= num_tokens)

    def unfinished(state: BeamState) -> jax.Array:
        return jnp.any((state.count_B < enough) & (state.slot < limit_B))

    def extend(state: BeamState) -> BeamState:
        t = state.slot
        # The newest token of each hypothesis, of which the first is bos, behind those that the token shift adds to it.
        start_BNS = jnp.full((B, N, net.config.token_shift + 1), bos)
        recent_BNS = jax.lax.dynamic_slice_in_dim(
            jnp.concatenate([start_BNS, state.tokens_BNT], axis=2), t, net.config.token_shift + 1, axis=2
        )
        own_NS = jnp.arange(state.seen_BNS.shape[2])[None] == t * N + jnp.arange(N)[:, None]
        seen_BNS = state.seen_BNS | own_NS[None]
        readout, caches = net.apply(
            {"params": params},
            recent_BNS[..., -1],
            state.caches,
            memory,
            positions_BT=jnp.full((1, 1), t),
            mask_BTS=seen_BNS,
            slot=t * N,
            before_BTN=recent_BNS[..., :-1],
            method="decode",
        )
        logits_BNV = readout.logits()
        at_limit_B = t + 1 >= limit_B
        barred_BV = never_V[None] | (at_limit_B[:, None] & (ids_V != eos)[None])
        logits_BNM, tokens_BNM = jax.lax.top_k(jnp.where(barred_BV[:, None], LOWEST, logits_BNV), M)
        log_p_BNM = logits_BNM - jax.nn.logsumexp(logits_BNV, axis=-1, keepdims=True)
        log_p_BNM += state.log_p_BN[..., None]
        # At most N of the best 2 N can be ends, one of each hypothesis: N others are left to go on.
        best_BM, place_BM = jax.lax.top_k(log_p_BNM.reshape(B, N * M), min(2 * N, N * M))
        parent_BM = place_BM // M
        token_BM = jnp.take_along_axis(tokens_BNM.reshape(B, N * M), place_BM, axis=1)
        ends_BM = token_BM == eos

        # Ends among the best N are finished, unless the source was done before.
        open_B = (state.count_B < enough) & (t < limit_B)
        now_BM = ends_BM & (jnp.arange(ends_BM.shape[1]) < N)[None] & (best_BM > LOWEST / 2) & open_B[:, None]
        score_BM = jnp.where(now_BM, best_BM / length_penalty(t + 1.0, alpha), LOWEST)
        extended_BMT = jnp.take_along_axis(state.tokens_BNT, parent_BM[..., None], axis=1)
        extended_BMT = jax.lax.dynamic_update_index_in_dim(extended_BMT, token_BM, t, 2)
        all_scores = jnp.concatenate([state.scores_BN, score_BM], axis=1)
        all_ended = jnp.concatenate([state.ended_BNT, extended_BMT], axis=1)
        scores_BN, kept_BN = jax.lax.top_k(all_scores, N)
        ended_BNT = jnp.take_along_axis(all_ended, kept_BN[..., None], axis=1)

        log_p_BN, alive_BN = jax.lax.top_k(jnp.where(ends_BM, 2 * LOWEST, best_BM), N)
        tokens_BNT = jnp.take_along_axis(extended_BMT, alive_BN[..., None], axis=1)
        parent_BN = jnp.take_along_axis(parent_BM, alive_BN, axis=1)
        seen_BNS = jnp.take_along_axis(seen_BNS, parent_BN[..., None], axis=1)
        count_B = state.count_B + now_BM.sum(axis=1)
        log_p_BN = jnp.maximum(log_p_BN, LOWEST)
        return BeamState(t + 1, tokens_BNT, log_p_BN, ended_BNT, scores_BN, count_B, seen_BNS, caches)

    state = start
    for capacity in stages:
        more = capacity * N - state.seen_BNS.shape[2]
        state = state._replace(
            seen_BNS=jnp.pad(state.seen_BNS, ((0, 0), (0, 0), (0, more))),
            caches=longer(state.caches, more),
        )
        state = jax.lax.while_loop(
            lambda state, capacity=capacity: unfinished(state) & (state.slot < capacity), extend, state
        )
    # Whole, for every process to read.
    return state._replace(ended_BNT=constrain(state.ended_BNT), scores_BN=constrain(state.scores_BN))


def hypotheses(ids_BNT: Any, scores_BN: Any, *, eos: int) -> list[list[Hypothesis]]:
    """What `beam_search` returned, as lists; a source with fewer hypotheses than its beam has fewer."""
    found = []
    for ids_NT, scores_N in zip(np.asarray(ids_BNT), np.asarray(scores_BN), strict=True):
        rows = []
        for ids_T, score in zip(ids_NT, scores_N, strict=True):
            if score > LOWEST / 2:
                rows.append(Hypothesis(ids_T[: int(np.argmax(ids_T == eos))], float(score)))
        found.append(rows)
    return found
