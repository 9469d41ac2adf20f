"""One configuration for every model here. No heavy imports: the command line reads this file."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TransformerConfig:
    """The decoder-only Transformer. With the defaults it is the architecture of Qwen3 (arXiv:2505.09388)."""

    vocab_size: int = 0
    """rows of the embedding; 0: taken from the tokenizer, rounded up to a multiple of 64"""
    max_length: int = 0
    """longest context the model is built for; 0: the context it is trained with"""
    num_layers: int = 4
    """Transformer blocks"""
    width: int = 256
    """model width D"""
    num_heads: int = 4
    """query heads H"""
    num_kv_heads: int = 0
    """key and value heads K (GQA, arXiv:2305.13245); 0: as many as query heads"""
    head_width: int = 0
    """width C of a head; 0: width / num_heads"""
    ff_width: int = 0
    """feed-forward width F; 0: 4 x width, or 8/3 x width for swiglu, so that both cost the same"""
    feed_forward: Literal["swiglu", "gelu", "relu", "relu2"] = "swiglu"
    """swiglu (arXiv:2002.05202), gelu (arXiv:1606.08415), relu (arXiv:1706.03762), relu2 (arXiv:2109.08668)"""
    norm: Literal["rms", "layer"] = "rms"
    """rms (arXiv:1910.07467) or layer (arXiv:1607.06450)"""
    norm_position: Literal["pre", "post"] = "pre"
    """pre (arXiv:2002.04745) or post, as in the paper (arXiv:1706.03762, section 3.1)"""
    position: Literal["rope", "sinusoidal", "learned", "none"] = "rope"
    """rope (arXiv:2104.09864), sinusoidal or learned (arXiv:1706.03762, section 3.5), or none"""
    rope_theta: float = 10000.0
    """longest wavelength of rope is 2 pi times this, in tokens"""
    qk_norm: bool = True
    """norm of queries and keys before their product (arXiv:2010.04245)"""
    tie_embeddings: bool = False
    """the output matrix is the embedding matrix (arXiv:1608.05859)"""
    embedding_scale: bool = False
    """multiply embeddings by sqrt(width) (arXiv:1706.03762, section 3.4)"""
    dropout: float = 0.0
    """rate on each sub-layer's output and on the embedding sum (arXiv:1706.03762, section 5.4)"""
    logit_soft_cap: float = 0.0
    """logits become cap x tanh(logits / cap) (Gemma 2, arXiv:2408.00118); 0: none"""
    norm_epsilon: float = 1e-6
    """added to the variance in norms"""
