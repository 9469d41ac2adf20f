"""What goes on inside a model: the model's own forward pass, with what it sows. Axes as in `model/transformer.py`.

There is no second implementation of the model here. `Transformer` sows attention weights and the residual stream
into a collection that is there only for who asks.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zerotollm.data.tokenizer import Tokenizer
from zerotollm.model.config import TransformerConfig
from zerotollm.model.layers import Norm
from zerotollm.model.transformer import Transformer, head_logits

ROWS = 8
"""Windows that go through the model at once."""
LONGEST = 512
"""Tokens of a window that is looked into, at most: attention weights grow with the square."""


class Activations(NamedTuple):
    """Of B windows; M = L + 1 places of the residual stream: the embedding of the token alone, and after each block."""

    logits_BTV: jax.Array
    residual_MBTD: jax.Array
    final_BTD: jax.Array
    """what the head reads"""
    weights_LBHTS: jax.Array
    """attention: how much query t takes from position s"""


class Scores(NamedTuple):
    """How the token after each of B windows' T tokens was predicted."""

    nats_BT: np.ndarray
    """cross-entropy"""
    confidence_BT: np.ndarray
    """probability of the likeliest token"""
    correct_BT: np.ndarray
    """whether that is the one that came"""
    entropy_BT: np.ndarray
    """of the prediction, nats"""


@partial(jax.jit, static_argnames="model")
def activations(
    params: Any, tokens_BT: jax.Array, segments_BT: jax.Array | None = None, *, model: TransformerConfig
) -> Activations:
    """One forward pass of a decoder in float32. `segments_BT` as `Transformer` takes them."""
    logits_BTV, kept = Transformer(model).apply(
        {"params": params}, tokens_BT, segments_BT, mutable=["intermediates"]
    )
    sown = kept["intermediates"]
    layers = [sown[f"layer_{i}"] for i in range(model.num_layers)]
    return Activations(
        logits_BTV,
        jnp.stack([sown["embedded_BTD"][0], *(layer["x_BTD"][0] for layer in layers)]),
        sown["final_BTD"][0],
        jnp.stack([layer["attention"]["weights_BHTS"][0] for layer in layers]),
    )


def look_inside(params: Any, model: TransformerConfig, tokens_T: np.ndarray) -> Activations:
    """`activations` of one text, B = 1, as numpy arrays.

    All texts and windows share one compiled program, or two where the context is above `LONGEST`: padding on the
    right changes nothing in a causal model, and is cut off again.
    """
    T, short = len(tokens_T), min(model.max_length, LONGEST)
    padded_T = np.pad(tokens_T, (0, (short if short >= T else model.max_length) - T)).astype(np.int32)
    seen = activations(params, padded_T[None], model=model)
    return Activations(
        *(np.asarray(x)[..., :T, :] for x in seen[:3]), np.asarray(seen.weights_LBHTS)[..., :T, :T]
    )


def head_matrix(params: Any, model: TransformerConfig) -> jax.Array:
    """The matrix that turns a state into logits, (D, V)."""
    return params["embedding"].T if model.tie_embeddings else params["head"]


def read_out(params: Any, x_BTD: jax.Array, *, model: TransformerConfig) -> jax.Array:
    """Logits (B, T, V) of any place of the residual stream, as if the blocks after it were left out."""
    if model.norm_position == "pre":
        x_BTD = Norm(model).apply({"params": params["final_norm"]}, x_BTD)
    return head_logits(model, x_BTD, head_matrix(params, model))


def without_heads(params: Any, kept_LH: jax.Array, *, model: TransformerConfig) -> dict[str, Any]:
    """Parameters of a model without the attention heads whose `kept_LH` is 0: zero ablation, by their rows of the
    `output` matrices (Michel et al. 2019, arXiv:1905.10650)."""
    params = dict(params)
    for i in range(model.num_layers):
        layer = params[f"layer_{i}"]
        rows_Y1 = jnp.repeat(kept_LH[i], model.head_width)[:, None]
        attention = layer["attention"] | {"output": layer["attention"]["output"] * rows_Y1}
        params[f"layer_{i}"] = layer | {"attention": attention}
    return params


@partial(jax.jit, static_argnames="model")
def _score(params, windows_BW, kept_LH, *, model):
    params = without_heads(params, kept_LH, model=model)
    logits_BTV = Transformer(model).apply({"params": params}, windows_BW[:, :-1])
    log_p_BTV = jax.nn.log_softmax(logits_BTV, axis=-1)
    targets_BT = windows_BW[:, 1:]
    nats_BT = -jnp.take_along_axis(log_p_BTV, targets_BT[..., None], axis=-1)[..., 0]
    entropy_BT = -jnp.sum(jnp.exp(log_p_BTV) * log_p_BTV, axis=-1)
    return nats_BT, jnp.exp(log_p_BTV.max(-1)), log_p_BTV.argmax(-1) == targets_BT, entropy_BT


def score_windows(
    params: Any, windows_BW: np.ndarray, *, model: TransformerConfig, kept_LH: np.ndarray | None = None
) -> Scores:
    """Every prediction in windows of T + 1 tokens, `ROWS` windows at a time; heads where `kept_LH` is 0 are out."""
    if kept_LH is None:
        kept_LH = np.ones((model.num_layers, model.num_heads), np.float32)
    B = len(windows_BW)
    padded_BW = windows_BW[np.arange(-(-B // ROWS) * ROWS) % B] if B > ROWS else windows_BW
    parts = [
        _score(params, padded_BW[start : start + ROWS], kept_LH, model=model)
        for start in range(0, len(padded_BW), ROWS)
    ]
    return Scores(*(np.concatenate(arrays)[:B] for arrays in zip(*parts, strict=True)))


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
