"""What goes on inside an encoder-decoder: `forward.py` for pairs of a source and a target, the same blocks and axes.

Three kinds of attention are seen: the encoder's, of the source to itself; the decoder's, of the target to what of it
is written already; and cross attention, from the target to the source.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from zerotollm.data.sources.pairs import as_sentence
from zerotollm.data.tokens.sentencepiece import Tokenizer
from zerotollm.explain.ablation import writing, written
from zerotollm.explain.activations import Activations, BlockOutputs, block, read, row_length
from zerotollm.model.blocks import EncoderOutput
from zerotollm.model.config import TransformerConfig
from zerotollm.model.encoder_decoder import EncoderDecoder
from zerotollm.model.layers import Norm
from zerotollm.model.transformer import causal_mask


class Pair(NamedTuple):
    """A source and what is to be written for it, both with eos at the end."""

    source_S: np.ndarray
    target_T: np.ndarray


class Kept(NamedTuple):
    """Heads that are left in: 1, or 0 for one that is out."""

    encoder_LH: np.ndarray
    decoder_LH: np.ndarray
    cross_LH: np.ndarray


class PairScores(NamedTuple):
    """How each of a target's T tokens was predicted; see `forward.Scores`."""

    nats_T: np.ndarray
    confidence_T: np.ndarray
    correct_T: np.ndarray


class Inside(NamedTuple):
    """One pair, looked into. Everything is padded, and cut when it is asked for."""

    pair: Pair
    sources_BS: np.ndarray
    inputs_BT: np.ndarray
    """bos and the target"""
    targets_BT: np.ndarray
    encoder: BlockOutputs
    encoded_BSD: jax.Array
    decoder: BlockOutputs

    def residual(self, side: str, embedding_VD: np.ndarray) -> np.ndarray:
        """The stream of "encoder" or "decoder": the embedding alone, and after each block; (M, S or T, D)."""
        encoder = side == "encoder"
        length = len(self.pair.source_S if encoder else self.pair.target_T)
        ids = (self.sources_BS if encoder else self.inputs_BT)[0, :length]
        passed = self.encoder if encoder else self.decoder
        return np.stack([embedding_VD[ids], *(np.asarray(x)[0, :length] for x in passed.left)])

    def weights(self, side: str) -> np.ndarray:
        """Attention of "encoder", "decoder" or "cross", (L, H, queries, keys)."""
        S, T = len(self.pair.source_S), len(self.pair.target_T)
        layers, queries, keys = {
            "encoder": (self.encoder.weights, S, S),
            "decoder": (self.decoder.weights, T, T),
            "cross": (self.decoder.cross, T, S),
        }[side]
        return np.stack([np.asarray(weights)[0, :, :queries, :keys] for weights in layers])


@partial(jax.jit, static_argnames="model")
def _enter(params, sources_BS, mask_BS, inputs_BT, *, model):
    """What enters the first block of the encoder, and of the decoder."""
    bare = EncoderDecoder(replace(model, num_layers=0, encoder_layers=0))
    inputs = {"sources": sources_BS, "source_mask": mask_BS, "inputs": inputs_BT}
    _, kept = bare.apply({"params": params}, inputs, mutable=["intermediates"])
    return tuple(kept["intermediates"][side]["entering_BTD"][0] for side in ("encoder", "decoder"))


@partial(jax.jit, static_argnames="model")
def _encoder_block(layer, x_BSD, mask_BS, kept_H, *, model):
    return block(layer, x_BSD, mask_BS[:, None], kept_H, model=model)[:2]


@partial(jax.jit, static_argnames="model")
def _decoder_block(layer, x_BTD, memory, kept_H, kept_cross_H, *, model):
    mask_BTS = causal_mask(None, x_BTD.shape[1])
    return block(layer, x_BTD, mask_BTS, kept_H, memory, kept_cross_H, model=model)


@partial(jax.jit, static_argnames="model")
def _normed(norm, x_BSD, *, model):
    return Norm(model).apply({"params": norm}, x_BSD)


def all_heads(model: TransformerConfig) -> Kept:
    """None is out."""
    H = model.num_heads
    return Kept(*(np.ones((n, H), np.float32) for n in (model.encoder_layers, *[model.num_layers] * 2)))


def encode(
    params: Any, x_BSD: Any, mask_BS: np.ndarray, kept: Kept, *, model: TransformerConfig, first: int = 0
) -> tuple[BlockOutputs, jax.Array]:
    """The encoder's blocks from `first` on, and what the decoder reads."""
    entered, left, weights = [], [], []
    for i in range(first, model.encoder_layers):
        entered.append(x_BSD)
        layer = params["encoder"][f"layer_{i}"]
        x_BSD, weights_BHSS = _encoder_block(layer, x_BSD, mask_BS, kept.encoder_LH[i], model=model)
        left.append(x_BSD)
        weights.append(weights_BHSS)
    norm = params["encoder"].get("final_norm")
    encoded_BSD = x_BSD if norm is None else _normed(norm, x_BSD, model=model)
    return BlockOutputs(x_BSD, tuple(entered), tuple(left), tuple(weights), ()), encoded_BSD


def decode(
    params: Any,
    x_BTD: Any,
    encoded_BSD: Any,
    mask_BS: np.ndarray,
    kept: Kept,
    *,
    model: TransformerConfig,
    first: int = 0,
) -> BlockOutputs:
    """The decoder's blocks from `first` on."""
    entered, left, weights, cross = [], [], [], []
    for i in range(first, model.num_layers):
        entered.append(x_BTD)
        memory, layer = EncoderOutput(mask_BS, encoded_BSD), params["decoder"][f"layer_{i}"]
        x_BTD, own, other = _decoder_block(
            layer, x_BTD, memory, kept.decoder_LH[i], kept.cross_LH[i], model=model
        )
        left.append(x_BTD)
        weights.append(own)
        cross.append(other)
    return BlockOutputs(x_BTD, tuple(entered), tuple(left), tuple(weights), tuple(cross))


def look_into_pair(params: Any, model: TransformerConfig, pair: Pair, bos_id: int) -> Inside:
    """Goes through one pair, each side padded on the right to one length for nearly all."""
    S, T = len(pair.source_S), len(pair.target_T)
    length = row_length(max(S, T), model)
    inputs_T = np.append(bos_id, pair.target_T[:-1])
    rows = [
        np.pad(ids, (0, length - len(ids)))[None].astype(np.int32)
        for ids in (pair.source_S, inputs_T, pair.target_T)
    ]
    sources_BS, inputs_BT, targets_BT = rows
    mask_BS = (np.arange(length) < S)[None]
    outside = {
        name: _without_layers(value) if name in ("encoder", "decoder") else value
        for name, value in params.items()
    }
    x_BSD, x_BTD = _enter(outside, sources_BS, mask_BS, inputs_BT, model=model)
    kept = all_heads(model)
    encoder, encoded_BSD = encode(params, x_BSD, mask_BS, kept, model=model)
    decoder = decode(params, x_BTD, encoded_BSD, mask_BS, kept, model=model)
    return Inside(pair, sources_BS, inputs_BT, targets_BT, encoder, encoded_BSD, decoder)


def _without_layers(params: Any) -> dict[str, Any]:
    return {name: value for name, value in params.items() if not name.startswith("layer_")}


def decoder_activations(inside: Inside, params: Any, model: TransformerConfig, tokens: int) -> Activations:
    """The first tokens of the decoder's side as `forward.look_inside` gives them."""
    reading = read(params, inside.decoder.x_BTD, inside.targets_BT, model=model)
    return Activations(
        np.asarray(reading.logits_BTV)[:, :tokens],
        inside.residual("decoder", np.asarray(params["embedding"]))[:, None, :tokens],
        np.asarray(reading.final_BTD)[:, :tokens],
        inside.weights("decoder")[:, None, :, :tokens, :tokens],
    )


def pair_scores(inside: Inside, x_BTD: Any, params: Any, model: TransformerConfig) -> PairScores:
    """How a target is predicted where `x_BTD` leaves the last block."""
    reading, T = read(params, x_BTD, inside.targets_BT, model=model), len(inside.pair.target_T)
    correct_BT = np.asarray(reading.best_BT) == inside.targets_BT
    return PairScores(
        *(np.asarray(x_BT)[0, :T] for x_BT in (reading.nats_BT, reading.confidence_BT, correct_BT))
    )


def score_pair(params: Any, model: TransformerConfig, pair: Pair, bos_id: int) -> PairScores:
    """How one target is predicted from its source."""
    inside = look_into_pair(params, model, pair, bos_id)
    return pair_scores(inside, inside.decoder.x_BTD, params, model)


def text_pair(tokenizer: Tokenizer, source: str, target: str, longest: int) -> Pair:
    """Two texts as a model reads and writes them, cut where they are too long."""
    sides = (tokenizer.encode(as_sentence(text))[: longest - 1] for text in (source, target))
    return Pair(*(np.append(ids, tokenizer.eos_id).astype(np.int32) for ids in sides))


def even_pairs(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """At most `count` of them, evenly spread."""
    chosen = np.linspace(0, len(pairs) - 1, min(count, len(pairs))).astype(int)
    return [pairs[i] for i in chosen]


def padded(rows: Sequence[np.ndarray], fill: float) -> np.ndarray:
    """Rows of different lengths as one array, (B, T)."""
    out_BT = np.full((len(rows), max(map(len, rows))), fill, np.asarray(rows[0]).dtype)
    for row_T, out_T in zip(rows, out_BT, strict=True):
        out_T[: len(row_T)] = row_T
    return out_BT


STACKS = {
    "encoder": ("encoder", "attention"),
    "decoder": ("decoder", "attention"),
    "cross": ("decoder", "cross_attention"),
}
"""Where the parameters of each kind of attention are."""


def ablated_losses(
    inside: Inside, params: Any, model: TransformerConfig, means: Mapping[str, np.ndarray] | None = None
) -> tuple[float, dict[str, np.ndarray]]:
    """The mean loss of a pair, and the same without each head of "encoder", "decoder" and "cross", (L, H) each.

    In place of what a head writes comes nothing or, of `means` (L, H, D), a vector: the parameters are then those of
    `zerotollm.explain.ablation.with_output_biases`.
    """

    def loss(passed: BlockOutputs) -> float:
        return float(pair_scores(inside, passed.x_BTD, params, model).nats_T.mean())

    mask_BS = (np.arange(inside.sources_BS.shape[1]) < len(inside.pair.source_S))[None]
    losses = {}
    for field, (side, (stack, name)) in enumerate(STACKS.items()):
        everything = all_heads(model)
        losses[side] = np.empty(everything[field].shape)
        for i, h in np.ndindex(losses[side].shape):
            kept = all_heads(model)
            kept[field][i, h] = 0
            changed = params
            if means:
                layer = writing(params[stack][f"layer_{i}"], name, means[side][i, h])
                changed = params | {stack: params[stack] | {f"layer_{i}": layer}}
            encoded_BSD, first = inside.encoded_BSD, i
            if side == "encoder":
                _, encoded_BSD = encode(
                    changed, inside.encoder.entered[i], mask_BS, kept, model=model, first=i
                )
                first = 0
            x_BTD = inside.decoder.entered[first]
            losses[side][i, h] = loss(
                decode(changed, x_BTD, encoded_BSD, mask_BS, kept, model=model, first=first)
            )
    return loss(inside.decoder), losses


def mean_written(insides: Iterable[Inside], params: Any, model: TransformerConfig) -> dict[str, np.ndarray]:
    """What each head writes to the residual stream, in the mean over all tokens of the pairs, by side (L, H, D)."""
    sums = {side: 0.0 for side in STACKS}
    tokens = dict.fromkeys(STACKS, 0)
    for inside in insides:
        for side, (stack, name) in STACKS.items():
            passed = inside.encoder if side == "encoder" else inside.decoder
            weights_L = passed.cross if side == "cross" else passed.weights
            queries = len(inside.pair.source_S if side == "encoder" else inside.pair.target_T)
            tokens[side] += queries
            sums[side] = sums[side] + np.stack(
                [
                    written(
                        params[stack][f"layer_{i}"],
                        name,
                        inside.encoded_BSD if side == "cross" else passed.entered[i],
                        weights_1HTS[:, :, :queries],
                        model,
                        memory=side == "cross",
                    )
                    for i, weights_1HTS in enumerate(weights_L)
                ]
            )
    return {side: sums[side] / tokens[side] for side in STACKS}
