"""Question: do small models predict the loss of a larger one before it is trained?

Group: many runs: ablations and scaling laws

Command: python launch.py --experiment scaling

Time: 50 minutes on one core of an AMD EPYC, shared with another run (`taskset -c 1 python launch.py ...`), 12 of them
for the largest model

Expected: 1.3280 bits per byte predicted for it from the 14 smaller ones, between 1.3199 and 1.3379; measured 1.3278
"""

from dataclasses import replace

from experiments.base_token_shift import experiment as base
from zerotollm.experiment import Experiment, resolved_model
from zerotollm.planning.flops import counted_parameters, tokens_trained_on

HEAD = 32
"""Width of a head and of a block of Muon at every size."""
WIDTHS = (32, 64, 96, 128, 160, 192)
BUDGETS = (0.25e12, 0.5e12, 1e12, 2e12, 4e12, 8e12)
"""C = 6 N D, floating-point operations; at most budgets models of several sizes are trained."""
TOKENS = (250_000, 1_200_000)
"""Fewest and most tokens of a run: at most about one epoch of bible-web, since repeated text follows another law
(arXiv:2305.16264), and at least 240 steps, since shorter runs were far off the law of the others (NOTES.md)."""
NEXT_WIDTH, NEXT_BUDGET = 256, 20e12


def experiment() -> Experiment:
    """Return `base_token_shift` with windows of 128 tokens and a small vocabulary.

    The head of a large one would outweigh small blocks.
    """
    parent = base()
    return replace(
        parent,
        name="scaling",
        data=replace(parent.data, context=128, batch_size=8),
        tokenizer=replace(parent.tokenizer, vocab_size=1024),
        optimizer=replace(parent.optimizer, block=HEAD),
    )


def ladder(base: Experiment) -> tuple[Experiment, ...]:
    """Return the runs to which the law is fitted: every width at every budget with a number of tokens in `TOKENS`."""
    runs = [sized(base, width, budget) for budget in BUDGETS for width in WIDTHS]
    return tuple(run for run in runs if TOKENS[0] <= tokens_trained_on(run) <= TOKENS[1])


def next_size(base: Experiment) -> Experiment:
    """Return the run to predict: larger than all models of the ladder, with 2.5 times their largest budget."""
    return sized(base, NEXT_WIDTH, NEXT_BUDGET)


def sized(base: Experiment, width: int, budget: float) -> Experiment:
    """Return a run of one width, with as many steps as the budget allows.

    Depth and learning rates are the base's at every size: Muon scales its update by the shape of a matrix. The
    schedule ends with the run, without which runs of different length cannot be compared (arXiv:2203.15556,
    appendix B). Warmup takes at most a tenth of the steps, since it would slow down short runs (arXiv:2406.19146).
    """
    model = replace(base.model, width=width, num_heads=width // HEAD, head_width=HEAD, ff_width=3 * width)
    parameters = counted_parameters(resolved_model(replace(base, model=model)))
    steps = max(1, round(budget / 6 / parameters / (base.data.batch_size * base.data.context)))
    warmup = max(1, min(base.optimizer.warmup_steps, steps // 10))
    return replace(
        base,
        name=f"{base.name}-width-{width}-steps-{steps}",
        model=model,
        optimizer=replace(base.optimizer, warmup_steps=warmup),
        train=replace(base.train, steps=steps),
    )
