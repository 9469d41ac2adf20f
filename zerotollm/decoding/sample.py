"""Drawing tokens from a model: prefill once, then one compiled loop over a KV cache.

Prompts of different lengths are padded on the left, so that all rows of a batch write the same cache slot.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zerotollm.decoding.cache_growth import cache_bytes, capacities, longer
from zerotollm.decoding.config import SamplingConfig
from zerotollm.model.accelerator import FEW_ROWS
from zerotollm.model.build import Net, Params
from zerotollm.model.config import round_up
from zerotollm.model.layers import KVCache, fuse_projections
from zerotollm.randomness import stream_key
from zerotollm.sharding.constraints import constrain

PROMPT_MULTIPLE = 16
"""Prompts are padded to a multiple of this, so that few lengths are ever compiled."""
SLOT_MULTIPLE = 1024
"""Cache slots are a multiple of this, or as many as the context has."""

COLD = 1e-5
"""A lower temperature is 0: it divides no difference between float32 logits that is more than their rounding, and
logits over it are infinite."""


class SamplingParams(NamedTuple):
    """`SamplingConfig` as arrays, a number for each row: a new temperature or seed needs no new program."""

    temperature_B: jax.Array
    top_k_B: jax.Array
    top_p_B: jax.Array
    min_p_B: jax.Array
    key_B: jax.Array
    """of (seed, row)"""

    @classmethod
    def of(cls, sampling: SamplingConfig, rows: int = 1) -> "SamplingParams":
        """The same for all rows, but for their randomness."""
        numbers = cls.row(
            sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, sampling.seed, 0
        )
        key_B = jax.vmap(partial(sample_key, sampling.seed))(jnp.arange(rows))
        return jax.tree.map(lambda x_1: jnp.repeat(x_1, rows), numbers)._replace(key_B=key_B)

    @classmethod
    def row(
        cls, temperature: Any, top_k: Any, top_p: Any, min_p: Any, seed: Any, row: Any
    ) -> "SamplingParams":
        """Of one row, the one that is number `row` among those with its seed. All may be traced."""
        return cls(
            jnp.float32(temperature)[None],
            jnp.int32(top_k)[None],
            jnp.float32(top_p)[None],
            jnp.float32(min_p)[None],
            sample_key(seed, row)[None],
        )


def sample_key(seed: int | jax.Array, row: int | jax.Array) -> jax.Array:
    """What the randomness of a row begins with; `draw` adds the position."""
    return jax.random.fold_in(stream_key(seed, "sample"), row)


class DecodeState(NamedTuple):
    """A batch of texts in the making. S is the number of cache slots."""

    tokens_BS: jax.Array
    """prompts, padded on the left, and what was drawn so far"""
    padding_B: jax.Array
    """slots in front of each prompt"""
    dropped_B: jax.Array
    """tokens of each text that lie before its prompt, and are no longer read"""
    slot: jax.Array
    """the next slot to be filled, the same for all rows"""
    logits_BV: jax.Array
    """for the token in `slot`"""
    done_B: jax.Array
    """True where the stop token was drawn: such rows are filled with it"""
    caches: tuple[KVCache, ...]


def filter_logits(logits_BV: jax.Array, choice: SamplingParams) -> jax.Array:
    """Minus infinity at the tokens that top-k, top-p or min-p exclude. The likeliest token always stays.

    Top-k (arXiv:1805.04833) keeps the k likeliest, top-p (arXiv:1904.09751) the smallest set whose probability reaches
    p, min-p (arXiv:2407.01082) those at least min_p times as likely as the likeliest. Among equals at the border of
    top-k and top-p those with the least ids are kept.
    """
    vocab_size = logits_BV.shape[-1]
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    probabilities_BV = jax.nn.softmax(sorted_BV, axis=-1)
    k_B = jnp.where(choice.top_k_B > 0, jnp.minimum(choice.top_k_B, vocab_size), vocab_size)
    before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV  # mass of all likelier tokens
    kept_BV = (jnp.arange(vocab_size)[None] < k_B[:, None]) & (before_BV < choice.top_p_B[:, None])
    kept_BV &= probabilities_BV >= choice.min_p_B[:, None] * probabilities_BV[:, :1]
    kept_BV = kept_BV.at[:, 0].set(True)
    threshold_B1 = jnp.min(jnp.where(kept_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    equal_BV = logits_BV == threshold_B1
    room_B1 = jnp.sum(kept_BV & (sorted_BV == threshold_B1), axis=-1, keepdims=True)
    kept_BV = (logits_BV > threshold_B1) | (equal_BV & (jnp.cumsum(equal_BV, axis=-1) <= room_B1))
    return jnp.where(kept_BV, logits_BV, -jnp.inf)


def draw(logits_BV: jax.Array, choice: SamplingParams, positions_B: jax.Array) -> jax.Array:
    """One token a row, (B,) int32. A temperature below `COLD` takes the likeliest.

    The randomness of a row depends on (seed, row, position), not on padding or on the other rows. Positions are those
    in the whole text, also where only its end is still read: no position of a text is drawn with the same noise twice.
    """
    random_B = choice.temperature_B >= COLD

    def sampled(logits_BV):
        scaled_BV = logits_BV / jnp.where(random_B, choice.temperature_B, 1)[:, None]
        filtered_B = (choice.top_k_B > 0) | (choice.top_p_B < 1) | (choice.min_p_B > 0)

        def filtered(scaled_BV):
            # A row without filters keeps every token, also those that rounding puts beyond a probability of 1.
            return jnp.where(filtered_B[:, None], filter_logits(scaled_BV, choice), scaled_BV)

        scaled_BV = jax.lax.cond(jnp.any(filtered_B), filtered, lambda x: x, scaled_BV)
        keys_B = jax.vmap(jax.random.fold_in)(choice.key_B, positions_B)
        noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, scaled_BV.shape[1:]))(keys_B)
        # As `jax.random.categorical`; the barrier keeps XLA from one slow loop for noise and maximum, on a CPU.
        drawn_B = jnp.argmax(scaled_BV + jax.lax.optimization_barrier(noise_BV), axis=-1)
        return jnp.where(random_B, drawn_B, greedy(logits_BV))

    def greedy(logits_BV):
        return jnp.argmax(logits_BV, axis=-1)

    return jax.lax.cond(jnp.any(random_B), sampled, greedy, logits_BV).astype(jnp.int32)


def probabilities(sampling: SamplingConfig, logits_V: np.ndarray) -> np.ndarray:
    """Return the probabilities, (V,) float64, that the next token is drawn with."""
    if not sampling.temperature:
        return np.eye(len(logits_V))[np.argmax(logits_V)]
    scaled_BV = jnp.asarray(logits_V / sampling.temperature, jnp.float32)[None]
    if sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0:
        scaled_BV = filter_logits(scaled_BV, SamplingParams.of(sampling))
    return np.asarray(jax.nn.softmax(scaled_BV)[0], np.float64)


def draw_one(sampling: SamplingConfig, logits_V: np.ndarray, position: int, *, num_tokens: int) -> int:
    """Return the token that a lone text draws at a position; ids from `num_tokens` on are never drawn."""
    real_V = np.arange(len(logits_V)) < num_tokens
    logits_BV = np.where(real_V, logits_V, -np.inf)[None].astype(np.float32)

    @jax.jit  # settings as constants: sorting, if it is not asked for, is not compiled
    def compiled(logits_BV: jax.Array, position_B: jax.Array) -> jax.Array:
        return draw(logits_BV, SamplingParams.of(sampling), position_B)

    return int(np.asarray(compiled(logits_BV, np.array([position])))[0])


def _forward(
    net: Net,
    params: Params,
    tokens_BT: jax.Array,
    padding_B: jax.Array,
    caches: tuple[KVCache, ...],
    slot: jax.Array | int,
    before_BN: jax.Array | None = None,
) -> tuple[jax.Array, tuple[KVCache, ...]]:
    """Logits of the last token, (B, V), and the caches, after `tokens_BT` went into the slots from `slot` on."""
    slots_T = slot + jnp.arange(tokens_BT.shape[1])
    slots_S = jnp.arange(caches[0].keys_BKSC.shape[2])
    mask_BTS = (slots_S[None, None] <= slots_T[None, :, None]) & (
        slots_S[None, None] >= padding_B[:, None, None]
    )
    readout, caches = net.apply(
        {"params": params},
        tokens_BT,
        caches,
        positions_BT=jnp.maximum(slots_T[None] - padding_B[:, None], 0),
        mask_BTS=mask_BTS,
        slot=slot,
        before_BN=before_BN,
        method="decode",
    )
    return readout.logits()[:, -1], caches


@partial(jax.jit, static_argnames=("net", "num_slots"))
def prefill(
    params: Params,
    prompts_BT: jax.Array,
    padding_B: jax.Array,
    dropped_B: jax.Array,
    *,
    net: Net,
    num_slots: int,
) -> DecodeState:
    """Reads the prompts, (B, T) padded on the left by `padding_B`, into a new cache of `num_slots` slots."""
    B, T = prompts_BT.shape
    lead = (B, net.config.num_kv_heads, num_slots)
    empty = KVCache(jnp.zeros((*lead, net.config.key_width)), jnp.zeros((*lead, net.config.head_width)))
    caches = (empty,) * net.config.num_layers
    logits_BV, caches = _forward(net, params, prompts_BT, padding_B, caches, 0)
    tokens_BS = jnp.zeros((B, num_slots), jnp.int32).at[:, :T].set(prompts_BT)
    return DecodeState(tokens_BS, padding_B, dropped_B, jnp.int32(T), logits_BV, jnp.zeros(B, bool), caches)


def _decode(
    params: Params,
    state: DecodeState,
    choice: SamplingParams,
    end: jax.Array,
    *,
    net: Net,
    stop_id: int,
    num_tokens: int,
    stages: tuple[int, ...] = (),
) -> DecodeState:
    """Draws tokens until slot `end` or until every row has drawn `stop_id`: one loop on the device.

    With `stages`, one after another, in each of which caches have so many slots. Ids from `num_tokens` on, which only
    round the matrix up, are never drawn.
    """
    real_V = jnp.arange(net.config.vocab_size) < num_tokens

    def unfinished(state: DecodeState):
        return (state.slot < end) & ~jnp.all(state.done_B)

    def one_token(state: DecodeState) -> DecodeState:
        logits_BV = jnp.where(real_V[None], state.logits_BV, -jnp.inf)
        drawn_B = draw(logits_BV, choice, state.dropped_B + state.slot - state.padding_B)
        drawn_B = jnp.where(state.done_B, stop_id, drawn_B)
        tokens_BS = jax.lax.dynamic_update_slice_in_dim(state.tokens_BS, drawn_B[:, None], state.slot, axis=1)
        before_BN = jax.lax.dynamic_slice_in_dim(
            state.tokens_BS, state.slot - net.config.token_shift, net.config.token_shift, axis=1
        )
        logits_BV, caches = _forward(
            net, params, drawn_B[:, None], state.padding_B, state.caches, state.slot, before_BN
        )
        done_B = state.done_B | (drawn_B == stop_id)
        return state._replace(
            tokens_BS=tokens_BS, slot=state.slot + 1, logits_BV=logits_BV, done_B=done_B, caches=caches
        )

    for slots in stages or state.tokens_BS.shape[1:]:
        more = slots - state.tokens_BS.shape[1]
        state = state._replace(
            tokens_BS=jnp.pad(state.tokens_BS, ((0, 0), (0, more))), caches=longer(state.caches, more)
        )
        state = jax.lax.while_loop(
            lambda state, slots=slots: unfinished(state) & (state.slot < slots), one_token, state
        )
    return state._replace(tokens_BS=constrain(state.tokens_BS))  # whole, for every process to read


decode = jax.jit(
    _decode,
    static_argnames=("net", "stop_id", "num_tokens"),
    donate_argnames="state",
    compiler_options=FEW_ROWS,
)
decode_growing = jax.jit(
    _decode, static_argnames=("net", "stop_id", "num_tokens", "stages"), compiler_options=FEW_ROWS
)


def stream(
    params: Params,
    net: Net,
    prompts: list[np.ndarray],
    sampling: SamplingConfig,
    *,
    stop_id: int,
    num_tokens: int,
    chunk: int = 0,
) -> Iterator[list[np.ndarray]]:
    """Yields, again and again, the new tokens of each row, at most `chunk` a time (0: as many as fit).

    Each prompt holds 1 to `net.config.max_length` ids. A row ends before its `stop_id`. Where the context is full, the
    last half of it is read again and the text goes on from there: each row at its own place, so that it writes what it
    writes alone.
    """
    choice = SamplingParams.of(sampling, len(prompts))
    # Weights that lie in the file's memory would be copied in every call.
    params = fuse_projections(jax.tree.map(jnp.asarray, params))
    texts = [np.asarray(prompt, np.int32) for prompt in prompts]
    if not all(0 < len(text) <= net.config.max_length for text in texts):
        raise ValueError(f"prompts need 1 to {net.config.max_length} tokens: {[len(text) for text in texts]}")
    longest = max(map(len, texts)) + sampling.max_tokens
    # A model that was built for a long context need not pay for all of it in a short text.
    num_slots = min(round_up(net.config.max_length, PROMPT_MULTIPLE), round_up(longest, SLOT_MULTIPLE))
    stages = capacities(num_slots + PROMPT_MULTIPLE, cache_bytes(net.config, len(texts)))
    finished = np.zeros(len(texts), bool)
    left = sampling.max_tokens
    dropped = [0] * len(texts)
    while left > 0 and not finished.all():
        for row, text in enumerate(texts):
            if finished[row]:  # its last token stands for it, so that nobody waits for it
                dropped[row] = len(text) - 1
            elif len(text) - dropped[row] > net.config.max_length:
                dropped[row] = len(text) - max(1, net.config.max_length // 2)
        windows = [text[start:] for text, start in zip(texts, dropped, strict=True)]
        longest = max(map(len, windows))
        width = round_up(longest, PROMPT_MULTIPLE)
        prompts_BT = np.stack([np.pad(window, (width - len(window), 0)) for window in windows])
        padding_B = np.array([width - len(window) for window in windows], np.int32)
        dropped_B = np.array(dropped, np.int32)
        first = next(slots for slots in stages if slots > width)
        state = prefill(params, prompts_BT, padding_B, dropped_B, net=net, num_slots=first)
        state = state._replace(done_B=jnp.asarray(finished))
        # The token in the last position of the context is drawn but never read: hence the one more.
        last = width + min(left, net.config.max_length - longest + 1)
        slot = width
        while slot < last and not finished.all():
            end = min(last, slot + (chunk or last))
            here = state.tokens_BS.shape[1]
            choices = {"net": net, "stop_id": stop_id, "num_tokens": num_tokens}
            if end <= here:
                state = decode(params, state, choice, jnp.int32(end), **choices)
            else:
                enough = next(slots for slots in stages if slots >= end)
                choices["stages"] = tuple(slots for slots in stages if here <= slots <= enough)
                state = decode_growing(params, state, choice, jnp.int32(end), **choices)
            drawn_BT = np.asarray(state.tokens_BS)[:, slot : int(state.slot)]
            new = []
            for row, drawn_T in enumerate(drawn_BT):
                stops = np.flatnonzero(drawn_T == stop_id)
                piece = drawn_T[:0] if finished[row] else drawn_T[: stops[0]] if len(stops) else drawn_T
                texts[row] = np.concatenate([texts[row], piece])
                finished[row] |= len(stops) > 0
                new.append(piece)
            left -= drawn_BT.shape[1]
            slot = int(state.slot)
            yield new


def generate(
    params: Params,
    net: Net,
    prompts: list[np.ndarray],
    sampling: SamplingConfig,
    *,
    stop_id: int,
    num_tokens: int,
) -> list[np.ndarray]:
    """The continuation of each prompt, without it: arrays of at most `sampling.max_tokens` ids."""
    pieces = [[] for _ in prompts]
    for new in stream(params, net, prompts, sampling, stop_id=stop_id, num_tokens=num_tokens):
        for row, piece in zip(pieces, new, strict=True):
            row.append(piece)
    return [np.concatenate(row) if row else np.zeros(0, np.int32) for row in pieces]
