"""How the numbers of a model are computed: the same ones, in less memory or time. No heavy imports."""

from dataclasses import dataclass, replace
from typing import Literal

from zerotollm.errors import UsageError

SMALL_CONTEXT = 512
"""Up to so many tokens, `auto` attention holds all scores: smaller programs, and no slower."""
SMALL_LOGITS = 2**26
"""Numbers. `auto` cross-entropy holds all logits of a micro-batch up to here: 256 MiB, and again for gradients."""


@dataclass(frozen=True)
class ComputeConfig:
    """Precision and memory. Nothing here changes what is computed by more than rounding (and dropout's draws)."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """of activations and matrix products; weights, norms, softmax and losses stay float32, and float16 scales the
    loss (arXiv:1710.03740). auto: bfloat16 on NVIDIA Ampere and later, float16 on Volta and Turing, else float32, which
    an encoder-decoder has everywhere: its recipes were measured in it"""
    attention: Literal["auto", "plain", "chunked", "cudnn"] = "auto"
    """plain holds all scores, chunked never does (arXiv:2112.05682), cudnn is NVIDIA's kernel, from Ampere on, for
    half precision. auto: cudnn where it can be, else plain up to 512 tokens and chunked above; plain alone for an
    encoder-decoder"""
    cross_entropy: Literal["auto", "plain", "chunked"] = "auto"
    """chunked never holds all logits, nor their gradient. auto: plain where logits are below 256 MiB"""
    remat: Literal["none", "dots", "full"] = "none"
    """what the backward pass computes again instead of keeping: nothing, all but matrix products, or every block
    (arXiv:1604.06174); on a CPU it implies scan_layers, without which it would save nothing there"""
    scan_layers: bool = False
    """one compiled block in a loop over layers: compile time that hardly grows with depth, some speed lost"""


PLAIN = ComputeConfig(precision="float32", attention="plain", cross_entropy="plain")
"""Every number in float32 and held."""


@dataclass(frozen=True)
class Accelerator:
    """What a choice depends on."""

    platform: str
    """jax's: cpu, gpu, tpu"""
    capability: float = 0.0
    """CUDA compute capability, 7.5 for Turing; 0 where there is none"""
    kind: str = ""
    """its maker's name for it"""

    def half(self) -> Literal["float32", "bfloat16", "float16"]:
        """The type in which its matrix units are fast."""
        if self.platform == "tpu" or self.capability >= 8.0:
            return "bfloat16"
        return "float16" if self.capability >= 7.0 else "float32"

    def has_flash(self) -> bool:
        """Whether cuDNN's fused attention runs here."""
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
    """The same configuration with every `auto` replaced, for micro-batches of `rows` windows.

    `masked`: attention stays inside a document, which cuDNN's kernel cannot, as it cannot have keys of another width
    than values (`even`). `pairs`: of an encoder-decoder, whose attention is plain. Resolving twice changes nothing.
    Raises UsageError where the accelerator cannot do what is asked.
    """
    half = "float32" if pairs else accelerator.half()
    precision = half if config.precision == "auto" else config.precision
    flash = accelerator.has_flash() and precision != "float32" and not masked and even
    attention = "plain" if pairs else config.attention
    if attention == "auto":
        attention = "cudnn" if flash else "plain" if context <= SMALL_CONTEXT else "chunked"
    elif attention == "cudnn" and not flash:
        reason = (
            "keeps attention inside no document"
            if masked
            else "needs keys as wide as values"
            if not even
            else "computes in half precision"
            if accelerator.has_flash()
            else f"needs an NVIDIA GPU from Ampere on, and this is {accelerator.kind or accelerator.platform}"
        )
        raise UsageError(f"compute.attention cudnn {reason}: take auto or chunked")
    cross_entropy = config.cross_entropy
    if cross_entropy == "auto":
        cross_entropy = "plain" if rows * context * vocab_size <= SMALL_LOGITS else "chunked"
    # XLA's CPU backend merges what is computed again with what was computed before, so that nothing is saved,
    # unless the layers are a loop.
    loop = config.scan_layers or (accelerator.platform == "cpu" and config.remat != "none")
    return replace(
        config, precision=precision, attention=attention, cross_entropy=cross_entropy, scan_layers=loop
    )
