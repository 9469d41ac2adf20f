"""Question: which conclusions of Table 3 of "Attention Is All You Need" hold at the scale of your machine?

Group: many runs: ablations and scaling laws

Command: python launch.py --experiment vaswani_table3 --budget small

Time: 3.3 minutes of processor time for the base on one core of an AMD EPYC with AVX-512; about 100 for a seed of all
rows

Expected: 11 of the paper's 15 differences of perplexity point its way, none shown by two seeds; 0.5726, 0.5758 and
0.5830 bits per byte, 48.8, 48.3 and 49.3 BLEU for the base (docs/results/translation.md)
"""

from typing import Any, Literal

from experiments.vaswani_base import experiment as vaswani_base
from zerotollm.experiment import Experiment
from zerotollm.studies.suite import BASE, Variant, changed

PAPER = "arXiv:1706.03762, table 3"


def experiment() -> Experiment:
    """Return `vaswani_base` with a vocabulary of 40,960.

    The paper's numbers of parameters, without those of the blocks, leave about 41,000 rows of embedding: for the base
    (65 - 44.1) / 0.512 = 40.8 thousand. With them all rows of the table agree within 1.5 %, except `big`: it has 218
    million parameters, 2.5 % more than in the paper.
    """
    return changed(vaswani_base(), {"name": "vaswani_table3", "tokenizer.vocab_size": 40960})


def budget(base: Experiment, size: Literal["tiny", "small", "full"]) -> Experiment:
    """Return the base in a size: full as in the paper; small translates the English of 1611 into modern English.

    Small is narrow, has half the depth, reads short verses and decodes greedily. Its norms come before the sub-layers
    (arXiv:2002.04745): with the paper's, after them, a deeper model aligned with the source later, or never. Its norms,
    steps, batch and rate were chosen by the base alone, which must have learned to translate
    (docs/results/translation.md). Tiny needs no further package: it translates the English of 1395, which it does not
    learn in so few steps. In both, warmup is shorter.
    """
    data = {
        "data.corpus": "bible-kjv:bible-web",
        "data.reverse": False,
        "sample.prompt": "In the beginning God created the heaven and the earth.",
        "sample.beam_size": 1,
        "train.eval_every": 0,
        "train.sample_every": 0,
        "train.checkpoint_every": 0,
    }
    small = data | {
        "data.context": 40,
        "data.batch_size": 8,
        "data.buckets": 2,
        "tokenizer.vocab_size": 2048,
        "model.num_layers": 3,
        "model.width": 128,
        "model.num_heads": 8,
        "model.ff_width": 512,
        "model.norm_position": "pre",
        "optimizer.learning_rate": 2e-3,
        "optimizer.warmup_steps": 1600,
        "train.steps": 6000,
    }
    tiny = small | {
        "data.corpus": "bible-wyc:bible-web",
        "data.context": 48,
        "data.buckets": 1,
        "tokenizer.vocab_size": 1024,
        "model.width": 64,
        "model.ff_width": 256,
        "optimizer.learning_rate": 2e-3,
        "optimizer.warmup_steps": 10,
        "train.steps": 30,
    }
    return changed(base, {"tiny": tiny, "small": small, "full": {}}[size])


def published(perplexity: float, bleu: float, parameters: float | None = None) -> dict[str, float]:
    """Return a row of the paper's table: perplexity per token and BLEU on newstest2013, parameters in millions."""
    values = {"perplexity": perplexity, "bleu": bleu}
    return values if parameters is None else values | {"parameters": parameters}


Row = tuple[str, dict[str, Any], str, tuple[float, ...]]
"""Group, changed fields, further changes, and the paper's perplexity, BLEU and parameters of a variant."""


def variants(base: Experiment) -> tuple[Variant, ...]:
    """Return rows (A) to (E) and big, each with the change that the paper's row makes to its base."""
    model, steps, own_rate = base.model, base.train.steps, base.optimizer.learning_rate
    heads, width, ff = model.num_heads, model.width, model.ff_width

    def with_heads(factor: float) -> dict[str, Any]:
        return {"model.num_heads": max(1, int(heads * factor))}

    def key_width(factor: float) -> dict[str, Any]:
        return {"model.key_width": max(1, int(width // heads * factor)), "model.head_width": width // heads}

    def scaled(factor: float) -> dict[str, Any]:
        # Equation 3 divides the rate by the root of the width.
        return {"model.width": int(width * factor), "optimizer.learning_rate": own_rate * factor**-0.5}

    def of_layers(thirds: int, *values: float) -> Row:
        return "C", {"model.num_layers": max(1, thirds * model.num_layers // 3)}, "on both sides", values

    def of_width(factor: float, words: str, *values: float) -> Row:
        return "C", scaled(factor), f"as many heads, {words} as wide; ff_width as before", values

    larger = {"model.num_heads": 2 * heads, "model.ff_width": 2 * ff}
    big = scaled(2) | larger | {"model.dropout": 0.3, "train.steps": 3 * steps}
    rows: dict[str, Row] = {
        BASE: (BASE, {}, "", (4.92, 25.8, 65)),
        "A-heads-eighth": ("A", with_heads(1 / 8), "so much wider", (5.29, 24.9)),
        "A-heads-half": ("A", with_heads(1 / 2), "so much wider", (5.00, 25.5)),
        "A-heads-2": ("A", with_heads(2), "so much narrower", (4.91, 25.8)),
        "A-heads-4": ("A", with_heads(4), "so much narrower", (5.01, 25.4)),
        "B-keys-quarter": ("B", key_width(1 / 4), "values as wide as before", (5.16, 25.1, 58)),
        "B-keys-half": ("B", key_width(1 / 2), "values as wide as before", (5.01, 25.4, 60)),
        "C-layers-third": of_layers(1, 6.11, 23.7, 36),
        "C-layers-two-thirds": of_layers(2, 5.19, 25.3, 50),
        "C-layers-four-thirds": of_layers(4, 4.88, 25.5, 80),
        "C-width-half": of_width(0.5, "half", 5.75, 24.5, 28),
        "C-width-2": of_width(2, "twice", 4.66, 26.0, 168),
        "C-ff-half": ("C", {"model.ff_width": ff // 2}, "", (5.12, 25.4, 53)),
        "C-ff-2": ("C", {"model.ff_width": ff * 2}, "", (4.75, 26.2, 90)),
        "D-no-dropout": ("D", {"model.dropout": 0.0}, "", (5.77, 24.6)),
        "D-dropout-2": ("D", {"model.dropout": 0.2}, "", (4.95, 25.5)),
        "D-no-smoothing": ("D", {"train.label_smoothing": 0.0}, "", (4.67, 25.3)),
        "D-smoothing-2": ("D", {"train.label_smoothing": 0.2}, "", (5.47, 25.7)),
        "E-learned": ("E", {"model.position": "learned"}, "instead of sinusoids", (4.92, 25.7)),
        "big": ("big", big, "more of all, and longer", (4.33, 26.4, 213)),
    }
    return tuple(
        Variant(name, group, changed(base, fields), PAPER, sentence or "one change", published(*values))
        for name, (group, fields, sentence, values) in rows.items()
    )
