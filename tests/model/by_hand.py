"""A decoder in plain NumPy, one text and one head at a time, written from the papers' equations."""

from typing import Any

import jax
import numpy as np

from zerotollm.model.config import TransformerConfig
from zerotollm.model.layers import attention_weights, mix_values


@jax.jit
def attend(q_BHTC: jax.Array, k_BKSC: jax.Array, v_BKSC: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """Return the plain attention of the model, (B, H, T, C)."""
    return mix_values(attention_weights(q_BHTC, k_BKSC, mask_BTS), v_BKSC)


def softmax(x_TS: np.ndarray) -> np.ndarray:
    e_TS = np.exp(x_TS - x_TS.max(-1, keepdims=True))
    return e_TS / e_TS.sum(-1, keepdims=True)


def norm(p: dict[str, np.ndarray], x_TD: np.ndarray, config: TransformerConfig) -> np.ndarray:
    """RMSNorm (arXiv:1910.07467, equation 4) or LayerNorm (arXiv:1607.06450, equation 4)."""
    if config.norm == "layer":
        x_TD = x_TD - x_TD.mean(-1, keepdims=True)
    y_TD = x_TD / np.sqrt((x_TD**2).mean(-1, keepdims=True) + config.norm_epsilon) * p["scale"]
    return y_TD + p["bias"] if config.norm == "layer" else y_TD


def rope(x_TC: np.ndarray, config: TransformerConfig, positions_T: np.ndarray | None = None) -> np.ndarray:
    """Turn each pair (i, i + C/2), a complex number, by position x theta^(-2i/C) (arXiv:2104.09864, equation 13).

    Wavelengths above `rope_original_length` are `rope_factor` times as long, those below a quarter of it are not.
    """
    T, C = x_TC.shape
    positions_T = np.arange(T) if positions_T is None else positions_T
    frequencies, original = config.rope_theta ** (-2 * np.arange(C // 2) / C), config.rope_original_length
    for i, frequency in enumerate(frequencies):
        wavelength = 2 * np.pi / frequency
        if wavelength > original:
            frequencies[i] = frequency / config.rope_factor
        elif wavelength > original / 4:
            kept = (original / wavelength - 1) / 3
            frequencies[i] = kept * frequency + (1 - kept) * frequency / config.rope_factor
    angles = positions_T[:, None] * frequencies
    turned = (x_TC[:, : C // 2] + 1j * x_TC[:, C // 2 :]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def project(p: dict[str, np.ndarray], name: str, x_TX: np.ndarray) -> np.ndarray:
    return x_TX @ p[name] + p.get(f"{name}_bias", 0.0)


def attention(
    p: dict[str, Any],
    x_TD: np.ndarray,
    y_SD: np.ndarray,
    mask_TS: np.ndarray,
    config: TransformerConfig,
    turned: bool,
) -> np.ndarray:
    """Equation 1 of arXiv:1706.03762, head by head; query head h reads key head h // (H / K) (arXiv:2305.13245)."""
    q, k, v = project(p, "query", x_TD), project(p, "key", y_SD), project(p, "value", y_SD)
    E, C, mixed = config.key_width, config.head_width, []
    for h in range(config.num_heads):
        g = h // (config.num_heads // config.num_kv_heads)
        q_TE, k_SE, v_SC = q[:, h * E : (h + 1) * E], k[:, g * E : (g + 1) * E], v[:, g * C : (g + 1) * C]
        if config.qk_norm:
            q_TE, k_SE = norm(p["query_norm"], q_TE, config), norm(p["key_norm"], k_SE, config)
        if turned:
            q_TE, k_SE = rope(q_TE, config), rope(k_SE, config)
        mixed.append(softmax(np.where(mask_TS, q_TE @ k_SE.T / np.sqrt(E), -1e30)) @ v_SC)
    return project(p, "output", np.concatenate(mixed, -1))


def feed_forward(p: dict[str, np.ndarray], x_TD: np.ndarray, config: TransformerConfig) -> np.ndarray:
    up_TF = project(p, "up", x_TD)

    def silu(x):
        return x / (1 + np.exp(-x))

    hidden_TF = {
        "swiglu": lambda: silu(project(p, "gate", x_TD)) * up_TF,
        "gelu": lambda: 0.5 * up_TF * (1 + np.tanh(np.sqrt(2 / np.pi) * (up_TF + 0.044715 * up_TF**3))),
        "relu": lambda: np.maximum(up_TF, 0),
        "relu2": lambda: np.maximum(up_TF, 0) ** 2,
        "silu": lambda: silu(up_TF),
    }[config.feed_forward]()
    return project(p, "down", hidden_TF)


def sinusoids(length: int, config: TransformerConfig) -> np.ndarray:
    angles = np.arange(length)[:, None] / 10000 ** (np.arange(0, config.width, 2) / config.width)
    axis = -1 if config.sinusoid_layout == "interleaved" else 1
    return np.stack([np.sin(angles), np.cos(angles)], axis).reshape(length, config.width)


def logits(params: dict[str, Any], config: TransformerConfig, tokens_T: np.ndarray) -> np.ndarray:
    """Logits (T, V) after each token of one text."""
    T = len(tokens_T)
    embedded_TD = params["embedding"][tokens_T]
    x_TD = embedded_TD.copy()
    for n in range(1, config.token_shift + 1):
        x_TD[n:] += params["token_shift"]["weights"][n - 1] * embedded_TD[: T - n]
    if config.embedding_scale:
        x_TD = x_TD * np.sqrt(config.width)
    if config.position == "sinusoidal":
        x_TD = x_TD + sinusoids(T, config)
    elif config.position == "learned":
        x_TD = x_TD + params["positions"][:T]
    past_TT = np.tril(np.ones((T, T), bool))
    for i in range(config.num_layers):
        p = params[f"layer_{i}"]
        turned = config.position == "rope" and not (config.nope_every and (i + 1) % config.nope_every == 0)
        for name, sublayer in (
            ("attention", lambda x, p=p, turned=turned: attention(p["attention"], x, x, past_TT, config, turned)),
            ("feed_forward", lambda x, p=p: feed_forward(p["feed_forward"], x, config)),
        ):  # fmt: skip
            if config.norm_position == "pre":
                x_TD = x_TD + sublayer(norm(p[f"{name}_norm"], x_TD, config))
            else:
                x_TD = norm(p[f"{name}_norm"], x_TD + sublayer(x_TD), config)
    if config.norm_position == "pre":
        x_TD = norm(params["final_norm"], x_TD, config)
    head_DV = params.get("classifier", params.get("head", params["embedding"].T))
    logits_TV = x_TD @ head_DV
    cap = config.logit_soft_cap
    return cap * np.tanh(logits_TV / cap) if cap else logits_TV
