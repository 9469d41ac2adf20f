"""Question: how far does a model that only read get in a conversation, when it learns answers from a few thousand?

Group: fine-tuning, from a model that was trained

Command: python launch.py --experiment finetune_chat --train.start-from runs/base

Time: 5 minutes on one core of an AMD EPYC, beside another run

Expected: 1.8614 bits per byte of the answers in the validation conversations, from nothing 1.8440, and from nothing
with the vocabulary of `base` 1.9089 (three seeds each): what `base` learned of the Bible helps, its vocabulary hinders
"""

from dataclasses import replace

from experiments.base import experiment as base
from zerotollm.experiment import Experiment
from zerotollm.studies.suite import Variant, changed


def experiment() -> Experiment:
    """`base` on small talk (`pip install chitchat-dataset`), with loss on the answers alone; then `chat`, or `serve`.

    Your own conversations are `--data.corpus my.jsonl`: in every line `messages`, a list of `role` (system, user or
    assistant) and `content`. Without `--train.start-from` the same is trained from nothing.
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
    """For `ablate --init-from runs/base`: what the beginning gave."""
    scratch = {"train.start_from": ""}
    return (Variant("scratch", "beginning", changed(base, scratch), "-", "the same steps from nothing"),)
