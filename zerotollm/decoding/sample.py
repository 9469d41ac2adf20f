"""Sampling from a decoder: prefill, then one compiled loop over a KV cache.

Prompts of different lengths are padded on the left, so that all rows of a batch write to the same cache slot. Only
tokens that may follow in valid UTF-8 are drawn; only `max_tokens` may end a text in an unfinished character.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from zerotollm.data.tokens.utf8 import Utf8Automaton
from zerotollm.decoding.cache_growth import cache_bytes, capacities, empty_caches, grow
from zerotollm.decoding.config import SamplingConfig
from zerotollm.decoding.filters import filter_logits
from zerotollm.model import build
from zerotollm.model.accelerator import FEW_ROWS
from zerotollm.model.build import Net, Params
from zerotollm.model.config import round_up
from zerotollm.model.layers import KVCache, fuse_projections
from zerotollm.randomness import stream_key
from zerotollm.sharding.constraints import constrain
from zerotollm.sharding.cores import map_on_cores, num_groups

PROMPT_MULTIPLE = 16
"""Prompts are padded to a multiple of this, so that few lengths are compiled."""
SLOT_MULTIPLE = 1024
"""Cache slots are a multiple of this, or the whole context."""

COLD = 1e-5
"""Lower temperatures count as 0: every difference between float32 logits decides, and divided logits overflow."""


class SamplingParams(NamedTuple):
    """`SamplingConfig` as arrays, one number per row: a new temperature or seed compiles nothing."""

    temperature_B: jax.Array
    top_k_B: jax.Array
    top_p_B: jax.Array
    min_p_B: jax.Array
    key_B: jax.Array
    """random keys of (seed, row)"""

    @classmethod
    def of(cls, sampling: SamplingConfig, rows: int = 1, first_row: int = 0) -> "SamplingParams":
        """Return the same parameters for all rows, with different random keys, those of row `first_row` and later."""
        s = sampling
        params = cls.row(s.temperature, s.top_k, s.top_p, s.min_p, s.seed, 0)
        key_B = jax.vmap(partial(sample_key, s.seed))(first_row + jnp.arange(rows))
        return jax.tree.map(lambda x_1: jnp.repeat(x_1, rows), params)._replace(key_B=key_B)

    @classmethod
    def row(
        cls,
        temperature: ArrayLike,
        top_k: ArrayLike,
        top_p: ArrayLike,
        min_p: ArrayLike,
        seed: int | jax.Array,
        row: int | jax.Array,
    ) -> "SamplingParams":
        """Return the parameters of one row, number `row` of its seed. All arguments may be traced."""
        return cls(
            jnp.float32(temperature)[None],
            jnp.int32(top_k)[None],
            jnp.float32(top_p)[None],
            jnp.float32(min_p)[None],
            sample_key(seed, row)[None],
        )

    @property
    def filters(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return the arguments of `filter_logits`."""
        return self.top_k_B, self.top_p_B, self.min_p_B


def sample_key(seed: int | jax.Array, row: int | jax.Array) -> jax.Array:
    """Return the random key of a row; `draw` folds in the position."""
    return jax.random.fold_in(stream_key(seed, "sample"), row)


class DecodeState(NamedTuple):
    """A batch of texts being generated. S is the number of cache slots."""

    tokens_BS: jax.Array
    """prompts, padded on the left, and the tokens drawn so far"""
    padding_B: jax.Array
    """slots before each prompt"""
    dropped_B: jax.Array
    """tokens of each text before its prompt, which are no longer in the context"""
    slot: jax.Array
    """the next slot to fill, the same for all rows"""
    logits_BV: jax.Array
    """of the token in `slot`"""
    done_B: jax.Array
    """True where a stop token was drawn: the row is then filled with one"""
    utf8_B: jax.Array
    """int8: state of `Utf8Automaton`; meaningless after the stop token"""
    caches: tuple[KVCache, ...]


def exclude_invalid(logits_BV: jax.Array, next_state_SV: jax.Array, utf8_B: jax.Array) -> jax.Array:
    """Return the logits with minus infinity at tokens that may not follow in states of `Utf8Automaton`.

    Ids beyond the automaton's are padding of the vocabulary, and excluded too.
    """
    padding = logits_BV.shape[1] - next_state_SV.shape[1]
    allowed_BV = jnp.pad(next_state_SV[utf8_B] >= 0, ((0, 0), (0, padding)))
    return jnp.where(allowed_BV, logits_BV, -jnp.inf)


def draw(logits_BV: jax.Array, sampling_params: SamplingParams, positions_B: jax.Array) -> jax.Array:
    """Return one sampled token per row, (B,) int32; the most likely one at a temperature below `COLD`.

    The randomness of a row depends on (seed, row, position), not on padding or other rows. Positions count from the
    start of the text, even if the context holds only its end: no noise is used twice in a text.
    """
    p = sampling_params
    random_B = p.temperature_B >= COLD

    def sampled(logits_BV: jax.Array) -> jax.Array:
        scaled_BV = logits_BV / jnp.where(random_B, p.temperature_B, 1)[:, None]
        filtered_B = (p.top_k_B > 0) | (p.top_p_B < 1) | (p.min_p_B > 0)

        def filtered(scaled_BV: jax.Array) -> jax.Array:
            # A row without filters keeps every token, including those that rounding puts beyond probability 1.
            return jnp.where(filtered_B[:, None], filter_logits(scaled_BV, *p.filters), scaled_BV)

        scaled_BV = jax.lax.cond(jnp.any(filtered_B), filtered, lambda x: x, scaled_BV)
        keys_B = jax.vmap(jax.random.fold_in)(p.key_B, positions_B)
        noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, scaled_BV.shape[1:]))(keys_B)
        # Like `jax.random.categorical`. The barrier prevents one slow loop for noise and maximum on a CPU.
        drawn_B = most_likely(scaled_BV + jax.lax.optimization_barrier(noise_BV))
        return jnp.where(random_B, drawn_B, most_likely(logits_BV))

    return jax.lax.cond(jnp.any(random_B), sampled, most_likely, logits_BV)


def most_likely(logits_BV: jax.Array) -> jax.Array:
    """Return the ids of the largest logits, the lowest where several are, (B,) int32.

    XLA's CPU backend computes maxima and comparisons in vectors, but `jnp.argmax` one element after the other.
    """
    ids_V = jnp.arange(logits_BV.shape[-1], dtype=jnp.int32)
    largest_BV = logits_BV == logits_BV.max(axis=-1, keepdims=True)
    return jnp.where(largest_BV, ids_V, ids_V[-1]).min(axis=-1)


def probabilities(
    sampling: SamplingConfig, utf8: Utf8Automaton, logits_V: np.ndarray, before_T: np.ndarray
) -> np.ndarray:
    """Return the probabilities that the token after `before_T` is sampled with, (V,) float64."""
    logits_V = np.where(utf8.may_follow(before_T), logits_V, -np.inf)
    if sampling.temperature < COLD:
        return np.eye(len(logits_V))[np.argmax(logits_V)]
    scaled_BV = jnp.asarray(logits_V / sampling.temperature, jnp.float32)[None]
    if sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0:
        scaled_BV = filter_logits(scaled_BV, *SamplingParams.of(sampling).filters)
    return np.asarray(jax.nn.softmax(scaled_BV)[0], np.float64)


def draw_one(
    sampling: SamplingConfig, utf8: Utf8Automaton, logits_V: np.ndarray, before_T: np.ndarray
) -> int:
    """Return the token sampled after `before_T`, a single text; ids beyond the vocabulary of `utf8` are excluded."""
    allowed_V = utf8.may_follow(before_T)
    logits_BV = np.full((1, len(logits_V)), -np.inf, np.float32)
    logits_BV[0, : len(allowed_V)] = np.where(allowed_V, logits_V[: len(allowed_V)], -np.inf)

    @jax.jit  # parameters are constants: sorting is compiled only if a filter needs it
    def compiled(logits_BV: jax.Array, position_B: jax.Array) -> jax.Array:
        return draw(logits_BV, SamplingParams.of(sampling), position_B)

    return int(np.asarray(compiled(logits_BV, np.array([len(before_T)])))[0])


def _forward(
    net: Net,
    params: Params,
    tokens_BT: jax.Array,
    padding_B: jax.Array,
    caches: tuple[KVCache, ...],
    slot: jax.Array | int,
    before_BN: jax.Array | None = None,
) -> tuple[jax.Array, tuple[KVCache, ...]]:
    """Return the logits of the last token, (B, V), and the caches with `tokens_BT` in the slots from `slot` on."""
    slots_T = slot + jnp.arange(tokens_BT.shape[1])
    slots_S = jnp.arange(caches[0].keys_BKSC.shape[2])
    mask_BTS = (slots_S[None, None] <= slots_T[None, :, None]) & (
        slots_S[None, None] >= padding_B[:, None, None]
    )
    readout, caches = build.decode(
        net,
        params,
        tokens_BT,
        caches,
        positions_BT=jnp.maximum(slots_T[None] - padding_B[:, None], 0),
        mask_BTS=mask_BTS,
        slot=slot,
        before_BN=before_BN,
    )
    # Of a prompt's logits only the last are read, and XLA would compute them all.
    return readout._replace(x_BTD=readout.x_BTD[:, -1:]).logits()[:, 0], caches


@partial(jax.jit, static_argnames=("net", "num_slots"))
def prefill(
    params: Params,
    prompts_BT: jax.Array,
    padding_B: jax.Array,
    dropped_B: jax.Array,
    done_B: jax.Array,
    utf8_B: jax.Array,
    *,
    net: Net,
    num_slots: int,
) -> DecodeState:
    """Read the prompts, (B, T) padded on the left by `padding_B`, into a new cache of `num_slots` slots."""
    B, T = prompts_BT.shape
    caches = empty_caches(net.config, B, num_slots)
    logits_BV, caches = _forward(net, params, prompts_BT, padding_B, caches, 0)
    tokens_BS = jnp.zeros((B, num_slots), jnp.int32).at[:, :T].set(prompts_BT)
    return DecodeState(tokens_BS, padding_B, dropped_B, jnp.int32(T), logits_BV, done_B, utf8_B, caches)


def _decode(
    params: Params,
    state: DecodeState,
    sampling_params: SamplingParams,
    next_state_SV: jax.Array,
    end: jax.Array,
    *,
    net: Net,
    stop_ids: tuple[int, ...],
    stages: tuple[int, ...] = (),
) -> DecodeState:
    """Sample tokens until slot `end`, or until every row has drawn one of `stop_ids`, in one loop on the device.

    With `stages`, there is a loop for each, with caches of that many slots.
    """
    c = net.config

    def unfinished(state: DecodeState) -> jax.Array:
        return (state.slot < end) & ~jnp.all(state.done_B)

    def one_token(state: DecodeState) -> DecodeState:
        logits_BV = exclude_invalid(state.logits_BV, next_state_SV, state.utf8_B)
        drawn_B = draw(logits_BV, sampling_params, state.dropped_B + state.slot - state.padding_B)
        drawn_B = jnp.where(state.done_B, (*stop_ids, 0)[0], drawn_B)
        tokens_BS = jax.lax.dynamic_update_slice_in_dim(state.tokens_BS, drawn_B[:, None], state.slot, axis=1)
        before_BN = jax.lax.dynamic_slice_in_dim(
            state.tokens_BS, state.slot - c.token_shift, c.token_shift, axis=1
        )
        logits_BV, caches = _forward(
            net, params, drawn_B[:, None], state.padding_B, state.caches, state.slot, before_BN
        )
        done_B = state.done_B | jnp.isin(drawn_B, jnp.array(stop_ids, jnp.int32))
        return state._replace(
            tokens_BS=tokens_BS,
            slot=state.slot + 1,
            logits_BV=logits_BV,
            done_B=done_B,
            utf8_B=next_state_SV[state.utf8_B, drawn_B],
            caches=caches,
        )

    for slots in stages or state.tokens_BS.shape[1:]:
        more = slots - state.tokens_BS.shape[1]
        state = state._replace(
            tokens_BS=jnp.pad(state.tokens_BS, ((0, 0), (0, more))), caches=grow(state.caches, more)
        )
        state = jax.lax.while_loop(
            lambda state, slots=slots: unfinished(state) & (state.slot < slots), one_token, state
        )
    return state._replace(tokens_BS=constrain(state.tokens_BS))  # replicated, for every process to read


decode = jax.jit(
    _decode, static_argnames=("net", "stop_ids"), donate_argnames="state", compiler_options=FEW_ROWS
)
decode_growing = jax.jit(_decode, static_argnames=("net", "stop_ids", "stages"), compiler_options=FEW_ROWS)


def stream(
    params: Params,
    net: Net,
    prompts: list[np.ndarray],
    sampling: SamplingConfig,
    *,
    stop_ids: tuple[int, ...],
    utf8: Utf8Automaton,
    chunk: int = 0,
    first_row: int = 0,
) -> Iterator[list[np.ndarray]]:
    """Yield the new tokens of each row again and again, at most `chunk` at a time (0: as many as fit).

    Each prompt holds 1 to `net.config.max_length` ids, and may end in an unfinished character, which is continued. A
    row ends before one of `stop_ids`, or after `max_tokens`, perhaps within a character. When the context is full, its
    last half is read again and generation continues. Each row has its own window, so that it is the same as alone.
    Randomness is that of row `first_row` and later ones.
    """
    c = net.config
    sampling_params = SamplingParams.of(sampling, len(prompts), first_row)
    # Memory-mapped weights would be copied in every call.
    params = fuse_projections(jax.tree.map(jnp.asarray, params))
    next_state_SV = jnp.asarray(utf8.next_state_SV)
    texts = [np.asarray(prompt, np.int32) for prompt in prompts]
    if not all(0 < len(text) <= c.max_length for text in texts):
        raise ValueError(f"prompts need 1 to {c.max_length} tokens: {[len(text) for text in texts]}")
    longest = max(map(len, texts)) + sampling.max_tokens
    # A short text does not need the cache of the whole context.
    num_slots = min(round_up(c.max_length, PROMPT_MULTIPLE), round_up(longest, SLOT_MULTIPLE))
    stages = capacities(num_slots + PROMPT_MULTIPLE, cache_bytes(c, len(texts)))
    finished = np.zeros(len(texts), bool)
    left = sampling.max_tokens
    dropped = [0] * len(texts)
    while left > 0 and not finished.all():
        for row, text in enumerate(texts):
            if finished[row]:  # a window of one token, so that no other row waits
                dropped[row] = len(text) - 1
            elif len(text) - dropped[row] > c.max_length:
                dropped[row] = len(text) - max(1, c.max_length // 2)
        windows = [text[start:] for text, start in zip(texts, dropped, strict=True)]
        longest = max(map(len, windows))
        width = round_up(longest, PROMPT_MULTIPLE)
        prompts_BT = np.stack([np.pad(window, (width - len(window), 0)) for window in windows])
        padding_B = np.array([width - len(window) for window in windows], np.int32)
        dropped_B = np.array(dropped, np.int32)
        first = next(slots for slots in stages if slots > width)
        utf8_B = np.array([utf8.state(text) for text in texts], np.int8)
        rows = (prompts_BT, padding_B, dropped_B, finished, utf8_B)
        state = prefill(params, *rows, net=net, num_slots=first)
        # The token after the last position of the context is drawn but never read.
        last = width + min(left, c.max_length - longest + 1)
        slot = width
        while slot < last and not finished.all():
            end = min(last, slot + (chunk or last))
            capacity = state.tokens_BS.shape[1]
            arguments = (params, state, sampling_params, next_state_SV, jnp.int32(end))
            options = {"net": net, "stop_ids": stop_ids}
            if end <= capacity:
                state = decode(*arguments, **options)
            else:
                last_stage = next(slots for slots in stages if slots >= end)
                growth = tuple(slots for slots in stages if capacity <= slots <= last_stage)
                state = decode_growing(*arguments, **options, stages=growth)
            drawn_BT = np.asarray(state.tokens_BS)[:, slot : int(state.slot)]
            new = []
            for row, drawn_T in enumerate(drawn_BT):
                stops = np.flatnonzero(np.isin(drawn_T, stop_ids))
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
    stop_ids: tuple[int, ...],
    utf8: Utf8Automaton,
) -> list[np.ndarray]:
    """Return the continuation of each prompt: arrays of at most `sampling.max_tokens` ids."""
    params = fuse_projections(jax.tree.map(jnp.asarray, params))
    size = max(1, len(prompts) // num_groups(len(prompts)))

    def texts(first: int) -> list[np.ndarray]:
        pieces: list[list[np.ndarray]] = [[] for _ in range(size)]
        group = prompts[first : first + size]
        for new in stream(params, net, group, sampling, stop_ids=stop_ids, utf8=utf8, first_row=first):
            for row, piece in zip(pieces, new, strict=True):
                row.append(piece)
        return [np.concatenate(row) if row else np.zeros(0, np.int32) for row in pieces]

    return [text for group in map_on_cores(texts, range(0, len(prompts), size)) for text in group]
