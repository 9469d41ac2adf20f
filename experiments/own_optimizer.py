"""Question: how do I train with an optimizer of my own?

Group: your own ideas, without changing the package

Command: python launch.py --experiment own_optimizer

Time: 1:17 to 1:31 on one core of an AMD EPYC, for 300 of the 1,650 steps of `base`

Expected: 1.668, 1.652 and 1.681 bits per byte, seeds 0 to 2;
`base` after 300 steps 1.440, 1.428 and 1.428: slower than Muon over so few steps.
Measured with `base` of version 0.1, now `base_token_shift`
"""

from dataclasses import replace

import optax

from experiments.base import experiment as base
from zerotollm.experiment import Experiment


def experiment() -> Experiment:
    """Return `base` for 300 steps. `optimizer` below replaces the built-in one: plan, ablate and resume use it too."""
    train = replace(base().train, steps=300, eval_every=150, sample_every=0, checkpoint_every=150)
    return replace(
        base(), name="own_optimizer", train=train, optimizer=replace(base().optimizer, learning_rate=0.01)
    )


def optimizer(experiment: Experiment) -> optax.GradientTransformation:
    """Return NAdamW from optax, with warmup and cosine decay, for all parameters alike."""
    rate, steps = experiment.optimizer.learning_rate, experiment.train.steps
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, min(20, steps // 2), steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.nadamw(schedule, b2=0.95, weight_decay=0.1))
