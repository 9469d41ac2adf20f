"""Question: how well does a pretrained model converse after fine-tuning on a few thousand conversations?

Group: fine-tuning a pretrained model

Command: python launch.py --experiment finetune_chat --train.start-from runs/base, after pip install
chitchat-dataset==0.9.0

Time: 5 minutes on one core of an AMD EPYC, shared with another run

Expected: 1.8614 bits per byte of the answers in the validation conversations; from scratch 1.8440, and from scratch
with the vocabulary of `base` 1.9089 (three seeds each): the pretraining of `base` helps, its vocabulary does not.
Measured with `base` of version 0.1, now `base_token_shift`
"""

from dataclasses import replace

from experiments.base import experiment as base
from experiments.finetune_subject import FROM_SCRATCH
from zerotollm.experiment import Experiment
from zerotollm.studies.suite import Variant, variants_of


def experiment() -> Experiment:
    """Return `base` on small talk (`pip install chitchat-dataset`), with loss on the answers only, for `chat`, `serve`.

    For your own conversations add `--data.corpus my.jsonl`: in every line `messages`, a list of `role` (system, user
    or assistant) and `content`. Without `--train.start-from` the model is trained from scratch.
    """
    parent = base()
    return replace(
        parent,
        name="finetune_chat",
        data=replace(parent.data, corpus="chitchat", batch_size=8),
        model=replace(parent.model, dropout=0.1),
        train=replace(
            parent.train,
            objective="completion",
            steps=600,
            eval_every=200,
            sample_every=0,
            checkpoint_every=200,
        ),
        sample=replace(parent.sample, max_tokens=60),
    )


def variants(base: Experiment) -> tuple[Variant, ...]:
    """Return the variant for `ablate --init-from runs/base`: training from scratch."""
    return variants_of(base, FROM_SCRATCH)
