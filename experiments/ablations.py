"""Question: which of the choices in `base` help, and by how much?

Command: python launch.py --experiment ablations --budget small --seeds 3

Time: not yet measured

Expected: not yet measured
"""

from typing import Literal

from experiments.base import experiment as base_experiment
from zerotollm.experiment import Experiment
from zerotollm.model.config import resolve
from zerotollm.scale.flops import num_parameters
from zerotollm.suite import Variant, changed


def experiment() -> Experiment:
    """`base`, whose choices the variants change one by one."""
    return changed(base_experiment(), name="ablations")


def budget(base: Experiment, size: Literal["tiny", "small", "full"]) -> Experiment:
    """The base in the size that a suite can afford: full as it is; small in half a minute a run on two CPU cores;
    tiny in a few seconds, to see it work. The block of Muon stays one head."""
    if size == "full":
        return base
    base = changed(base, train__eval_every=0, train__sample_every=0, train__checkpoint_every=0)
    if size == "small":
        return changed(
            base,
            tokenizer__vocab_size=2048,
            model__width=128,
            model__num_heads=2,
            optimizer__block=64,
            train__steps=500,
        )
    return changed(
        base,
        data__context=64,
        tokenizer__vocab_size=1024,
        model__num_layers=2,
        model__width=64,
        model__num_heads=2,
        optimizer__block=32,
        optimizer__warmup_steps=5,
        train__steps=60,
    )


def variants(base: Experiment) -> tuple[Variant, ...]:
    """Every variant of the base, each `replace`d from it by one change."""
    data, model, train = base.data, base.model, base.train
    halved, doubled = max(1, model.num_layers // 2), 2 * model.num_layers

    def variant(name: str, group: str, paper: str, sentence: str, **fields) -> Variant:
        return Variant(name, group, changed(base, **fields), paper, sentence)

    def optimizer(kind: str, rate: float, paper: str) -> Variant:
        sentence = (
            f"{kind} for all parameters, at a rate of its own; schedule, weight decay and betas of the base"
        )
        fields = {"optimizer__kind": kind, "optimizer__learning_rate": rate}
        return variant(kind, "optimizer", paper, sentence, **fields)

    paper = "arXiv:1706.03762"
    return (
        variant(
            "sinusoidal",
            "position",
            f"{paper}, section 3.5",
            "sines and cosines added to the embeddings instead of RoPE",
            model__position="sinusoidal",
        ),
        variant(
            "learned",
            "position",
            f"{paper}, section 3.5",
            "a learned vector for each position instead of RoPE",
            model__position="learned",
        ),
        variant(
            "no-position",
            "position",
            "arXiv:2305.19466",
            "no positions: the causal mask alone tells order",
            model__position="none",
        ),
        variant(
            "layer-pre",
            "norm",
            "arXiv:1607.06450",
            "LayerNorm instead of RMSNorm, before each sub-layer",
            model__norm="layer",
        ),
        variant(
            "rms-post",
            "norm",
            f"{paper}, section 3.1",
            "RMSNorm after each residual sum instead of before each sub-layer",
            model__norm_position="post",
        ),
        variant(
            "layer-post",
            "norm",
            f"{paper}, section 3.1",
            "LayerNorm after each residual sum: the block of 2017",
            model__norm="layer",
            model__norm_position="post",
        ),
        *(
            variant(
                name,
                "feed-forward",
                source,
                f"{name} without a gate; the width keeps the number of parameters, up to rounding",
                model__feed_forward=name,
            )
            for name, source in (
                ("gelu", "arXiv:1606.08415"),
                ("relu", f"{paper}, section 3.3"),
                ("relu2", "arXiv:2109.08668"),
            )
        ),
        variant(
            "one-head",
            "attention",
            f"{paper}, section 3.2.2",
            "one head as wide as all heads were",
            model__num_heads=1,
        ),
        variant(
            "twice-the-heads",
            "attention",
            f"{paper}, section 3.2.2",
            "twice the heads, each half as wide",
            model__num_heads=2 * model.num_heads,
        ),
        variant(
            "one-kv-head",
            "attention",
            "arXiv:1911.02150",
            "one key and value head for all query heads; fewer parameters",
            model__num_kv_heads=1,
        ),
        variant(
            "no-qk-norm",
            "attention",
            "arXiv:2010.04245",
            "no norm of queries and keys",
            model__qk_norm=False,
        ),
        variant(
            "document-mask",
            "attention",
            "arXiv:2407.21783, section 3.2",
            "attention inside a document only, in training and in validation",
            data__document_mask=True,
        ),
        variant(
            "tied",
            "embedding",
            "arXiv:1608.05859",
            "one table for input and output, drawn small and trained at the head's rate",
            model__tie_embeddings=True,
        ),
        variant(
            "tied-scaled",
            "embedding",
            f"{paper}, section 3.4",
            "one table for input and output, times sqrt(width) at the input as in the paper",
            model__tie_embeddings=True,
            model__embedding_scale=True,
        ),
        variant(
            "embedding-scale",
            "embedding",
            f"{paper}, section 3.4",
            "embeddings times sqrt(width), from the same start",
            model__embedding_scale=True,
        ),
        variant(
            "dropout",
            "regularization",
            f"{paper}, section 5.4",
            "dropout of 0.1 on each sub-layer and on the embeddings",
            model__dropout=0.1,
        ),
        variant(
            "label-smoothing",
            "regularization",
            "arXiv:1512.00567, section 7",
            "a tenth of each target spread over the vocabulary, in gradients only",
            train__label_smoothing=0.1,
        ),
        variant(
            "no-weight-decay",
            "regularization",
            "arXiv:1711.05101",
            "no weight decay",
            optimizer__weight_decay=0.0,
        ),
        variant(
            "z-loss",
            "stability",
            "arXiv:2204.02311, section 5",
            "1e-4 log(Z)^2 added to the loss, in gradients only",
            train__z_loss=1e-4,
        ),
        variant(
            "soft-cap",
            "stability",
            "arXiv:2408.00118",
            "logits capped softly at 15",
            model__logit_soft_cap=15.0,
        ),
        variant(
            "clip-norm",
            "stability",
            "arXiv:1211.5063",
            "gradients scaled down to a global norm of 1",
            optimizer__clip_norm=1.0,
        ),
        variant(
            "plain-init",
            "initialization",
            "GPT-2, section 2.3",
            "matrices that write to the residual stream start as large as others",
            model__initialization="plain",
        ),
        variant(
            "zero-init",
            "initialization",
            "arXiv:1901.09321",
            "matrices that write to the residual stream start at zero",
            model__initialization="zero",
        ),
        optimizer("adamw", 3e-3, "arXiv:1711.05101"),
        optimizer("lion", 5e-4, "arXiv:2302.06675"),
        optimizer("adafactor", 5e-3, "arXiv:1804.04235"),
        optimizer("sgd", 0.1, "arXiv:1706.03762 trains none of its models so; Nesterov 1983"),
        variant(
            "whole-muon",
            "optimizer",
            "Jordan 2024",
            "Muon on whole matrices with 5 iterations instead of head by head with 3",
            optimizer__block=0,
            optimizer__iterations=5,
        ),
        *(
            variant(
                name.replace("_", "-"),
                "schedule",
                source,
                f"{words} after the warmup",
                optimizer__schedule=name,
            )
            for name, source, words in (
                ("cosine", "arXiv:1608.03983", "a cosine to the end"),
                ("linear", "arXiv:2310.07831", "linear decay to the end"),
                ("inverse_sqrt", f"{paper}, section 5.3", "decay with the root of the step"),
            )
        ),
        variant(
            "half-batch",
            "batch",
            "arXiv:1812.06162",
            "half the windows a step, twice the steps: the same tokens",
            data__batch_size=max(1, data.batch_size // 2),
            train__steps=2 * train.steps,
        ),
        variant(
            "double-batch",
            "batch",
            "arXiv:1812.06162",
            "twice the windows a step, half the steps: the same tokens",
            data__batch_size=2 * data.batch_size,
            train__steps=max(1, train.steps // 2),
        ),
        variant(
            "half-context",
            "context",
            "arXiv:2012.15832",
            "half the context, twice the windows: the same tokens a step; validated with this context too",
            data__context=max(1, data.context // 2),
            data__batch_size=2 * data.batch_size,
        ),
        variant(
            "double-context",
            "context",
            "arXiv:2012.15832",
            "twice the context, half the windows: the same tokens a step; validated with this context too",
            data__context=2 * data.context,
            data__batch_size=max(1, data.batch_size // 2),
        ),
        variant(
            "half-depth",
            "depth",
            "arXiv:2001.08361, section 3.1",
            "half the layers, wider: about the same parameters. Muon's blocks are whole matrices where they no "
            "longer divide the width",
            model__num_layers=halved,
            model__width=width_for(base, halved),
        ),
        variant(
            "double-depth",
            "depth",
            "arXiv:2001.08361, section 3.1",
            "twice the layers, narrower: about the same parameters. Muon's blocks are whole matrices where they no "
            "longer divide the width",
            model__num_layers=doubled,
            model__width=width_for(base, doubled),
        ),
        variant(
            "half-vocabulary",
            "tokens",
            "arXiv:1508.07909",
            "half the vocabulary: as many steps of as many tokens, which hold less text; fewer parameters",
            tokenizer__vocab_size=base.tokenizer.vocab_size // 2,
        ),
        variant(
            "double-vocabulary",
            "tokens",
            "arXiv:1508.07909",
            "twice the vocabulary: as many steps of as many tokens, which hold more text; more parameters",
            tokenizer__vocab_size=2 * base.tokenizer.vocab_size,
        ),
        variant(
            "unigram",
            "tokens",
            "arXiv:1804.10959",
            "a unigram vocabulary of the same size instead of byte-pair encoding",
            tokenizer__kind="unigram",
        ),
        variant(
            "characters",
            "tokens",
            "arXiv:1808.04444",
            "single characters: as many steps of as many tokens, which hold far less text; fewer parameters",
            tokenizer__kind="char",
        ),
    )


def width_for(base: Experiment, layers: int) -> int:
    """The width at which so many layers have about as many parameters as the base, with the base's heads."""

    def parameters(layers: int, width: int) -> int:
        model = changed(base, model__num_layers=layers, model__width=width).model
        resolved = resolve(model, vocab_size=base.tokenizer.vocab_size, context=base.data.context)
        return num_parameters(resolved)

    wanted = parameters(base.model.num_layers, base.model.width)
    step = 8 * base.model.num_heads
    return min(
        range(step, 4 * base.model.width + 1, step), key=lambda width: abs(parameters(layers, width) - wanted)
    )
