"""Question: which tricks of 2024 to 2026 help a small model, with few steps and a strong base?

Group: many runs: ablations and scaling laws

Command: python launch.py --experiment recent_tricks --budget small --seeds 3

Time: 52 seconds a run at least, the median run 77, on one shared CPU core (AMD EPYC); 23 variants and the base, three
seeds each

Expected: the table in docs/results/tricks.md; base 1.4490 bits per byte, with cautious updates 1.4444
"""

from pathlib import Path
from typing import Any

from experiments.ablations import budget as budget
from experiments.base import experiment as base_experiment
from zerotollm.experiment import Experiment
from zerotollm.model.config import resolve
from zerotollm.own_code import OwnCode, own_code
from zerotollm.studies.suite import Variant, changed

FOLDER = Path(__file__).parent / "tricks"


def experiment() -> Experiment:
    """Return `base` with planted heads in its first layer only, as it was when the tricks were measured.

    Most variants bring functions of their own, from the files in `experiments/tricks`.
    """
    return changed(base_experiment(), {"name": "recent_tricks", "model.previous_token_layers": 1})


def code(name: str) -> OwnCode:
    """Return the functions of `experiments/tricks/NAME.py` that replace built-in ones."""
    return own_code(f"{__name__.rpartition('.')[0]}.tricks.{name}", FOLDER / f"{name}.py")


Row = tuple[str, str, dict[str, Any], str, str]
"""Name, file in `experiments/tricks` or "", changed fields, paper and sentence of a variant."""


def variants(base: Experiment) -> tuple[Variant, ...]:
    """Return the base with one trick each."""
    groups = {
        "data": _data_rows(base),
        "optimizer": OPTIMIZER_ROWS,
        "averaging": AVERAGING_ROWS,
        "attention": _attention_rows(base),
        "block": _block_rows(base),
        "objective": OBJECTIVE_ROWS,
        "combination": COMBINATION_ROWS,
    }
    return tuple(
        Variant(name, group, changed(base, fields | ({"code": code(file)} if file else {})), paper, sentence)
        for group, rows in groups.items()
        for name, file, fields, paper, sentence in rows
    )


def _data_rows(base: Experiment) -> tuple[Row, ...]:
    return (
        (
            "length-ramp",
            "length_ramp",
            {},
            "arXiv:2108.06084",
            "windows of a quarter, then half of the context in the first half of the steps; the same tokens a step",
        ),
        (
            "batch-ramp",
            "batch_ramp",
            {"train.steps": base.train.steps * 5 // 4},
            "arXiv:2505.23971",
            "half batches for the first quarter of the tokens: the same tokens in 5/4 of the steps",
        ),
        (
            "bpe-dropout",
            "bpe_dropout",
            {},
            "arXiv:1910.13267",
            "merges skipped with probability 0.1 in training: the same tokens hold less text",
        ),
    )


OPTIMIZER_ROWS: tuple[Row, ...] = (
    (
        "no-polar-express",
        "newton_schulz",
        {},
        "arXiv:2505.16932",
        "Muon's older coefficients (Jordan 2024) instead of those of Polar Express, in as many iterations",
    ),
    ("normuon", "normuon", {}, "arXiv:2510.05491", "Muon with every neuron's update normalized"),
    (
        "cautious-decay",
        "cautious_decay",
        {},
        "arXiv:2510.12402",
        "decay of the weights that the update shrinks, and of no others",
    ),
    (
        "cautious-update",
        "cautious_update",
        {},
        "arXiv:2411.16085",
        "hidden matrices move only where update and gradient have one sign",
    ),
)
AVERAGING_ROWS: tuple[Row, ...] = (
    (
        "average",
        "averaging",
        {},
        "arXiv:2209.14981",
        "the mean of the weights of the last fifth of the steps, after the usual decay of the rate",
    ),
    (
        "average-no-decay",
        "averaging",
        {"optimizer.decay_fraction": 0.0},
        "arXiv:2405.18392",
        "the same mean instead of the decay of the rate",
    ),
    (
        "schedule-free",
        "schedule_free",
        {"optimizer.decay_fraction": 0.0, "optimizer.momentum": 0.0, "optimizer.beta1": 0.0},
        "arXiv:2405.15682",
        "gradients near a mean of all iterates, instead of the decay of the rate and of momentum",
    ),
)


def _attention_rows(base: Experiment) -> tuple[Row, ...]:
    head_width = base.model.head_width or base.model.width // base.model.num_heads
    return (
        (
            "value-residual",
            "value_residual",
            {},
            "arXiv:2410.17897",
            "values mixed with those of the first layer, by two learned weights a layer",
        ),
        (
            "gated-attention",
            "gated_attention",
            {},
            "arXiv:2505.06708",
            "a sigmoid gate before the output projection: one more matrix in every attention",
        ),
        ("sink", "sink", {}, "arXiv:2508.10925", "a learned logit in every head's softmax, for no token"),
        (
            "sliding-window",
            "sliding_window",
            {},
            "arXiv:2310.06825",
            "attention to the last 64 tokens in every layer; no time is saved, since all scores are computed",
        ),
        (
            "differential",
            "differential",
            {},
            "arXiv:2410.05258",
            "the difference of two softmaxes, each of half the features of a head",
        ),
        (
            "latent-attention",
            "latent_attention",
            {"model.num_kv_heads": 1, "model.key_width": head_width // 2},
            "arXiv:2405.04434",
            "keys and values of all heads from one vector as wide as a head; a smaller cache",
        ),
    )


def _block_rows(base: Experiment) -> tuple[Row, ...]:
    gated = resolve(base.model, vocab_size=base.tokenizer.vocab_size, context=base.data.context).ff_width
    # Two matrices of this width have as many parameters as the three of swiglu.
    relu2 = {"model.feed_forward": "relu2", "model.ff_width": 3 * gated // 2}
    return (
        ("peri-norm", "peri_norm", {}, "arXiv:2502.02692", "a norm at the end of every sub-layer too"),
        (
            "relu2-peri-norm",
            "peri_norm",
            relu2,
            "arXiv:2109.08668",
            "the same with ReLU squared instead of SwiGLU, and as many parameters",
        ),
        (
            "experts",
            "mixture_of_experts",
            {},
            "arXiv:2401.04088",
            "two of four experts a token, half as wide: as many active parameters. All four are computed",
        ),
    )


OBJECTIVE_ROWS: tuple[Row, ...] = (
    (
        "multi-token",
        "multi_token",
        {},
        "arXiv:2404.19737",
        "a second last layer predicts the token after the next, with weight 0.3; in training only",
    ),
    ("z-loss-1e-3", "", {"train.z_loss": 1e-3}, "arXiv:2204.02311, section 5", "1e-3 log(Z)^2"),
    ("z-loss-1e-2", "", {"train.z_loss": 1e-2}, "arXiv:2204.02311, section 5", "1e-2 log(Z)^2"),
)
COMBINATION_ROWS: tuple[Row, ...] = (
    (
        "together",
        "together",
        {},
        "-",
        "cautious-update, cautious-decay and length-ramp: chosen after their rows were measured, with the same seeds",
    ),
)
