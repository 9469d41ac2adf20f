"""Question: which of the choices in `base_token_shift` help, and by how much?

Group: many runs: ablations and scaling laws

Command: python launch.py --experiment ablations --budget small --seeds 3

Time: 66 seconds a run at least, the median run 105, on 2 shared CPU cores (AMD EPYC); 45 variants and the base, three
seeds each

Expected: the table in docs/results/ablations.md; base 1.4521 bits per byte, without token shift 1.5287
"""

from typing import Any, Literal

from experiments.base_token_shift import experiment as base_experiment
from zerotollm.experiment import Experiment, resolved_model
from zerotollm.planning.flops import num_parameters
from zerotollm.studies.suite import Change, Variant, changed, variants_of


def experiment() -> Experiment:
    """Return `base_token_shift`. The variants change its choices one by one."""
    return changed(base_experiment(), {"name": "ablations"})


def budget(base: Experiment, size: Literal["tiny", "small", "full"]) -> Experiment:
    """Return the base in a size: full as it is, small for a minute a run on two slow CPU cores, tiny for a few seconds.

    A block of Muon stays as wide as a head.
    """
    small = {"model.width": 128, "model.num_heads": 2, "tokenizer.vocab_size": 2048, "train.steps": 400}
    tiny = {
        "model.num_layers": 2,
        "model.width": 64,
        "model.num_heads": 2,
        "tokenizer.vocab_size": 1024,
        "data.context": 64,
        "data.batch_size": 8,
        "optimizer.block": 32,
        "optimizer.warmup_steps": 5,
        "train.steps": 60,
    }
    return changed(base, {"tiny": tiny, "small": small, "full": {}}[size])


def variants(base: Experiment) -> tuple[Variant, ...]:
    """Return the variants of the base, each with one change."""
    of_model = _block_changes(base) | _embedding_changes()
    return variants_of(base, of_model | _training_changes(base) | _size_changes(base))


Changes = dict[str, list[Change]]
"""Changes by group."""
VASWANI = "arXiv:1706.03762, section "


def _block_changes(base: Experiment) -> Changes:
    def position(name: str, kind: str, paper: str, sentence: str) -> Change:
        return Change(name, {"model.position": kind}, paper, sentence)

    def feed_forward(kind: str, paper: str) -> Change:
        fields = {"model.feed_forward": kind, "model.ff_width": ungated_width(base)}
        return Change(kind, fields, paper, "without a gate, wider: the same number of parameters")

    def heads(name: str, number: int, words: str) -> Change:
        sentence = f"{words}; the blocks of Muon stay as they are, and are no longer one head each"
        return Change(name, {"model.num_heads": number}, VASWANI + "3.2.2", sentence)

    layer, post = {"model.norm": "layer"}, {"model.norm_position": "post"}
    return {
        "position": [
            position("sinusoidal", "sinusoidal", VASWANI + "3.5", "sines and cosines instead of RoPE"),
            position("learned", "learned", VASWANI + "3.5", "a learned vector a position instead of RoPE"),
            position("no-position", "none", "arXiv:2305.19466", "the causal mask alone tells the order"),
        ],
        "norm": [
            Change("layer-pre", layer, "arXiv:1607.06450", "LayerNorm instead of RMSNorm"),
            Change("rms-post", post, VASWANI + "3.1", "the norm after each residual sum"),
            Change("layer-post", post | layer, VASWANI + "3.1", "LayerNorm after each sum, as in 2017"),
        ],
        "feed-forward": [
            feed_forward("gelu", "arXiv:1606.08415"),
            feed_forward("relu", VASWANI + "3.3"),
            feed_forward("relu2", "arXiv:2109.08668"),
        ],
        "attention": [
            heads("one-head", 1, "one head as wide as all were"),
            heads("more-heads", 2 * base.model.num_heads, "twice the heads, half as wide"),
            Change(
                "one-kv-head",
                {"model.num_kv_heads": 1},
                "arXiv:1911.02150",
                "all queries share keys and values",
            ),
            Change("no-qk-norm", {"model.qk_norm": False}, "arXiv:2010.04245", "no norm of queries and keys"),
            Change(
                "document-mask",
                {"data.document_mask": True},
                "arXiv:2407.21783, section 3.2",
                "attention inside a document only, in training and validation",
            ),
        ],
    }


def _embedding_changes() -> Changes:
    def shift(name: str, tokens: int, sentence: str) -> Change:
        return Change(name, {"model.token_shift": tokens}, "arXiv:2305.13048", sentence)

    tied, scaled = {"model.tie_embeddings": True}, {"model.embedding_scale": True}
    return {
        "embedding": [
            Change(
                "tied",
                tied,
                "arXiv:1608.05859",
                "one table for both ends, small at first, at the head's rate",
            ),
            Change(
                "tied-scaled",
                tied | scaled,
                VASWANI + "3.4",
                "one table for both ends, times sqrt(width) where it is the input, as in the paper",
            ),
            Change("embedding-scale", scaled, VASWANI + "3.4", "embeddings times sqrt(width)"),
            shift("no-token-shift", 0, "no earlier token is added"),
            shift("one-token-shift", 1, "the token before is added"),
            shift("token-shift", 3, "the three tokens before are added"),
        ],
        "initialization": [
            Change("plain-init", {"model.initialization": "plain"}, "GPT-2, section 2.3", "no 1 / sqrt(2L)"),
            Change(
                "zero-init",
                {"model.initialization": "zero"},
                "arXiv:1901.09321",
                "blocks start as the identity",
            ),
        ],
    }


def _training_changes(base: Experiment) -> Changes:
    def optimizer(kind: str, rate: float, paper: str) -> Change:
        fields = {"optimizer.kind": kind, "optimizer.learning_rate": rate}
        sentence = "for all parameters, at a rate of its own; schedule, decay, betas as in the base"
        return Change(kind, fields, paper, sentence)

    def schedule(kind: str, paper: str, sentence: str) -> Change:
        return Change(kind.replace("_", "-"), {"optimizer.schedule": kind}, paper, sentence)

    if base.model.dropout:
        dropout = Change("no-dropout", {"model.dropout": 0.0}, VASWANI + "5.4", "no dropout")
    else:
        sentence = "of 0.1 on sub-layers and embeddings"
        dropout = Change("dropout", {"model.dropout": 0.1}, VASWANI + "5.4", sentence)
    whole = {"optimizer.block": 0, "optimizer.iterations": 5}
    return {
        "optimizer": [
            optimizer("adamw", 3e-3, "arXiv:1711.05101"),
            optimizer("lion", 5e-4, "arXiv:2302.06675"),
            optimizer("adafactor", 5e-3, "arXiv:1804.04235"),
            optimizer("sgd", 0.1, "Sutskever et al. 2013, section 2"),
            Change("whole-muon", whole, "Jordan 2024", "Muon on whole matrices, with 5 iterations"),
        ],
        "schedule": [
            schedule("cosine", "arXiv:1608.03983", "a cosine to the end after the warmup"),
            schedule("linear", "arXiv:2310.07831", "a straight line to the end after the warmup"),
            schedule("inverse_sqrt", VASWANI + "5.3", "1 / sqrt(step) after the warmup"),
        ],
        "regularization": [
            dropout,
            Change(
                "label-smoothing",
                {"train.label_smoothing": 0.1},
                VASWANI + "5.4",
                "of 0.1, in gradients only",
            ),
            Change("no-weight-decay", {"optimizer.weight_decay": 0.0}, "arXiv:1711.05101", "no weight decay"),
        ],
        "stability": [
            Change(
                "z-loss",
                {"train.z_loss": 1e-4},
                "arXiv:2204.02311, section 5",
                "1e-4 log(Z)^2, in gradients only",
            ),
            Change(
                "soft-cap", {"model.logit_soft_cap": 15.0}, "arXiv:2408.00118", "logits capped softly at 15"
            ),
            Change(
                "clip-norm",
                {"optimizer.clip_norm": 1.0},
                "arXiv:1211.5063",
                "gradients clipped to a norm of 1",
            ),
        ],
    }


def _size_changes(base: Experiment) -> Changes:
    windows, context, steps = base.data.batch_size, base.data.context, base.train.steps
    vocab_size = base.tokenizer.vocab_size

    def batch(name: str, factor: float) -> Change:
        fields = {
            "data.batch_size": max(1, int(windows * factor)),
            "train.steps": max(1, int(steps / factor)),
        }
        return Change(name, fields, "arXiv:1812.06162", "the same tokens in all, in other steps")

    def window(name: str, factor: float) -> Change:
        fields = {"data.context": int(context * factor), "data.batch_size": max(1, int(windows / factor))}
        sentence = "the same tokens a step; validated with its own context"
        return Change(name, fields, "arXiv:2012.15832", sentence)

    def depth(name: str, factor: float) -> Change:
        layers = max(1, int(base.model.num_layers * factor))
        fields = {"model.num_layers": layers, "model.width": width_for(base, layers)}
        sentence = (
            "about the same parameters; Muon takes whole matrices where its blocks do not divide the width"
        )
        return Change(name, fields, "arXiv:2001.08361, section 3.1", sentence)

    def tokens(name: str, fields: dict[str, Any], paper: str) -> Change:
        return Change(name, fields, paper, "as many steps of as many tokens, which hold more or less text")

    return {
        "batch": [batch("half-batch", 0.5), batch("double-batch", 2)],
        "context": [window("half-context", 0.5), window("double-context", 2)],
        "depth": [depth("half-depth", 0.5), depth("double-depth", 2)],
        "tokenizer": [
            tokens("half-vocabulary", {"tokenizer.vocab_size": vocab_size // 2}, "arXiv:1508.07909"),
            tokens("double-vocabulary", {"tokenizer.vocab_size": vocab_size * 2}, "arXiv:1508.07909"),
            tokens("unigram", {"tokenizer.kind": "unigram"}, "arXiv:1804.10959"),
            tokens("characters", {"tokenizer.kind": "char"}, "arXiv:1808.04444"),
        ],
    }


def ungated_width(base: Experiment) -> int:
    """Return the width of a feed-forward without a gate that has as many parameters as the base's."""
    ff_width = resolved_model(base).ff_width
    return 3 * ff_width // 2 if base.model.feed_forward == "swiglu" else ff_width


def width_for(base: Experiment, layers: int) -> int:
    """Return the width with which `layers` layers have about as many parameters as the base, and as many heads."""

    def parameters(layers: int, width: int) -> int:
        return num_parameters(
            resolved_model(changed(base, {"model.num_layers": layers, "model.width": width}))
        )

    wanted = parameters(base.model.num_layers, base.model.width)
    step = 8 * base.model.num_heads
    return min(
        range(step, max(step, 4 * base.model.width) + 1, step),
        key=lambda width: abs(parameters(layers, width) - wanted),
    )
