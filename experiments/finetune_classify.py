"""Question: which kind of book is a passage from, and does a pretrained model tell it better than counting words?

Group: fine-tuning, from a model that was trained

Command: python launch.py --experiment finetune_classify --train.start-from runs/base

Time: 4:26 on 2 CPU cores that others used too (AMD EPYC)

Expected: accuracy 0.8066 and macro F1 0.6870 on the test passages, from scratch 0.7672 and 0.6625; TF-IDF and logistic
regression have 0.8295 and 0.7974 (one seed). Of validation passages 0.1850 are told wrong, from scratch 0.2070 (eight
seeds); after 100 steps 0.2332 and 0.3768 (three seeds)
"""

from dataclasses import replace

from experiments.base import experiment as base
from zerotollm.experiment import Experiment
from zerotollm.studies.suite import Variant, changed


def experiment() -> Experiment:
    """`base` with a head over seven genres, on passages of a few verses; `evaluate --split test` puts it beside TF-IDF.

    Passages are cut from the chapters of their split, so that no model has seen a test passage or its neighbours.
    `--data.corpus version:bible-web+bible-kjv+bible-bbe` asks which translation a passage is from; your own texts are
    `--data.corpus my.jsonl`, with `text` and `label` in every line. Without `--train.start-from`: from nothing.
    """
    parent = base()
    return replace(
        parent,
        name="finetune_classify",
        data=replace(parent.data, corpus="genre:bible-web", context=128, batch_size=16),
        model=replace(parent.model, dropout=0.1),
        optimizer=replace(
            parent.optimizer, learning_rate=0.002, adam_learning_rate=0.003, embedding_learning_rate=0.02
        ),
        train=replace(
            parent.train, objective="label", steps=300, eval_every=100, sample_every=0, checkpoint_every=100
        ),
    )


def variants(base: Experiment) -> tuple[Variant, ...]:
    """For `ablate --init-from runs/base`: what the beginning gave."""
    scratch = {"train.start_from": ""}
    return (Variant("scratch", "beginning", changed(base, scratch), "-", "the same steps from nothing"),)
