"""Activations of a model on texts and on pairs: residual streams, attention weights, logits. Axes as in
`model/transformer.py`; M = L + 1 states of a residual stream: the token embedding, then the output of each block.

The model's own modules compute them. A model without blocks returns the input of the first block, `Block` is applied
layer by layer, and `read_out` applies the final norm and the head. One compiled block serves all layers and nearly all
texts, which are padded to one length. When layer i changes, only the layers from i on are computed again.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.model.blocks import Block, EncoderOutput, rope_positions
from zerotollm.model.build import build_net
from zerotollm.model.config import TransformerConfig
from zerotollm.model.layers import Norm
from zerotollm.model.transformer import Inputs, Readout, causal_mask
from zerotollm.training.lora import Params
from zerotollm.types import Json, PyTree

LONGEST = 512
"""Maximum tokens of a window, because attention weights grow with the square of its length."""
ATTENTION = {
    "": ("", "attention"),
    "encoder": ("encoder", "attention"),
    "decoder": ("decoder", "attention"),
    "cross": ("decoder", "cross_attention"),
}
"""Kind of attention -> the stack of blocks that has it, and its module's name. A decoder-only model has the kind "",
whose stack, also called "", lies at the top of its parameters."""


class LanguageModel(NamedTuple):
    """A model to explain."""

    params: Params
    config: TransformerConfig
    tokenizer: AnyTokenizer
    document_bos: int | None = None
    """the id that starts a document, if attention stays inside documents (`data.document_mask`)"""


class Activations(NamedTuple):
    """Activations of a decoder on the T tokens of one text."""

    logits_TV: np.ndarray
    final_TD: np.ndarray
    """the head's input"""
    residual_MTD: np.ndarray
    weights_LHTS: np.ndarray
    """attention of query t to position s; rows sum to 1"""


class Scores(NamedTuple):
    """Quality of the predictions of T tokens in each of B windows."""

    nats_BT: np.ndarray
    """cross-entropy"""
    confidence_BT: np.ndarray
    """probability of the likeliest token"""
    correct_BT: np.ndarray
    """whether the likeliest token is the target"""


class Reading(NamedTuple):
    """Output of the final norm and the head for any state of the residual stream."""

    logits_BTV: jax.Array
    final_BTD: jax.Array
    """the head's input"""
    nats_BT: jax.Array
    """cross-entropy of the targets"""
    best_BT: jax.Array
    """ids of the likeliest tokens"""
    confidence_BT: jax.Array
    """their probabilities"""
    probability_BT: jax.Array
    """probability of the id `token_id`"""


class BlockOutputs(NamedTuple):
    """Activations of consecutive blocks of a stack."""

    states: list[jax.Array]
    """(B, T, D) each: the input of the first block, then the output of each"""
    weights: dict[str, list[jax.Array]]
    """name of the attention module -> (B, H, T, S) of each block"""


class Row(NamedTuple):
    """Padded input of one forward pass: windows of a text side by side, or one pair of a source and a target."""

    tokens_1S: np.ndarray
    """the decoder's input"""
    targets_1S: np.ndarray
    windows: int
    length: int
    """tokens of each window"""
    segments_1S: np.ndarray | None = None
    """for a decoder-only model: tokens attend only to their own segment"""
    source_1S: np.ndarray | None = None
    """for an encoder-decoder: the encoder's input"""
    source_length: int = 0

    def split(self, x_1S: jax.Array | np.ndarray) -> np.ndarray:
        """Return the values of each window, (windows, length)."""
        return np.asarray(x_1S)[0, : self.windows * self.length].reshape(self.windows, self.length)


@dataclass(frozen=True)
class Recording:
    """All activations of one row."""

    params: Params
    model: TransformerConfig
    row: Row
    mask_1TS: jax.Array
    """of the decoder's self-attention"""
    stacks: dict[str, BlockOutputs]
    """by the names in `ATTENTION`, the decoder last"""
    encoder_output: EncoderOutput | None = None

    def layers(self, stack: str) -> Params:
        """Return the parameters of a stack."""
        return self.params[stack] if stack else self.params

    def lengths(self, kind: str) -> tuple[int, int]:
        """Return the number of queries and of keys of an attention without padding."""
        source, target = self.row.source_length, self.row.windows * self.row.length
        return (source if kind == "encoder" else target, target if kind in ("", "decoder") else source)

    def residual(self, stack: str, span: slice | None = None) -> np.ndarray:
        """Return the residual stream of a stack, (M, tokens, D), at the tokens of `span` or at all but padding."""
        tokens_1S = self.row.source_1S if stack == "encoder" else self.row.tokens_1S
        span = span or slice(self.lengths(stack)[0])
        states = (self.params["embedding"][tokens_1S], *self.stacks[stack].states[1:])
        return np.stack([np.asarray(x_1SD)[0, span] for x_1SD in states])

    def weights(self, kind: str, span: slice | None = None) -> np.ndarray:
        """Return attention weights, (L, H, queries, keys), between the tokens of `span` or all but padding."""
        stack, name = ATTENTION[kind]
        queries, keys = (span, span) if span else map(slice, self.lengths(kind))
        weights = self.stacks[stack].weights[name]
        return np.stack([np.asarray(x_1HTS)[0, :, queries, keys] for x_1HTS in weights])

    def decoder_activations(self, tokens: int) -> Activations:
        """Return the activations of the decoder on its first tokens."""
        stack, span = [*self.stacks][-1], slice(tokens)
        logits_1SV, final_1SD, *_ = self._read_out()
        final_TD = np.asarray(final_1SD)[0, span]
        return Activations(
            np.asarray(logits_1SV)[0, span], final_TD, self.residual(stack, span), self.weights(stack, span)
        )

    def scores(self, x_1SD: jax.Array | None = None) -> Scores:
        """Return the scores of each window, by default for the recorded output of the last block."""
        reading = self._read_out(x_1SD)
        correct_1S = np.asarray(reading.best_BT) == self.row.targets_1S
        columns = (reading.nats_BT, reading.confidence_BT, correct_1S)
        return Scores(*(self.row.split(x_1S) for x_1S in columns))

    def _read_out(self, x_1SD: jax.Array | None = None) -> Reading:
        x_1SD = [*self.stacks.values()][-1].states[-1] if x_1SD is None else x_1SD
        return read_out(self.params, x_1SD, self.row.targets_1S, model=self.model)

    def run_changed(self, stack: str, i: int, layer: Params) -> jax.Array:
        """Return the output of the last block, (1, S, D), of the same model with another layer i in a stack."""
        layers = self.layers(stack) | {f"layer_{i}": layer}
        x_1SD, encoder_output = self.stacks[stack].states[i], self.encoder_output
        if stack == "encoder" and encoder_output is not None:
            mask_1S = encoder_output.mask_BS
            _, encoder_output = _run_encoder(layers, x_1SD, mask_1S, model=self.model, first=i)
            layers, x_1SD, i = self.layers("decoder"), self.stacks["decoder"].states[0], 0
        blocks = _run_blocks(layers, x_1SD, self.mask_1TS, encoder_output, model=self.model, first=i)
        return blocks.states[-1]

    def run_from(self, i: int, x_BSD: jax.Array, layer: Params | None = None) -> jax.Array:
        """Return the output of the decoder's last block, (B, S, D), for other inputs of block i, or another block i."""
        stack = [*self.stacks][-1]
        layers = self.layers(stack)
        if layer is not None:
            layers = layers | {f"layer_{i}": layer}
        blocks = _run_blocks(layers, x_BSD, self.mask_1TS, self.encoder_output, model=self.model, first=i)
        return blocks.states[-1]

    def head_outputs(self, kind: str) -> np.ndarray:
        """Return the sum over the row's tokens of each head's output, (L, H, D), for parameters with output biases."""
        stack, (queries, _) = ATTENTION[kind][0], self.lengths(kind)
        layers = range(len(self.stacks[stack].states) - 1)
        sums = (self.token_head_outputs(kind, i)[:, :queries].sum(1) for i in layers)
        return np.stack([np.asarray(output_HD, np.float64) for output_HD in sums])

    def token_head_outputs(self, kind: str, i: int) -> jax.Array:
        """Return each head's output at each token in layer i, (H, T, D), for parameters with output biases."""
        stack, name = ATTENTION[kind]
        H, C = self.model.num_heads, self.model.head_width
        layer = self.layers(stack)[f"layer_{i}"]
        x_1SD: Any = self.stacks[stack].states[i]
        if kind == "cross" and self.encoder_output is not None:
            x_1SD = self.encoder_output.encoded_BSD
        elif self.model.norm_position == "pre":
            x_1SD = Norm(self.model).apply({"params": layer[f"{name}_norm"]}, x_1SD)
        attention = layer[name]
        values_SX = x_1SD[0] @ attention["value"] + attention["value_bias"][None]
        values_SKC = values_SX.reshape(len(values_SX), -1, C)
        values_SHC = jnp.repeat(values_SKC, H // values_SKC.shape[1], axis=1)
        mixed_HTC = jnp.einsum("hts,shc->htc", self.stacks[stack].weights[name][i][0], values_SHC)
        return jnp.einsum("htc,hcd->htd", mixed_HTC, attention["output"].reshape(H, C, -1))


def record(params: Params, model: TransformerConfig, row: Row) -> Recording:
    """Run the model on one row and keep all activations."""
    S = row.tokens_1S.shape[1]
    if row.source_1S is None:
        mask_1TS = causal_mask(jnp.asarray(row.segments_1S), S)
        sown = _first_inputs(params, {"inputs": row.tokens_1S, "segments": row.segments_1S}, model=model)
        blocks = _run_blocks(params, sown["entering_BTD"][0], mask_1TS, model=model)
        return Recording(params, model, row, mask_1TS, {"": blocks})
    mask_1TS, mask_1S = causal_mask(None, S), jnp.asarray(np.arange(S) < row.source_length)[None]
    inputs = {"sources": row.source_1S, "source_mask": mask_1S, "inputs": row.tokens_1S}
    sown = _first_inputs(params, inputs, model=model)
    x_1SD, x_1TD = (sown[stack]["entering_BTD"][0] for stack in ("encoder", "decoder"))
    encoder, encoder_output = _run_encoder(params["encoder"], x_1SD, mask_1S, model=model)
    decoder = _run_blocks(params["decoder"], x_1TD, mask_1TS, encoder_output, model=model)
    return Recording(params, model, row, mask_1TS, {"encoder": encoder, "decoder": decoder}, encoder_output)


@partial(jax.jit, static_argnames="model")
def _first_inputs(params: Params, inputs: Inputs, *, model: TransformerConfig) -> PyTree:
    """Return what a model without blocks sows: `entering_BTD`, the input of the first block of each stack."""
    bare = build_net(model).clone(config=replace(model, num_layers=0, encoder_layers=0))
    _, sown = bare.apply({"params": params}, inputs, mutable=["intermediates"])
    return sown["intermediates"]


@partial(jax.jit, static_argnames="model")
def _run_block(
    layer: Params,
    x_BTD: jax.Array,
    mask_BTS: jax.Array,
    encoder_output: EncoderOutput | None,
    i: int,
    *,
    model: TransformerConfig,
) -> tuple[jax.Array, PyTree]:
    """Return the output of block `i` and what it sows: `weights_BHTS` of each of its attention modules."""
    positions_1T = rope_positions(model, i, jnp.arange(x_BTD.shape[1])[None])
    options: Json = {"deterministic": True, "encoder": encoder_output, "mutable": ["intermediates"]}
    (x_BTD, _), sown = Block(model).apply({"params": layer}, x_BTD, mask_BTS, positions_1T, **options)
    return x_BTD, sown["intermediates"]


def _run_blocks(
    layers: Params,
    x_BTD: jax.Array,
    mask_BTS: jax.Array,
    encoder_output: EncoderOutput | None = None,
    *,
    model: TransformerConfig,
    first: int = 0,
) -> BlockOutputs:
    """Run the blocks of a stack from layer `first` on, whose input is `x_BTD`."""
    states, sown = [x_BTD], []
    for i in range(first, sum(name.startswith("layer_") for name in layers)):
        x_BTD, intermediates = _run_block(
            layers[f"layer_{i}"], x_BTD, mask_BTS, encoder_output, i, model=model
        )
        states.append(x_BTD)
        sown.append(intermediates)
    names = ("attention", "cross_attention")[: 1 if encoder_output is None else 2]
    return BlockOutputs(states, {name: [block[name]["weights_BHTS"][0] for block in sown] for name in names})


def _run_encoder(
    layers: Params, x_BSD: jax.Array, mask_BS: jax.Array, *, model: TransformerConfig, first: int = 0
) -> tuple[BlockOutputs, EncoderOutput]:
    blocks = _run_blocks(layers, x_BSD, mask_BS[:, None], model=model, first=first)
    encoded_BSD = blocks.states[-1]
    if "final_norm" in layers:
        encoded_BSD = _norm(layers["final_norm"], encoded_BSD, model=model)
    return blocks, EncoderOutput(mask_BS, encoded_BSD)


@partial(jax.jit, static_argnames="model")
def _norm(norm: Params, x_BTD: jax.Array, *, model: TransformerConfig) -> PyTree:
    return Norm(model).apply({"params": norm}, x_BTD)


@partial(jax.jit, static_argnames="model")
def _read_out(
    params: Params,
    x_BTD: jax.Array,
    targets_BT: jax.Array,
    num_ids: int,
    token_id: int,
    *,
    model: TransformerConfig,
) -> Reading:
    if model.norm_position == "pre":
        x_BTD = _norm(params["final_norm"], x_BTD, model=model)
    head = head_matrix(params, model), params.get("head_bias"), model.logit_soft_cap
    logits_BTV = Readout(x_BTD, *head).logits()
    known_BTV = jnp.where((jnp.arange(logits_BTV.shape[-1]) < num_ids)[None, None], logits_BTV, -jnp.inf)
    top_BT = known_BTV.max(-1)
    total_BT = top_BT + jnp.log(jnp.exp(known_BTV - top_BT[..., None]).sum(-1))
    target_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    probability_BT = jnp.exp(logits_BTV[..., token_id] - total_BT)
    best_BT, confidence_BT = known_BTV.argmax(-1), jnp.exp(top_BT - total_BT)
    return Reading(logits_BTV, x_BTD, total_BT - target_BT, best_BT, confidence_BT, probability_BT)


def read_out(
    params: Params,
    x_BTD: jax.Array | np.ndarray,
    targets_BT: np.ndarray,
    *,
    model: TransformerConfig,
    num_ids: int | None = None,
    token_id: int = 0,
) -> Reading:
    """Apply the final norm and the head to any state of the residual stream, without the blocks after it.

    Probabilities are over the first `num_ids` ids, by default over all. That of `token_id` is returned too.
    """
    names = ("embedding", "head", "head_bias", "final_norm")
    candidates = params.get("decoder", {}) | params
    head = {name: candidates[name] for name in names if name in candidates}
    if isinstance(params["embedding"], jax.Array):
        # jit compiles again for an array that is not committed to a device.
        x_BTD = jax.device_put(x_BTD, params["embedding"].sharding)
    ids = np.int32(model.vocab_size if num_ids is None else num_ids), np.int32(token_id)
    return _read_out(head, x_BTD, targets_BT, *ids, model=model)


def head_matrix(params: Params, model: TransformerConfig) -> jax.Array:
    """Return the matrix that maps a state to logits, (D, V)."""
    return params["embedding"].T if model.tie_embeddings else params["head"]


def row_length(tokens: int, model: TransformerConfig) -> int:
    """Return the padded length of a text: `LONGEST`, or the next power of two for longer texts, since attention weights
    grow with the square. Few lengths mean few compiled programs."""
    return min(model.max_length, max(LONGEST, 1 << (tokens - 1).bit_length()))


def record_text(lm: LanguageModel, tokens_T: np.ndarray) -> Activations:
    """Return the activations of a decoder-only model on one text."""
    T = len(tokens_T)
    tokens_1S = np.pad(tokens_T, (0, row_length(T, lm.config) - T)).astype(np.int32)[None]
    row = Row(tokens_1S, np.zeros_like(tokens_1S), 1, T, np.zeros_like(tokens_1S))
    return record(lm.params, lm.config, row).decoder_activations(T)


class Window(NamedTuple):
    """One window of T + 1 tokens, with its scores and activations, which are copied only on request."""

    scores: Scores
    recording: Recording
    span: slice
    """of its T inputs in the row"""

    def residual(self) -> np.ndarray:
        """Return the residual stream, (M, T, D)."""
        return self.recording.residual("", self.span)

    def weights(self) -> np.ndarray:
        """Return attention weights, (L, H, T, T)."""
        return self.recording.weights("", self.span)


def record_rows(lm: LanguageModel, windows_BW: np.ndarray) -> Iterator[Recording]:
    """Run a decoder-only model on windows of T + 1 tokens, as many side by side as fit into a row.

    Windows do not attend to each other, and neither do documents if the model has a `document_bos`.
    """
    T = windows_BW.shape[1] - 1
    S = row_length(T, lm.config)
    for start in range(0, len(windows_BW), S // T):
        rows_BW = windows_BW[start : start + S // T].astype(np.int32)
        padding = (0, S - rows_BW[:, :-1].size)
        tokens_1S, targets_1S = (np.pad(x.ravel(), padding)[None] for x in (rows_BW[:, :-1], rows_BW[:, 1:]))
        first_1S = (np.arange(S) % T == 0)[None]
        if lm.document_bos is not None:
            first_1S = first_1S | (tokens_1S == lm.document_bos)
        segments_1S = np.cumsum(first_1S, axis=1, dtype=np.int32) - 1
        yield record(lm.params, lm.config, Row(tokens_1S, targets_1S, len(rows_BW), T, segments_1S))


def record_windows(lm: LanguageModel, windows_BW: np.ndarray) -> Iterator[Window]:
    """Yield windows of T + 1 tokens one by one, as attention weights take most memory; see `record_rows`."""
    T = windows_BW.shape[1] - 1
    for recording in record_rows(lm, windows_BW):
        scores = recording.scores()
        for b in range(recording.row.windows):
            window_scores = Scores(*(x_BT[b : b + 1] for x_BT in scores))
            yield Window(window_scores, recording, slice(b * T, (b + 1) * T))


def score_windows(lm: LanguageModel, windows_BW: np.ndarray) -> Scores:
    """Return the scores of a decoder-only model in windows of T + 1 tokens; see `record_rows`."""
    return concatenate_scores(recording.scores() for recording in record_rows(lm, windows_BW))


def concatenate_scores(parts: Iterable[Scores]) -> Scores:
    """Return the scores of several groups of windows as one."""
    return Scores(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def even_windows(tokens_N: np.ndarray, length: int, count: int) -> np.ndarray:
    """Return at most `count` windows of `length` + 1 tokens, evenly spread over a text without overlap.

    Returns (B, T + 1) int32. A text too short for one window is one shorter window.
    """
    T = min(length, len(tokens_N) - 1)
    possible = max(1, len(tokens_N) // (T + 1))
    starts_B = np.linspace(0, len(tokens_N) - T - 1, min(count, possible)).astype(np.int64)
    return np.asarray(tokens_N)[starts_B[:, None] + np.arange(T + 1)].astype(np.int32)


def text_tokens(tokenizer: AnyTokenizer, text: str, longest: int) -> tuple[np.ndarray, bool]:
    """Return the last `longest` tokens of bos and a text, (T,), and whether some were cut."""
    tokens_T = np.concatenate([[tokenizer.bos_id], tokenizer.encode(text)]).astype(np.int32)
    return tokens_T[-longest:], len(tokens_T) > longest
