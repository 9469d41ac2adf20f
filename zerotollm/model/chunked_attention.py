"""Attention that never stores all scores: online softmax over blocks of keys, in pure JAX, with its own gradient.

Forward and backward iterate over blocks of `chunk` queries x `chunk` keys (arXiv:2112.05682; the gradient as in
FlashAttention, arXiv:2205.14135, algorithm 4). Blocks that a causal mask hides completely are skipped, which saves
almost half of the products of plain attention.

Axes as in `zerotollm.model.transformer`; also N blocks of queries, M blocks of keys, X = H / K x chunk queries of a
block, and Y = chunk keys.
"""

from functools import partial
from typing import Literal, cast

import flax.struct
import jax
import jax.numpy as jnp

MASKED = float(jnp.finfo(jnp.float32).min)
"""Score of a masked key. Keys that are padding have minus infinity."""
Rule = tuple[bool, int, int]
"""(causal, chunk, number of keys without padding)"""


@flax.struct.dataclass
class AttentionMask:
    """Attention mask (same segment, causal), never materialized as (B, T, S).

    A query attends to the keys of its segment; if `causal`, only to those at its own position or earlier.
    """

    query_segments_BT: jax.Array | None = None
    key_segments_BS: jax.Array | None = None
    """both or neither; without them all tokens are one segment. The first axis may be 1"""
    causal: bool = flax.struct.field(pytree_node=False, default=True)
    kernel: Literal["chunked", "cudnn"] = flax.struct.field(pytree_node=False, default="chunked")
    """the implementation"""

    def attend(self, q_BHTC: jax.Array, k_BKSC: jax.Array, v_BKSC: jax.Array) -> jax.Array:
        """Return scaled dot-product attention under this mask, (B, H, T, C)."""
        if self.kernel == "chunked":
            return chunked_attention(q_BHTC, k_BKSC, v_BKSC, self)
        assert self.query_segments_BT is None, "see zerotollm.model.compute_config.resolve"
        return fused_attention(q_BHTC, k_BKSC, v_BKSC, causal=self.causal, implementation="cudnn")


def fused_attention(
    q_BHTC: jax.Array,
    k_BKSC: jax.Array,
    v_BKSC: jax.Array,
    *,
    causal: bool,
    implementation: Literal["cudnn", "xla"],
) -> jax.Array:
    """Return `jax.nn.dot_product_attention`, (B, H, T, C); "cudnn" is a fused kernel."""
    swap = partial(jnp.swapaxes, axis1=1, axis2=2)
    mixed_BTHC = jax.nn.dot_product_attention(
        swap(q_BHTC), swap(k_BKSC), swap(v_BKSC), is_causal=causal, implementation=implementation
    )
    return swap(mixed_BTHC)


def chunk_for(length: int) -> int:
    """Return the size of a block: small compared with the length, and large enough for matrix units."""
    return min(length, max(256, -(-length // 8 // 128) * 128))


def chunked_attention(
    q_BHTC: jax.Array, k_BKSC: jax.Array, v_BKSC: jax.Array, mask: AttentionMask, chunk: int = 0
) -> jax.Array:
    """Return attention over blocks of `chunk` queries and keys (0: chosen by length), exact to rounding.

    Memory is of order B H chunk^2 instead of B H T S. A query without keys gets the mean of all values, as in plain
    attention. Scores, softmax and sums are float32. The result is (B, H, T, C) in the type of `v_BKSC`.
    """
    B, H, T, C = q_BHTC.shape
    _, K, S, _ = k_BKSC.shape
    if mask.causal and T != S:
        raise ValueError(f"a causal mask needs as many queries as keys, not {T} and {S}")
    chunk = chunk or chunk_for(max(T, S))
    N, M = -(-T // chunk), -(-S // chunk)

    def blocks(x_BHTC: jax.Array, number: int) -> jax.Array:
        """(B, H, T, C) -> (number, B, K, H / K x chunk, C): blocks first, so that each is contiguous."""
        heads = x_BHTC.shape[1]
        pad = number * chunk - x_BHTC.shape[2]
        x = jnp.pad(x_BHTC, ((0, 0), (0, 0), (0, pad), (0, 0)))
        width = x.shape[-1]  # of values may differ from that of queries and keys
        x = x.reshape(B, K, heads // K, number, chunk, width).transpose(3, 0, 1, 2, 4, 5)
        return x.reshape(number, B, K, heads // K * chunk, width)

    def segment_blocks(segments: jax.Array | None, number: int) -> jax.Array | None:
        if segments is None:
            return None
        rows, length = segments.shape
        # Padding queries are cut off at the end; padding keys are masked by their position.
        x = jnp.pad(segments, ((0, 0), (0, number * chunk - length)))
        return x.reshape(rows, number, chunk).swapaxes(0, 1)

    rule: Rule = (mask.causal, chunk, S)
    output = _attend(
        blocks(q_BHTC * C**-0.5, N),
        blocks(k_BKSC, M),
        blocks(v_BKSC, M),
        segment_blocks(mask.query_segments_BT, N),
        segment_blocks(mask.key_segments_BS, M),
        rule,
    )
    out = cast(jax.Array, output).reshape(N, B, K, H // K, chunk, -1).transpose(1, 2, 3, 0, 4, 5)
    return out.reshape(B, H, N * chunk, -1)[:, :, :T]


def _pairs(N: int, M: int, causal: bool) -> tuple[jax.Array, jax.Array]:
    """Return the (query block, key block) pairs to visit, grouped by query block."""
    pairs = [(n, m) for n in range(N) for m in range(min(n + 1, M) if causal else M)]
    n, m = zip(*pairs, strict=True)
    return jnp.array(n, jnp.int32), jnp.array(m, jnp.int32)


def _take(blocks: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(blocks, index, keepdims=False)


def _put(blocks: jax.Array, block: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(blocks, block.astype(blocks.dtype), index, 0)


def _scores(
    q_BKXC: jax.Array,
    k_BKYC: jax.Array,
    queries_NBT: jax.Array | None,
    keys_MBS: jax.Array | None,
    n: jax.Array,
    m: jax.Array,
    rule: Rule,
) -> tuple[jax.Array, jax.Array | None]:
    """Return the scores of one block, (B, K, X, Y) float32, and its mask, or None if nothing is masked."""
    causal, chunk, S = rule
    s_BKXY = jnp.einsum("bkxc,bkyc->bkxy", q_BKXC, k_BKYC, preferred_element_type=jnp.float32)
    B, K, X, Y = s_BKXY.shape
    t_T, s_S = n * chunk + jnp.arange(chunk), m * chunk + jnp.arange(chunk)
    mask_BTS = None
    if causal:  # padding keys come after every real query
        mask_BTS = (s_S[None] <= t_T[:, None])[None]
    if queries_NBT is not None and keys_MBS is not None:
        same_BTS = _take(queries_NBT, n)[:, :, None] == _take(keys_MBS, m)[:, None]
        mask_BTS = same_BTS if mask_BTS is None else mask_BTS & same_BTS
    s = s_BKXY.reshape(B, K, X // chunk, chunk, Y)
    if mask_BTS is not None:
        mask_BTS = mask_BTS[:, None, None]
        s = jnp.where(mask_BTS, s, MASKED)
    if S % chunk:
        s = jnp.where((s_S < S)[None, None, None, None], s, -jnp.inf)
    return s.reshape(B, K, X, Y), mask_BTS


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(
    q_NBKXC: jax.Array,
    k_MBKYC: jax.Array,
    v_MBKYC: jax.Array,
    queries_NBT: jax.Array | None,
    keys_MBS: jax.Array | None,
    rule: Rule,
) -> jax.Array:
    return _forward(q_NBKXC, k_MBKYC, v_MBKYC, queries_NBT, keys_MBS, rule)[0]


def _forward(q_NBKXC, k_MBKYC, v_MBKYC, queries_NBT, keys_MBS, rule):
    """Return the output, and for each query its highest score and the sum of exp(score - highest)."""
    N, B, K, X, _ = q_NBKXC.shape
    C = v_MBKYC.shape[-1]

    def visit(carry, pair):
        out_NBKXC, top_NBKX, sum_NBKX, o_BKXC, top_BKX, sum_BKX = carry
        n, m = pair
        s_BKXY, _ = _scores(_take(q_NBKXC, n), _take(k_MBKYC, m), queries_NBT, keys_MBS, n, m, rule)
        start = m == 0
        before_BKX = jnp.where(start, MASKED, top_BKX)
        top_BKX = jnp.maximum(before_BKX, s_BKXY.max(-1))
        p_BKXY = jnp.exp(s_BKXY - top_BKX[..., None])
        shrink_BKX = jnp.where(start, 0.0, jnp.exp(before_BKX - top_BKX))
        sum_BKX = shrink_BKX * sum_BKX + p_BKXY.sum(-1)
        v_BKYC = _take(v_MBKYC, m)
        o_BKXC = shrink_BKX[..., None] * o_BKXC + jnp.einsum(
            "bkxy,bkyc->bkxc", p_BKXY.astype(v_BKYC.dtype), v_BKYC, preferred_element_type=jnp.float32
        )
        # Written at every visit, complete after the last: cheaper than a condition.
        out_NBKXC = _put(out_NBKXC, o_BKXC / sum_BKX[..., None], n)
        top_NBKX, sum_NBKX = _put(top_NBKX, top_BKX, n), _put(sum_NBKX, sum_BKX, n)
        return (out_NBKXC, top_NBKX, sum_NBKX, o_BKXC, top_BKX, sum_BKX), None

    zeros = partial(jnp.zeros, dtype=jnp.float32)
    start = (
        jnp.zeros((N, B, K, X, C), v_MBKYC.dtype),
        zeros((N, B, K, X)),
        zeros((N, B, K, X)),
        zeros((B, K, X, C)),
        zeros((B, K, X)),
        zeros((B, K, X)),
    )
    (out_NBKXC, top_NBKX, sum_NBKX, *_), _ = jax.lax.scan(visit, start, _pairs(N, len(k_MBKYC), rule[0]))
    return out_NBKXC, top_NBKX, sum_NBKX


def _attend_forward(q_NBKXC, k_MBKYC, v_MBKYC, queries_NBT, keys_MBS, rule):
    out_NBKXC, top_NBKX, sum_NBKX = _forward(q_NBKXC, k_MBKYC, v_MBKYC, queries_NBT, keys_MBS, rule)
    residuals = (q_NBKXC, k_MBKYC, v_MBKYC, queries_NBT, keys_MBS, out_NBKXC, top_NBKX, sum_NBKX)
    return out_NBKXC, residuals


def _attend_backward(rule, residuals, dout_NBKXC):
    q_NBKXC, k_MBKYC, v_MBKYC, queries_NBT, keys_MBS, out_NBKXC, top_NBKX, sum_NBKX = residuals
    # The gradient of softmax needs the sum over keys of weight x its gradient, which is that of out x dout.
    product_NBKXC = dout_NBKXC.astype(jnp.float32) * out_NBKXC.astype(jnp.float32)
    inner_NBKX = product_NBKXC.sum(-1)

    def visit(carry, pair):
        dq_NBKXC, dk_MBKYC, dv_MBKYC = carry
        n, m = pair
        q_BKXC, k_BKYC, v_BKYC = _take(q_NBKXC, n), _take(k_MBKYC, m), _take(v_MBKYC, m)
        dout_BKXC = _take(dout_NBKXC, n)
        s_BKXY, mask = _scores(q_BKXC, k_BKYC, queries_NBT, keys_MBS, n, m, rule)
        p_BKXY = jnp.exp(s_BKXY - _take(top_NBKX, n)[..., None]) / _take(sum_NBKX, n)[..., None]
        dp_BKXY = jnp.einsum("bkxc,bkyc->bkxy", dout_BKXC, v_BKYC, preferred_element_type=jnp.float32)
        ds_BKXY = p_BKXY * (dp_BKXY - _take(inner_NBKX, n)[..., None])
        if mask is not None:  # matters for a query without keys
            B, K, X, Y = ds_BKXY.shape
            chunk = rule[1]
            split = ds_BKXY.reshape(B, K, X // chunk, chunk, Y)
            ds_BKXY = jnp.where(mask, split, 0.0).reshape(B, K, X, Y)
        p_BKXY, ds_BKXY = p_BKXY.astype(dout_BKXC.dtype), ds_BKXY.astype(q_BKXC.dtype)
        product = partial(jnp.einsum, preferred_element_type=jnp.float32)
        dq_BKXC = _take(dq_NBKXC, n) + product("bkxy,bkyc->bkxc", ds_BKXY, k_BKYC)
        dk_BKYC = _take(dk_MBKYC, m) + product("bkxy,bkxc->bkyc", ds_BKXY, q_BKXC)
        dv_BKYC = _take(dv_MBKYC, m) + product("bkxy,bkxc->bkyc", p_BKXY, dout_BKXC)
        return (_put(dq_NBKXC, dq_BKXC, n), _put(dk_MBKYC, dk_BKYC, m), _put(dv_MBKYC, dv_BKYC, m)), None

    start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q_NBKXC, k_MBKYC, v_MBKYC))
    gradients, _ = jax.lax.scan(visit, start, _pairs(len(q_NBKXC), len(k_MBKYC), rule[0]))
    dq, dk, dv = (g.astype(x.dtype) for g, x in zip(gradients, (q_NBKXC, k_MBKYC, v_MBKYC), strict=True))
    return dq, dk, dv, None, None


_attend.defvjp(_attend_forward, _attend_backward)
