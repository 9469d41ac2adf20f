"""Options of precision, memory and speed. No heavy imports: the command line reads this file."""

from dataclasses import dataclass, replace
from typing import Literal

from zerotollm.errors import UsageError

SMALL_CONTEXT = 512
"""Longest context, in tokens, with plain attention under `auto`: smaller programs, and no slower."""
SMALL_LOGITS = 2**26
"""Most logits of a micro-batch with plain cross-entropy under `auto`: 256 MiB, and as much for their gradients."""

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class ComputeConfig:
    """Precision and memory. These fields change results by no more than rounding (and the draws of dropout)."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """type of activations and matrix products; weights, norms, softmax and losses stay float32, and float16 scales the
    loss (arXiv:1710.03740). auto: bfloat16 on NVIDIA Ampere and later, float16 on Volta and Turing, else float32; for
    an encoder-decoder always float32, in which its recipes were measured"""
    attention: Literal["auto", "plain", "chunked", "cudnn"] = "auto"
    """plain stores all attention scores, chunked never does (arXiv:2112.05682), cudnn is NVIDIA's kernel for half
    precision, from Ampere on. auto: cudnn if possible, else plain up to 512 tokens and chunked above; an
    encoder-decoder has plain only"""
    cross_entropy: Literal["auto", "plain", "chunked"] = "auto"
    """chunked never stores all logits, nor their gradient. auto: plain for logits below 256 MiB"""
    remat: Literal["none", "dots", "full"] = "none"
    """activations that the backward pass recomputes (arXiv:1604.06174): none, all but matrix products, or every block;
    on a CPU this implies scan_layers, without which it saves no memory there"""
    scan_layers: bool = False
    """compile one block in a loop over layers: compile time hardly grows with depth, and steps are a little slower"""


PLAIN = ComputeConfig(precision="float32", attention="plain", cross_entropy="plain")
"""Everything in float32, with all scores and logits stored."""


@dataclass(frozen=True)
class Accelerator:
    """The properties of a device that `auto` depends on."""

    platform: str
    """jax's name: cpu, gpu, tpu"""
    capability: float = 0.0
    """CUDA compute capability, 7.5 for Turing; 0: no CUDA device"""
    kind: str = ""
    """its maker's name for it"""

    def half(self) -> Precision:
        """Return the type in which its matrix units are fast."""
        if self.platform == "tpu" or self.capability >= 8.0:
            return "bfloat16"
        return "float16" if self.capability >= 7.0 else "float32"

    def has_flash(self) -> bool:
        """Return whether cuDNN's fused attention runs here."""
        return self.platform == "gpu" and self.capability >= 8.0


def resolve(
    config: ComputeConfig,
    accelerator: Accelerator,
    *,
    rows: int,
    context: int,
    vocab_size: int,
    masked: bool,
    even: bool = True,
    pairs: bool = False,
) -> ComputeConfig:
    """Return the configuration with every `auto` replaced, for micro-batches of `rows` windows. Idempotent.

    cuDNN's kernel cannot keep attention within a document (`masked`), and needs keys as wide as values (`even`).
    `pairs`: an encoder-decoder, whose attention is plain. Raises UsageError if the accelerator lacks what is asked for.
    """
    half = "float32" if pairs else accelerator.half()
    precision = half if config.precision == "auto" else config.precision
    flash = accelerator.has_flash() and precision != "float32" and not masked and even
    attention = "plain" if pairs else config.attention
    if attention == "auto":
        attention = "cudnn" if flash else "plain" if context <= SMALL_CONTEXT else "chunked"
    elif attention == "cudnn" and not flash:
        if masked:
            reason = "cannot keep attention within a document"
        elif not even:
            reason = "needs keys as wide as values"
        elif accelerator.has_flash():
            reason = "computes in half precision"
        else:
            reason = (
                f"needs an NVIDIA GPU from Ampere on, and this is {accelerator.kind or accelerator.platform}"
            )
        raise UsageError(f"compute.attention cudnn {reason}: take auto or chunked")
    cross_entropy = config.cross_entropy
    if cross_entropy == "auto":
        cross_entropy = "plain" if rows * context * vocab_size <= SMALL_LOGITS else "chunked"
    # XLA's CPU backend merges recomputed activations with stored ones and saves no memory, unless layers are a loop.
    scan = config.scan_layers or (accelerator.platform == "cpu" and config.remat != "none")
    return replace(
        config, precision=precision, attention=attention, cross_entropy=cross_entropy, scan_layers=scan
    )
