"""Question: do small models tell how good a larger one will be, before it is trained?

Group: many runs: ablations and scaling laws

Command: python launch.py --experiment scaling

Time: 50 minutes on one core of an AMD EPYC, beside another run (`taskset -c 1 python launch.py ...`), 12 of them for
the largest

Expected: 1.3280 bits per byte predicted for it, between 1.3199 and 1.3379, from the 14 smaller; measured 1.3278
"""

from dataclasses import replace

from experiments.base import experiment as base
from zerotollm.experiment import Experiment
from zerotollm.model.config import resolve
from zerotollm.planning.flops import counted_parameters

HEAD = 32
"""Width of a head, and of a block of Muon, at every size."""
WIDTHS = (32, 64, 96, 128, 160, 192)
BUDGETS = (0.25e12, 0.5e12, 1e12, 2e12, 4e12, 8e12)
"""C = 6 N D, floating-point operations: at most of them models of several sizes compete."""
TOKENS = (250_000, 1_200_000)
"""Of a run. At most about once through bible-web, for repeated text follows another law (arXiv:2305.16264). At least
some 240 steps: in a first ladder, shorter runs lay far off any law that fitted the others (NOTES.md)."""
NEXT_WIDTH, NEXT_BUDGET = 256, 20e12


def experiment() -> Experiment:
    """`base` with a small vocabulary, so that the head does not outweigh the blocks of the smallest models.

    In windows of 128 tokens; no text is repeated.
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
    """The runs that the law is fitted to: every width at every budget that leaves it a sensible time to train."""
    runs = [sized(base, width, budget) for budget in BUDGETS for width in WIDTHS]
    return tuple(run for run in runs if TOKENS[0] <= tokens(run) <= TOKENS[1])


def next_size(base: Experiment) -> Experiment:
    """The run to be predicted: a larger model than any in the ladder, with 2.5 times the most compute there."""
    return sized(base, NEXT_WIDTH, NEXT_BUDGET)


def sized(base: Experiment, width: int, budget: float) -> Experiment:
    """One width, trained for as many whole steps as the budget allows.

    Depth and rates are the base's at every size: Muon's update is scaled by a kernel's shape, so that its rate need
    not fall with width. The schedule ends where the run does, without which runs of different length cannot be
    compared (arXiv:2203.15556, appendix B), and warmup takes at most a tenth of it, for a longer one holds the
    short runs back and bends the law (arXiv:2406.19146).
    """
    model = replace(base.model, width=width, num_heads=width // HEAD, head_width=HEAD, ff_width=3 * width)
    resolved = resolve(model, vocab_size=base.tokenizer.vocab_size, context=base.data.context)
    per_step = base.data.batch_size * base.data.context
    steps = max(1, round(budget / 6 / counted_parameters(resolved) / per_step))
    warmup = max(1, min(base.optimizer.warmup_steps, steps // 10))
    return replace(
        base,
        name=f"{base.name}-width-{width}-steps-{steps}",
        model=model,
        optimizer=replace(base.optimizer, warmup_steps=warmup),
        train=replace(base.train, steps=steps),
    )


def tokens(run: Experiment) -> int:
    """Tokens trained on."""
    return run.train.steps * run.data.batch_size * run.data.context
