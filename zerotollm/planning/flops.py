"""What a model costs to compute, counted from its configuration."""

from zerotollm.model.config import BIASED, TransformerConfig


def num_parameters(model: TransformerConfig) -> int:
    """Parameters of the model that `model`, resolved, describes."""
    D = model.width
    norm = 2 if model.norm == "layer" else 1
    norms = norm * (2 * D + (2 * model.key_width if model.qk_norm else 0))
    # Both sides of an encoder-decoder have a table of positions, a token shift and a last norm of their own; one that
    # labels has no decoder.
    decoder = decoder_layers(model)
    sides = (decoder > 0) + (model.encoder_layers > 0)
    outside = sides * (
        (model.max_length * D if model.position == "learned" else 0)
        + (norm * D if model.norm_position == "pre" else 0)
        + model.token_shift * D
    )
    outside += model.vocab_size * D
    if model.num_classes or not model.tie_embeddings:
        outside += D * head_rows(model)
    outside += _biases(model, head=model.vocab_size)
    F, gated = model.ff_width, model.feed_forward == "swiglu"
    attention = _attention_matrices(model) + _biases(
        model,
        query=model.num_heads * model.key_width,
        key=model.num_kv_heads * model.key_width,
        value=model.num_kv_heads * model.head_width,
        output=D,
    )
    block = attention + _feed_forward_matrices(model) + norms
    block += _biases(model, gate=F if gated else 0, up=F, down=D)
    cross = attention
    cross += norm * (D + (2 * model.key_width if model.qk_norm else 0))
    layers = decoder + model.encoder_layers
    return layers * block + (decoder * cross if model.encoder_layers else 0) + outside


def forward_flops(model: TransformerConfig, context: int) -> int:
    """Floating-point operations of the forward pass, per token of a window of `context`: matrix products alone.

    A product of (m, k) and (k, n) counts 2 m k n. Attention counts the whole window, masked half included, for
    that is what is computed. Norms, softmax and the like, some percent, are left out, as is usual (PaLM,
    arXiv:2204.02311, appendix B). The embedding is a lookup and costs nothing; the head is a product. Of an
    encoder-decoder: per target token, with a source as long as the target; of one that labels, per token of the text.
    """
    mixing = 2 * context * model.num_heads * (model.key_width + model.head_width)  # scores and sums
    attention = 2 * _attention_matrices(model) + mixing
    layer = attention + 2 * _feed_forward_matrices(model)
    decoder = decoder_layers(model)
    layers = decoder + model.encoder_layers
    cross = decoder * attention if model.encoder_layers else 0
    head = 2 * model.width * head_rows(model)
    if model.encoder_layers and model.num_classes:  # of the mean of all tokens
        head = 2 * model.width + head // context
    return layers * layer + cross + head


def train_flops(model: TransformerConfig, context: int) -> int:
    """Of a training step, per token: the backward pass costs two forward passes. The optimizer is left out."""
    return 3 * forward_flops(model, context)


def head_rows(model: TransformerConfig) -> int:
    """Logits of a prediction: one a label, or one an id of the vocabulary."""
    return model.num_classes or model.vocab_size


def decoder_layers(model: TransformerConfig) -> int:
    """Blocks of the decoder; an encoder that labels has none behind it."""
    return 0 if model.encoder_layers and model.num_classes else model.num_layers


def _attention_matrices(model: TransformerConfig) -> int:
    """Numbers in the matrices of one attention: queries and keys, values and output."""
    heads = model.num_heads + model.num_kv_heads
    return model.width * heads * (model.key_width + model.head_width)


def _biases(model: TransformerConfig, **widths: int) -> int:
    """Numbers in the vectors after those of the matrices that have one; `widths` are their columns."""
    return sum(width for name, width in widths.items() if name in BIASED[model.biases])


def _feed_forward_matrices(model: TransformerConfig) -> int:
    """Numbers in the matrices of one feed-forward."""
    return model.width * model.ff_width * (3 if model.feed_forward == "swiglu" else 2)
