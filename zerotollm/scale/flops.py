"""What a model costs to compute, counted from its configuration."""

from zerotollm.model.config import TransformerConfig


def num_parameters(model: TransformerConfig) -> int:
    """Parameters of the decoder that `model`, resolved, describes."""
    D = model.width
    norm = 2 if model.norm == "layer" else 1
    norms = norm * (2 * D + (2 * model.head_width if model.qk_norm else 0))
    embedding = model.vocab_size * D * (1 if model.tie_embeddings else 2)
    positions = model.max_length * D if model.position == "learned" else 0
    final_norm = norm * D if model.norm_position == "pre" else 0
    embedding += model.token_shift * D
    return model.num_layers * (_layer_matrices(model) + norms) + embedding + positions + final_norm


def forward_flops(model: TransformerConfig, context: int) -> int:
    """Floating-point operations of the forward pass, per token of a window of `context`: matrix products alone.

    A product of (m, k) and (k, n) counts 2 m k n. Attention counts the whole window, masked half included, for
    that is what is computed. Norms, softmax and the like, some percent, are left out, as is usual (PaLM,
    arXiv:2204.02311, appendix B). The embedding is a lookup and costs nothing; the head is a product.
    """
    attention = 2 * 2 * context * model.num_heads * model.head_width  # scores and mixing
    layer = 2 * _layer_matrices(model) + attention
    return model.num_layers * layer + 2 * model.width * model.vocab_size


def train_flops(model: TransformerConfig, context: int) -> int:
    """Of a training step, per token: the backward pass costs two forward passes. The optimizer is left out."""
    return 3 * forward_flops(model, context)


def _layer_matrices(model: TransformerConfig) -> int:
    """Numbers in the matrices of one block."""
    D, C = model.width, model.head_width
    attention = D * C * (2 * model.num_heads + 2 * model.num_kv_heads)
    return attention + D * model.ff_width * (3 if model.feed_forward == "swiglu" else 2)
