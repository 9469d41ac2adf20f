"""Parameters and floating-point operations of a model, counted from its configuration. No heavy imports."""

from zerotollm.experiment import Experiment, resolved_model
from zerotollm.model.config import BIASED, TransformerConfig


def num_parameters(model: TransformerConfig) -> int:
    """Return the parameters of a resolved model."""
    width, ff_width, gated = model.width, model.ff_width, model.feed_forward == "swiglu"
    norm = 2 if model.norm == "layer" else 1
    key_norms = norm * 2 * model.key_width if model.qk_norm else 0
    attention = _attention_matrices(model) + key_norms
    attention += _biases(
        model,
        query=model.num_heads * model.key_width,
        key=model.num_kv_heads * model.key_width,
        value=model.num_kv_heads * model.head_width,
        output=width,
    )
    block = attention + _feed_forward_matrices(model) + norm * 2 * width
    block += _biases(model, gate=ff_width if gated else 0, up=ff_width, down=width)
    # Encoder and decoder each have a table of positions, a token shift and a last norm.
    decoder = decoder_layers(model)
    sides = (decoder > 0) + (model.encoder_layers > 0)
    outside = sides * (
        (model.max_length * width if model.position == "learned" else 0)
        + (norm * width if model.norm_position == "pre" else 0)
        + model.token_shift * width
    )
    outside += model.vocab_size * width + _biases(model, head=model.vocab_size)
    if model.num_classes or not model.tie_embeddings:
        outside += width * head_rows(model)
    cross_attention = decoder * (attention + norm * width) if model.encoder_layers else 0
    return (decoder + model.encoder_layers) * block + cross_attention + outside


def counted_parameters(model: TransformerConfig) -> int:
    """Return N of the scaling law: the parameters in matrix products of a resolved model.

    They include the output head, tied or not, but not the embedding table, whose lookup costs no operation.
    Chinchilla (arXiv:2203.15556) counts both, Kaplan et al. (arXiv:2001.08361) neither. In small models the choice
    changes the result (arXiv:2406.12907, arXiv:2406.19146); this one keeps C = 6 N D closest to the operations done.
    """
    table = 0 if model.tie_embeddings else model.vocab_size * model.width
    return num_parameters(model) - table


def forward_flops(model: TransformerConfig, context: int) -> int:
    """Return the operations of the forward pass in matrix products, per token of a window of `context`.

    A product of (m, k) and (k, n) counts 2 m k n. Attention counts the whole window with its masked half, which is
    computed too. Norms, softmax and the like, some percent, are left out, as is usual (PaLM, arXiv:2204.02311,
    appendix B). The embedding is a lookup and costs nothing; the head is a product. With an encoder: per target token,
    with a source as long as the target, or per token of a text to label.
    """
    mixing = 2 * context * model.num_heads * (model.key_width + model.head_width)  # scores and sums
    attention = 2 * _attention_matrices(model) + mixing
    block = attention + 2 * _feed_forward_matrices(model)
    decoder = decoder_layers(model)
    cross_attention = decoder * attention if model.encoder_layers else 0
    head = 2 * model.width * head_rows(model)
    if model.encoder_layers and model.num_classes:  # of the mean of all tokens
        head = 2 * model.width + head // context
    return (decoder + model.encoder_layers) * block + cross_attention + head


def train_flops(model: TransformerConfig, context: int) -> int:
    """Return the operations of a training step per token: the backward pass costs two forward passes.

    The optimizer is left out.
    """
    return 3 * forward_flops(model, context)


def flops_per_step(experiment: Experiment) -> int:
    """Return the operations of a training step without padding."""
    data = experiment.data
    return train_flops(resolved_model(experiment), data.context) * data.context * data.batch_size


def tokens_trained_on(experiment: Experiment) -> int:
    """Return D of the scaling law, repeated tokens counted again."""
    return experiment.train.steps * experiment.data.batch_size * experiment.data.context


def head_rows(model: TransformerConfig) -> int:
    """Return the number of logits: one per label, or one per id of the vocabulary."""
    return model.num_classes or model.vocab_size


def decoder_layers(model: TransformerConfig) -> int:
    """Return the blocks of the decoder; an encoder that labels has none."""
    return 0 if model.encoder_layers and model.num_classes else model.num_layers


def _attention_matrices(model: TransformerConfig) -> int:
    heads = model.num_heads + model.num_kv_heads
    return model.width * heads * (model.key_width + model.head_width)


def _feed_forward_matrices(model: TransformerConfig) -> int:
    return model.width * model.ff_width * (3 if model.feed_forward == "swiglu" else 2)


def _biases(model: TransformerConfig, **columns: int) -> int:
    """Return the size of the bias vectors of those matrices that have one."""
    return sum(size for name, size in columns.items() if name in BIASED[model.biases])
