"""Question: which tricks of 2024 to 2026 help a small model, with few steps and a strong base?

Group: many runs: ablations and scaling laws

Command: python launch.py --experiment recent_tricks --budget small --seeds 3

Time: 52 seconds a run at least, the median run 77, on one shared CPU core (AMD EPYC); 23 variants and the base, three
seeds each

Expected: the table in docs/results/tricks.md; base 1.4490 bits per byte, with cautious updates 1.4444. With 23 rows no
trick is shown to help
"""

from collections.abc import Mapping
from pathlib import Path

from experiments.ablations import budget as budget
from experiments.ablations import ungated_width
from experiments.base import experiment as base_experiment
from zerotollm.experiment import Experiment
from zerotollm.own_code import OwnCode, own_code
from zerotollm.studies.suite import Change, Variant, changed, variants_of

FOLDER = Path(__file__).parent / "tricks"


def experiment() -> Experiment:
    """Return `base` with planted heads in its first layer only, as it was when the tricks were measured.

    Most variants bring functions of their own, from the files in `experiments/tricks`.
    """
    return changed(base_experiment(), {"name": "recent_tricks", "model.previous_token_layers": 1})


def code(name: str) -> OwnCode:
    """Return the functions of `experiments/tricks/NAME.py` that replace built-in ones."""
    return own_code(f"{__name__.rpartition('.')[0]}.tricks.{name}", FOLDER / f"{name}.py")


def variants(base: Experiment) -> tuple[Variant, ...]:
    """Return the base with one trick each."""
    together = trick(
        "together",
        "-",
        "cautious-update, cautious-decay and length-ramp: chosen after their rows were measured, with the same seeds",
    )
    return variants_of(base, _training_tricks(base) | _model_tricks(base) | {"combination": [together]})


def trick(
    name: str, paper: str, sentence: str, file: str = "", fields: Mapping[str, object] | None = None
) -> Change:
    """Return the change to the functions of `experiments/tricks/FILE.py`, and to further fields.

    The file has the name of the trick, if none is given.
    """
    own = code(file or name.replace("-", "_"))
    return Change(name, {"code": own, **(fields or {})}, paper, sentence)


def _training_tricks(base: Experiment) -> dict[str, list[Change]]:
    constant = {"optimizer.decay_fraction": 0.0}
    return {
        "data": [
            trick(
                "length-ramp",
                "arXiv:2108.06084",
                "windows of a quarter, then half of the context in the first half of the steps; the same tokens a step",
            ),
            trick(
                "batch-ramp",
                "arXiv:2505.23971",
                "half batches for the first quarter of the tokens: the same tokens in 5/4 of the steps",
                fields={"train.steps": base.train.steps * 5 // 4},
            ),
            trick(
                "bpe-dropout",
                "arXiv:1910.13267",
                "merges skipped with probability 0.1 in training: the same tokens hold less text",
            ),
        ],
        "optimizer": [
            trick(
                "no-polar-express",
                "arXiv:2505.16932",
                "Muon's older coefficients (Jordan 2024) instead of those of Polar Express, in as many iterations",
                "newton_schulz",
            ),
            trick("normuon", "arXiv:2510.05491", "Muon with every neuron's update normalized"),
            trick(
                "cautious-decay",
                "arXiv:2510.12402",
                "decay of the weights that the update shrinks, and of no others",
            ),
            trick(
                "cautious-update",
                "arXiv:2411.16085",
                "hidden matrices move only where update and gradient have one sign",
            ),
        ],
        "averaging": [
            trick(
                "average",
                "arXiv:2209.14981",
                "the mean of the weights of the last fifth of the steps, after the usual decay of the rate",
                "averaging",
            ),
            trick(
                "average-no-decay",
                "arXiv:2405.18392",
                "the same mean instead of the decay of the rate",
                "averaging",
                constant,
            ),
            trick(
                "schedule-free",
                "arXiv:2405.15682",
                "gradients near a mean of all iterates, instead of the decay of the rate and of momentum",
                fields=constant | {"optimizer.momentum": 0.0, "optimizer.beta1": 0.0},
            ),
        ],
    }


def _model_tricks(base: Experiment) -> dict[str, list[Change]]:
    head_width = base.model.head_width or base.model.width // base.model.num_heads
    relu2 = {"model.feed_forward": "relu2", "model.ff_width": ungated_width(base)}
    return {
        "attention": [
            trick(
                "value-residual",
                "arXiv:2410.17897",
                "values mixed with those of the first layer, by two learned weights a layer",
            ),
            trick(
                "gated-attention",
                "arXiv:2505.06708",
                "a sigmoid gate before the output projection: one more matrix in every attention",
            ),
            trick("sink", "arXiv:2508.10925", "a learned logit in every head's softmax, for no token"),
            trick(
                "sliding-window",
                "arXiv:2310.06825",
                "attention to the last 64 tokens in every layer; no time is saved, since all scores are computed",
            ),
            trick(
                "differential",
                "arXiv:2410.05258",
                "the difference of two softmaxes, each of half the features of a head",
            ),
            trick(
                "latent-attention",
                "arXiv:2405.04434",
                "keys and values of all heads from one vector as wide as a head; a smaller cache",
                fields={"model.num_kv_heads": 1, "model.key_width": head_width // 2},
            ),
        ],
        "block": [
            trick("peri-norm", "arXiv:2502.02692", "a norm at the end of every sub-layer too"),
            trick(
                "relu2-peri-norm",
                "arXiv:2109.08668",
                "the same with ReLU squared instead of SwiGLU, and as many parameters",
                "peri_norm",
                relu2,
            ),
            trick(
                "experts",
                "arXiv:2401.04088",
                "two of four experts a token, half as wide: as many active parameters. All four are computed",
                "mixture_of_experts",
            ),
        ],
        "objective": [
            trick(
                "multi-token",
                "arXiv:2404.19737",
                "a second last layer predicts the token after the next, with weight 0.3; in training only",
            ),
            Change("z-loss-1e-3", {"train.z_loss": 1e-3}, "arXiv:2204.02311, section 5", "1e-3 log(Z)^2"),
            Change("z-loss-1e-2", {"train.z_loss": 1e-2}, "arXiv:2204.02311, section 5", "1e-2 log(Z)^2"),
        ],
    }
