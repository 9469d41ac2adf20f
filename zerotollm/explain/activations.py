"""What goes on inside a model: its own modules, block by block, with what they sow. Axes as in `model/transformer.py`.

There is no second implementation of the model here: `Transformer` without blocks makes of tokens what enters the
first of them, `Block` is each, and norm and head are the model's own. One block is compiled for all layers, one length
for all texts, and what enters a block can be kept: without a head of layer i, only the layers from i on differ.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zerotollm.data.tokens.sentencepiece import Tokenizer
from zerotollm.model.blocks import Block, EncoderOutput
from zerotollm.model.config import TransformerConfig
from zerotollm.model.layers import Norm
from zerotollm.model.transformer import Readout, Transformer, causal_mask

LONGEST = 512
"""Tokens of a window that is looked into, at most: attention weights grow with the square."""


class Activations(NamedTuple):
    """Of B windows; M = L + 1 places of the residual stream: the embedding of the token alone, and after each block."""

    logits_BTV: np.ndarray
    residual_MBTD: np.ndarray
    final_BTD: np.ndarray
    """what the head reads"""
    weights_LBHTS: np.ndarray
    """attention: how much query t takes from position s"""


class Scores(NamedTuple):
    """How the token after each of B windows' T tokens was predicted."""

    nats_BT: np.ndarray
    """cross-entropy"""
    confidence_BT: np.ndarray
    """probability of the likeliest token"""
    correct_BT: np.ndarray
    """whether that is the one that came"""


class Reading(NamedTuple):
    """What the head says at any place of the residual stream, as if the blocks after it were left out."""

    logits_BTV: jax.Array
    final_BTD: jax.Array
    """what the head reads"""
    nats_BT: jax.Array
    """cross-entropy of the token that came"""
    best_BT: jax.Array
    """ids of the likeliest"""
    confidence_BT: jax.Array
    """their probabilities"""
    asked_BT: jax.Array
    """probability of the token that was asked for"""


class BlockOutputs(NamedTuple):
    """A stack of blocks, gone through."""

    x_BTD: jax.Array
    entered: tuple[jax.Array, ...]
    """x_BTD in front of each block"""
    left: tuple[jax.Array, ...]
    """x_BTD behind each"""
    weights: tuple[jax.Array, ...]
    """attention of each, (B, H, T, S)"""
    cross: tuple[jax.Array, ...]
    """cross attention of each, where there is one"""


@partial(jax.jit, static_argnames="model")
def _enter(params, tokens_BT, segments_BT, *, model):
    """The embedding of each token alone, and what enters the first block."""
    bare = Transformer(replace(model, num_layers=0))
    _, kept = bare.apply(
        {"params": params}, {"inputs": tokens_BT, "segments": segments_BT}, mutable=["intermediates"]
    )
    return kept["intermediates"]["embedded_BTD"][0], kept["intermediates"]["entering_BTD"][0]


@partial(jax.jit, static_argnames="model")
def _causal_block(layer, x_BTD, segments_BT, kept_H, *, model):
    mask_BTS = causal_mask(segments_BT, x_BTD.shape[1])
    return block(layer, x_BTD, mask_BTS, kept_H, model=model)[:2]


def block(
    layer: Any,
    x_BTD: jax.Array,
    mask_BTS: jax.Array,
    kept_H: jax.Array,
    memory: EncoderOutput | None = None,
    kept_cross_H: jax.Array | None = None,
    *,
    model: TransformerConfig,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """The model's own block: its output, its attention and its cross attention, (B, H, T, S). Heads whose `kept_H` is
    0 are out."""
    layer = layer | {"attention": without_heads(layer["attention"], kept_H, model)}
    if memory is not None:
        layer |= {"cross_attention": without_heads(layer["cross_attention"], kept_cross_H, model)}
    positions_BT = jnp.arange(x_BTD.shape[1])[None]
    (x_BTD, _), kept = Block(model).apply(
        {"params": layer},
        x_BTD,
        mask_BTS,
        positions_BT,
        deterministic=True,
        encoder=memory,
        mutable=["intermediates"],
    )
    sown = kept["intermediates"]
    cross = None if memory is None else sown["cross_attention"]["weights_BHTS"][0]
    return x_BTD, sown["attention"]["weights_BHTS"][0], cross


def without_heads(attention: Any, kept_H: jax.Array, model: TransformerConfig) -> dict[str, Any]:
    """Parameters of an attention without the heads whose `kept_H` is 0: zero ablation, by their rows of the `output`
    matrix (Michel et al. 2019, arXiv:1905.10650)."""
    rows_Y1 = jnp.repeat(kept_H, model.head_width)[:, None]
    return attention | {"output": attention["output"] * rows_Y1}


@partial(jax.jit, static_argnames="model")
def _read(params, x_BTD, targets_BT, real, asked, *, model):
    if model.norm_position == "pre":
        x_BTD = Norm(model).apply({"params": params["final_norm"]}, x_BTD)
    logits_BTV = Readout(
        x_BTD, head_matrix(params, model), params.get("head_bias"), model.logit_soft_cap
    ).logits()
    known_BTV = jnp.where((jnp.arange(logits_BTV.shape[-1]) < real)[None, None], logits_BTV, -jnp.inf)
    top_BT = known_BTV.max(-1)
    total_BT = top_BT + jnp.log(jnp.exp(known_BTV - top_BT[..., None]).sum(-1))
    target_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    asked_BT = jnp.exp(logits_BTV[..., asked] - total_BT)
    best_BT, sure_BT = known_BTV.argmax(-1), jnp.exp(top_BT - total_BT)
    return Reading(logits_BTV, x_BTD, total_BT - target_BT, best_BT, sure_BT, asked_BT)


def read(
    params: Any,
    x_BTD: Any,
    targets_BT: np.ndarray,
    *,
    model: TransformerConfig,
    real: int | None = None,
    asked: int = 0,
) -> Reading:
    """Reads any place of the residual stream by the model's final norm and head; of `real` ids, where not all are.
    `targets_BT` are the tokens that came, `asked` is an id."""
    names = ("embedding", "head", "head_bias", "final_norm")
    known = params.get("decoder", {}) | params
    named = {name: known[name] for name in names if name in known}
    if isinstance(
        params["embedding"], jax.Array
    ):  # for jit, an array that is bound to no device is another case
        x_BTD = jax.device_put(x_BTD, params["embedding"].sharding)
    real, asked = np.int32(model.vocab_size if real is None else real), np.int32(asked)
    return _read(named, x_BTD, targets_BT, real, asked, model=model)


def head_matrix(params: Any, model: TransformerConfig) -> jax.Array:
    """The matrix that turns a state into logits, (D, V)."""
    return params["embedding"].T if model.tie_embeddings else params["head"]


def row_length(tokens: int, model: TransformerConfig) -> int:
    """The length to which texts of so many tokens are padded: the same for nearly all, so that one program is, and for
    longer ones the next power of two, since attention weights grow with the square."""
    return min(model.max_length, max(LONGEST, 1 << (tokens - 1).bit_length()))


def run_blocks(
    params: Any,
    x_BTD: Any,
    segments_BT: np.ndarray,
    *,
    model: TransformerConfig,
    first: int = 0,
    kept_LH: np.ndarray | None = None,
) -> BlockOutputs:
    """A decoder's blocks from `first` on, with what enters it; heads whose `kept_LH` is 0 are out."""
    if kept_LH is None:
        kept_LH = np.ones((model.num_layers, model.num_heads), np.float32)
    entered, left, weights = [], [], []
    for i in range(first, model.num_layers):
        entered.append(x_BTD)
        x_BTD, weights_BHTS = _causal_block(params[f"layer_{i}"], x_BTD, segments_BT, kept_LH[i], model=model)
        left.append(x_BTD)
        weights.append(weights_BHTS)
    return BlockOutputs(x_BTD, tuple(entered), tuple(left), tuple(weights), ())


def enter(
    params: Any, tokens_BT: np.ndarray, segments_BT: np.ndarray, *, model: TransformerConfig
) -> tuple[jax.Array, jax.Array]:
    """A decoder's embedding of each token alone, and what enters its first block, each (B, T, D)."""
    outside = {name: value for name, value in params.items() if not name.startswith("layer_")}
    return _enter(outside, tokens_BT, segments_BT, model=model)


def look_inside(params: Any, model: TransformerConfig, tokens_T: np.ndarray) -> Activations:
    """All of one text in a decoder, B = 1, in float32. Padding on the right changes nothing in a causal model, and is
    cut off again."""
    T = len(tokens_T)
    padded_T = np.pad(tokens_T, (0, row_length(T, model) - T)).astype(np.int32)
    embedded_BTD, passed = _inside(params, padded_T[None], np.zeros_like(padded_T[None]), model=model)
    reading = read(params, passed.x_BTD, np.zeros_like(padded_T[None]), model=model)
    return Activations(
        np.asarray(reading.logits_BTV)[:, :T],
        np.stack([np.asarray(x)[:, :T] for x in (embedded_BTD, *passed.left)]),
        np.asarray(reading.final_BTD)[:, :T],
        np.stack([np.asarray(weights)[..., :T, :T] for weights in passed.weights]),
    )


def _inside(params, tokens_BT, segments_BT, *, model) -> tuple[jax.Array, BlockOutputs]:
    embedded_BTD, x_BTD = enter(params, tokens_BT, segments_BT, model=model)
    return embedded_BTD, run_blocks(params, x_BTD, segments_BT, model=model)


class Row(NamedTuple):
    """Some windows of T + 1 tokens, side by side in one row, so that none of it is wasted."""

    tokens_1S: np.ndarray
    targets_1S: np.ndarray
    segments_1S: np.ndarray
    count: int
    """windows in it"""

    def split(self, x_1S: Any, T: int) -> np.ndarray:
        """What belongs to each window, (count, T)."""
        return np.asarray(x_1S)[0, : self.count * T].reshape(self.count, T)


def rows_of(
    windows_BW: np.ndarray, model: TransformerConfig, document_bos: int | None = None
) -> Iterator[Row]:
    """Puts windows in rows, as many in each as fit; they do not see each other.

    `document_bos` is the id with which a document begins, where the model was trained with `data.document_mask`:
    documents then do not see each other either.
    """
    T = windows_BW.shape[1] - 1
    S = row_length(T, model)
    together = S // T
    for start in range(0, len(windows_BW), together):
        some = windows_BW[start : start + together].astype(np.int32)
        padding = (0, S - some[:, :-1].size)
        tokens_1S, targets_1S = (np.pad(x.ravel(), padding)[None] for x in (some[:, :-1], some[:, 1:]))
        first_1S = (np.arange(S) % T == 0)[None]
        if document_bos is not None:
            first_1S = first_1S | (tokens_1S == document_bos)
        segments_1S = np.cumsum(first_1S, axis=1, dtype=np.int32) - 1
        yield Row(tokens_1S, targets_1S, segments_1S, len(some))


def score_windows(
    params: Any, windows_BW: np.ndarray, *, model: TransformerConfig, document_bos: int | None = None
) -> Scores:
    """Every prediction of a decoder in windows of T + 1 tokens; `document_bos` as in `rows_of`."""
    seen = look_into_windows(params, windows_BW, model=model, document_bos=document_bos)
    return joined(window.scores for window in seen)


def joined(parts: Iterable[Scores]) -> Scores:
    """Scores of several windows as one."""
    return Scores(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def scored(row: Row, reading: Reading, T: int) -> Scores:
    """The scores of a row's windows."""
    correct_1S = np.asarray(reading.best_BT) == row.targets_1S
    return Scores(*(row.split(x_1S, T) for x_1S in (reading.nats_BT, reading.confidence_BT, correct_1S)))


class Window(NamedTuple):
    """One window of T + 1 tokens, scored and looked into. What is in it is fetched when it is asked for."""

    scores: Scores
    embedded_1SD: jax.Array
    passed: BlockOutputs
    place: slice
    """of its T inputs in their row"""

    def residual(self) -> np.ndarray:
        """(M, T, D), as in `Activations`."""
        return np.stack([np.asarray(x)[0, self.place] for x in (self.embedded_1SD, *self.passed.left)])

    def weights(self) -> np.ndarray:
        """(L, H, T, T), as in `Activations`."""
        return np.stack([np.asarray(x)[0, :, self.place, self.place] for x in self.passed.weights])


def look_into_windows(
    params: Any, windows_BW: np.ndarray, *, model: TransformerConfig, document_bos: int | None = None
) -> Iterator[Window]:
    """Windows of T + 1 tokens, one after the other: attention weights are the largest thing here."""
    T = windows_BW.shape[1] - 1
    for row in rows_of(windows_BW, model, document_bos):
        embedded_1SD, passed = _inside(params, row.tokens_1S, row.segments_1S, model=model)
        scores = scored(row, read(params, passed.x_BTD, row.targets_1S, model=model), T)
        for b in range(row.count):
            own = Scores(*(x_BT[b : b + 1] for x_BT in scores))
            yield Window(own, embedded_1SD, passed, slice(b * T, (b + 1) * T))


def even_windows(tokens_N: np.ndarray, length: int, count: int) -> np.ndarray:
    """At most `count` windows of `length` + 1 tokens, spread evenly over a text and never overlapping.

    Returns (B, T + 1) int32. A text too short for one is one window.
    """
    T = min(length, len(tokens_N) - 1)
    possible = max(1, len(tokens_N) // (T + 1))
    starts_B = np.linspace(0, len(tokens_N) - T - 1, min(count, possible)).astype(np.int64)
    return np.asarray(tokens_N)[starts_B[:, None] + np.arange(T + 1)].astype(np.int32)


def text_tokens(tokenizer: Tokenizer, text: str, longest: int) -> tuple[np.ndarray, bool]:
    """bos and the tokens of a text, (T,), the last `longest` of them; and whether some had to be left out."""
    tokens_T = np.concatenate([[tokenizer.bos_id], tokenizer.encode(text)]).astype(np.int32)
    return tokens_T[-longest:], len(tokens_T) > longest
