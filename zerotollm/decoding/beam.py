"""Beam search with an encoder-decoder: one compiled loop over a KV cache (arXiv:1706.03762, section 6.1).

A hypothesis ends in eos, and its score is log P(target | source) / ((5 + length) / 6)^alpha, with length its tokens,
eos included (arXiv:1609.08144, equation 14). In every step the likeliest extensions of a beam are looked at; those
that end and are among the best `beam` are finished, the best others go on. A source is done when it has `beam` finished
hypotheses, or at its own limit, where the only extension is eos. A beam of 1 is greedy search.

Keys and values of the source are computed once and shared by its whole beam.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zerotollm.compute.mesh import constrain
from zerotollm.model.config import TransformerConfig
from zerotollm.model.encoder_decoder import EncoderDecoder
from zerotollm.model.layers import KVCache
from zerotollm.model.transformer import Memory

LOWEST = -1e30
"""Stands for minus infinity, so that differences stay numbers."""


class Hypothesis(NamedTuple):
    """A finished target."""

    ids: np.ndarray
    """int32, without bos and eos"""
    score: float
    """log-probability, eos included, over the length penalty; higher is better"""


class BeamState(NamedTuple):
    """B sources with N hypotheses each, side by side where both are one axis X."""

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
    """hypotheses finished so far, also those that are no longer among the best"""
    caches_X: tuple[KVCache, ...]


def length_penalty(length: jax.Array | float, alpha: jax.Array | float) -> jax.Array | float:
    """((5 + length) / 6)^alpha (arXiv:1609.08144, equation 14)."""
    return ((5.0 + length) / 6.0) ** alpha


@partial(jax.jit, static_argnames=("model", "beam", "slots", "num_tokens", "special"))
def beam_search(
    params: Any,
    sources_BS: jax.Array,
    source_mask_BS: jax.Array,
    limit_B: jax.Array,
    alpha: jax.Array,
    *,
    model: TransformerConfig,
    beam: int,
    slots: int,
    num_tokens: int,
    special: tuple[int, int, int],
) -> tuple[jax.Array, jax.Array]:
    """The `beam` best hypotheses of every source: ids (B, N, T) that end in eos, T = `slots`, and scores (B, N).

    `limit_B` is the most tokens of a target, eos included, from 1 to `slots`. `special` are the ids of pad, bos and
    eos; pad, bos and ids from `num_tokens` on are never chosen, though they keep their share of the probability.
    """
    pad, bos, eos = special
    net, B, N = EncoderDecoder(model), sources_BS.shape[0], beam
    V = model.vocab_size
    ids_V = jnp.arange(V)
    never_V = (ids_V == pad) | (ids_V == bos) | (ids_V >= num_tokens)

    def decode(tokens_XT: jax.Array, memory: Memory, caches: Any, slot: jax.Array | int):
        return net.apply(
            {"params": params},
            tokens_XT,
            memory,
            positions_BT=jnp.full((1, 1), slot),
            mask_BTS=(jnp.arange(slots) <= slot)[None, None],
            caches=caches,
            slot=slot,
            method="decode",
        )

    lead = (B * N, model.num_kv_heads, slots)
    empty = KVCache(jnp.zeros((*lead, model.key_width)), jnp.zeros((*lead, model.head_width)))
    caches_X = (empty,) * model.num_layers
    encoded = net.apply({"params": params}, sources_BS, source_mask_BS, method="encode")
    first = jax.tree.map(lambda x: x[:B], caches_X)
    _, _, known = decode(jnp.full((B, 1), bos), encoded, first, 0)
    memory = Memory(source_mask_BS, None, known)

    def unfinished(state: BeamState) -> jax.Array:
        return jnp.any((state.count_B < N) & (state.slot < limit_B))

    def extend(state: BeamState) -> BeamState:
        t = state.slot
        before_BN = jax.lax.dynamic_index_in_dim(state.tokens_BNT, jnp.maximum(t - 1, 0), 2, keepdims=False)
        last_BN = jnp.where(t == 0, bos, before_BN)
        logits_XTV, caches_X, _ = decode(last_BN.reshape(B * N, 1), memory, state.caches_X, t)
        log_p_BNV = jax.nn.log_softmax(logits_XTV[:, 0]).reshape(B, N, V)
        at_limit_B = t + 1 >= limit_B
        barred_BV = never_V[None] | (at_limit_B[:, None] & (ids_V != eos)[None])
        log_p_BNV = state.log_p_BN[..., None] + jnp.where(barred_BV[:, None], LOWEST, log_p_BNV)
        # At most N of the best 2 N can be ends, one of each hypothesis: N others are left to go on.
        best_BM, place_BM = jax.lax.top_k(log_p_BNV.reshape(B, N * V), min(2 * N, N * V))
        parent_BM, token_BM = place_BM // V, place_BM % V
        ends_BM = token_BM == eos

        # Ends among the best N are finished, unless the source was done before.
        open_B = (state.count_B < N) & (t < limit_B)
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
        rows_X = (jnp.arange(B)[:, None] * N + parent_BN).reshape(-1)
        caches_X = jax.tree.map(lambda x: x[rows_X], caches_X)
        count_B = state.count_B + now_BM.sum(axis=1)
        log_p_BN = jnp.maximum(log_p_BN, LOWEST)
        return BeamState(t + 1, tokens_BNT, log_p_BN, ended_BNT, scores_BN, count_B, caches_X)

    nothing_BNT = jnp.full((B, N, slots), pad, jnp.int32)
    alone_BN = jnp.where(jnp.arange(N) == 0, 0.0, LOWEST)[None].repeat(B, 0)
    start = BeamState(
        jnp.int32(0),
        nothing_BNT,
        alone_BN,
        nothing_BNT,
        jnp.full((B, N), LOWEST),
        jnp.zeros(B, jnp.int32),
        caches_X,
    )
    end = jax.lax.while_loop(unfinished, extend, start)
    return constrain(end.ended_BNT), constrain(end.scores_BN)


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
