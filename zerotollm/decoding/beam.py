"""Beam search with an encoder-decoder: one compiled loop over a KV cache (arXiv:1706.03762, section 6.1).

A hypothesis ends in eos. Its score is log P(target | source) / ((5 + length) / 6)^alpha, with eos counted in its length
(arXiv:1609.08144, equation 14). Each step considers the most likely extensions of a beam. Those that end, and are among
the best `beam`, are finished; the best others continue. A source is done when it has `patience` times `beam` finished
hypotheses (arXiv:2204.05424), or at its length limit, where the only extension is eos. A beam of 1 is greedy search.
A hypothesis is extended by tokens that may follow in valid UTF-8; only the length limit may end it within a character.

The source's keys and values are computed once, for its whole beam. The beam also shares one cache: its hypotheses are
queries side by side, and a mask marks the slots of each one's ancestors. Nothing is copied when hypotheses are dropped
or split.
"""

from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from zerotollm.decoding.cache_growth import cache_bytes, capacities, empty_caches, grow
from zerotollm.model.blocks import EncoderOutput
from zerotollm.model.build import Net, Params, decode
from zerotollm.model.layers import KVCache
from zerotollm.sharding.constraints import constrain

LOWEST = -1e30
"""Replaces minus infinity, so that differences are numbers."""


class Hypothesis(NamedTuple):
    """A finished target."""

    ids: np.ndarray
    """int32, without bos and eos"""
    score: float
    """log-probability, eos included, divided by the length penalty; higher is better"""


class BeamState(NamedTuple):
    """B sources with N hypotheses each."""

    slot: jax.Array
    """tokens after bos in every unfinished hypothesis"""
    tokens_BNT: jax.Array
    utf8_BN: jax.Array
    """int8: states of `zerotollm.data.tokens.utf8` after unfinished hypotheses"""
    log_p_BN: jax.Array
    """of unfinished hypotheses; LOWEST if there is none"""
    finished_BNT: jax.Array
    """finished hypotheses, each ending in eos, best first"""
    scores_BN: jax.Array
    """scores of finished hypotheses; LOWEST if there is none"""
    count_B: jax.Array
    """hypotheses finished so far, including those that better ones have replaced"""
    ancestors_BNS: jax.Array
    """True at the cache's slots whose token belongs to the unfinished hypothesis"""
    caches: tuple[KVCache, ...]
    """of a source: slot t N + n holds the n-th hypothesis of t tokens"""


def length_penalty(length: jax.Array | float, alpha: jax.Array | float) -> jax.Array | float:
    """Return ((5 + length) / 6)^alpha (arXiv:1609.08144, equation 14)."""
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
    next_state_SV: np.ndarray,
    special: tuple[int, int, int],
    patience: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Return the `beam` best hypotheses of every source: ids (B, N, T) that end in eos, T = `slots`, and scores (B, N).

    `limit_B` is the maximum length of a target, eos included, from 1 to `slots`. `special` are the ids of pad, bos and
    eos. `next_state_SV` is that of `Utf8Automaton`. Tokens that it excludes, pad, bos and padding of the vocabulary are
    never generated, but keep their probability. `patience` is at least 1, and has no effect on a beam of 1.
    """
    B, N = len(sources_BS), beam
    end = _search(
        params,
        read_sources(params, sources_BS, source_mask_BS, net=net),
        limit_B,
        np.float32(alpha),
        np.int32(1 if N == 1 else round(min(N * patience, 2.0**30))),
        next_state_SV,
        net=net,
        beam=N,
        stages=capacities(slots, cache_bytes(net.config, B * N)),
        special=special,
    )
    return end.finished_BNT, end.scores_BN


@partial(jax.jit, static_argnames="net")
def read_sources(
    params: Params, sources_BS: jax.Array, source_mask_BS: jax.Array, *, net: Net
) -> EncoderOutput:
    """Return the sources' keys and values for every layer of the decoder."""
    output = net.apply({"params": params}, sources_BS, source_mask_BS, method="precompute_kv")
    return cast(EncoderOutput, output)


@partial(jax.jit, static_argnames=("net", "beam", "stages", "special"))
def _search(
    params: Params,
    encoder: EncoderOutput,
    limit_B: jax.Array,
    alpha: jax.Array,
    max_finished: jax.Array,
    next_state_SV: jax.Array,
    *,
    net: Net,
    beam: int,
    stages: tuple[int, ...],
    special: tuple[int, int, int],
) -> BeamState:
    """Search until all sources have `max_finished` hypotheses: one loop per stage, over caches of that many tokens."""
    pad, bos, eos = special
    c, B, N = net.config, len(limit_B), beam
    V = c.vocab_size
    M = min(2 * N, V)
    ids_V = jnp.arange(V)
    padding = ((0, 0), (0, V - next_state_SV.shape[1]))
    next_state_SV = jnp.pad(next_state_SV, padding, constant_values=-1).at[:, np.array([pad, bos])].set(-1)

    def unfinished(state: BeamState) -> jax.Array:
        return jnp.any((state.count_B < max_finished) & (state.slot < limit_B))

    def extend(state: BeamState) -> BeamState:
        t = state.slot
        # The newest token of each hypothesis (first bos), preceded by those that the token shift adds to it.
        start_BNS = jnp.full((B, N, c.token_shift + 1), bos)
        recent_BNS = jax.lax.dynamic_slice_in_dim(
            jnp.concatenate([start_BNS, state.tokens_BNT], axis=2), t, c.token_shift + 1, axis=2
        )
        newest_NS = jnp.arange(state.ancestors_BNS.shape[2])[None] == t * N + jnp.arange(N)[:, None]
        ancestors_BNS = state.ancestors_BNS | newest_NS[None]
        readout, caches = decode(
            net,
            params,
            recent_BNS[..., -1],
            state.caches,
            encoder,
            positions_BT=jnp.full((1, 1), t),
            mask_BTS=ancestors_BNS,
            slot=t * N,
            before_BTN=recent_BNS[..., :-1],
        )
        logits_BNV = readout.logits()
        at_limit_B11 = (t + 1 >= limit_B)[:, None, None]
        allowed_BNV = jnp.where(at_limit_B11, ids_V == eos, next_state_SV[state.utf8_BN] >= 0)
        logits_BNM, tokens_BNM = jax.lax.top_k(jnp.where(allowed_BNV, logits_BNV, LOWEST), M)
        log_p_BNM = logits_BNM - jax.nn.logsumexp(logits_BNV, axis=-1, keepdims=True)
        log_p_BNM += state.log_p_BN[..., None]
        # At most N of the best 2 N can be ends, one per hypothesis: at least N others continue.
        best_BM, index_BM = jax.lax.top_k(log_p_BNM.reshape(B, N * M), min(2 * N, N * M))
        parent_BM = index_BM // M
        token_BM = jnp.take_along_axis(tokens_BNM.reshape(B, N * M), index_BM, axis=1)
        ends_BM = token_BM == eos

        # Ends among the best N are finished, unless the source is done.
        open_B = (state.count_B < max_finished) & (t < limit_B)
        new_BM = ends_BM & (jnp.arange(ends_BM.shape[1]) < N)[None] & (best_BM > LOWEST / 2) & open_B[:, None]
        score_BM = jnp.where(new_BM, best_BM / length_penalty(t + 1.0, alpha), LOWEST)
        extended_BMT = jnp.take_along_axis(state.tokens_BNT, parent_BM[..., None], axis=1)
        extended_BMT = jax.lax.dynamic_update_index_in_dim(extended_BMT, token_BM, t, 2)
        all_scores = jnp.concatenate([state.scores_BN, score_BM], axis=1)
        all_finished = jnp.concatenate([state.finished_BNT, extended_BMT], axis=1)
        scores_BN, best_BN = jax.lax.top_k(all_scores, N)
        finished_BNT = jnp.take_along_axis(all_finished, best_BN[..., None], axis=1)

        log_p_BN, continued_BN = jax.lax.top_k(jnp.where(ends_BM, 2 * LOWEST, best_BM), N)
        tokens_BNT = jnp.take_along_axis(extended_BMT, continued_BN[..., None], axis=1)
        token_BN = jnp.take_along_axis(token_BM, continued_BN, axis=1)
        parent_BN = jnp.take_along_axis(parent_BM, continued_BN, axis=1)
        ancestors_BNS = jnp.take_along_axis(ancestors_BNS, parent_BN[..., None], axis=1)
        count_B = state.count_B + new_BM.sum(axis=1)
        log_p_BN = jnp.maximum(log_p_BN, LOWEST)
        return BeamState(
            slot=t + 1,
            tokens_BNT=tokens_BNT,
            utf8_BN=next_state_SV[jnp.take_along_axis(state.utf8_BN, parent_BN, axis=1), token_BN],
            log_p_BN=log_p_BN,
            finished_BNT=finished_BNT,
            scores_BN=scores_BN,
            count_B=count_B,
            ancestors_BNS=ancestors_BNS,
            caches=caches,
        )

    none_BNT = jnp.full((B, N, stages[-1]), pad, jnp.int32)
    state = BeamState(
        slot=jnp.int32(0),
        tokens_BNT=none_BNT,
        utf8_BN=jnp.zeros((B, N), jnp.int8),
        log_p_BN=jnp.where(jnp.arange(N) == 0, jnp.float32(0), jnp.float32(LOWEST))[None].repeat(B, 0),
        finished_BNT=none_BNT,
        scores_BN=jnp.full((B, N), LOWEST, jnp.float32),
        count_B=jnp.zeros(B, jnp.int32),
        ancestors_BNS=jnp.zeros((B, N, 0), bool),
        caches=empty_caches(c, B, 0),
    )
    for capacity in stages:
        more = capacity * N - state.ancestors_BNS.shape[2]
        state = state._replace(
            ancestors_BNS=jnp.pad(state.ancestors_BNS, ((0, 0), (0, 0), (0, more))),
            caches=grow(state.caches, more),
        )
        state = jax.lax.while_loop(
            lambda state, capacity=capacity: unfinished(state) & (state.slot < capacity), extend, state
        )
    # Replicated, for every process to read.
    return state._replace(finished_BNT=constrain(state.finished_BNT), scores_BN=constrain(state.scores_BN))


def hypotheses(
    ids_BNT: jax.Array | np.ndarray, scores_BN: jax.Array | np.ndarray, *, eos: int
) -> list[list[Hypothesis]]:
    """Return the results of `beam_search` as lists, best first; a source may have fewer hypotheses than its beam."""
    return [
        [
            Hypothesis(ids_T[: int(np.argmax(ids_T == eos))], float(score))
            for ids_T, score in zip(ids_NT, scores_N, strict=True)
            if score > LOWEST / 2
        ]
        for ids_NT, scores_N in zip(np.asarray(ids_BNT), np.asarray(scores_BN), strict=True)
    ]
