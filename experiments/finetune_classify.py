"""Question: does a pretrained model classify the genre of a passage better than word counts do?

Group: fine-tuning a pretrained model

Command: python launch.py --experiment finetune_classify --train.start-from runs/base

Time: 4:26 on 2 shared CPU cores (AMD EPYC)

Expected: accuracy 0.8066 and macro F1 0.6870 on the test passages, from scratch 0.7672 and 0.6625; TF-IDF and logistic
regression have 0.8295 and 0.7974 (one seed). The validation error is 0.1850, from scratch 0.2070 (eight seeds); after
100 steps 0.2332 and 0.3768 (three seeds). Measured with `base` of version 0.1, now `base_token_shift`
"""

from dataclasses import replace

from experiments.base import experiment as base
from experiments.finetune_subject import FROM_SCRATCH
from zerotollm.experiment import Experiment
from zerotollm.studies.suite import Variant, variants_of


def experiment() -> Experiment:
    """Return `base` with a head for seven genres, on passages of a few verses. `evaluate` compares it with TF-IDF.

    Passages are cut from the chapters of their split: no model has seen a test passage or its neighbours.
    `--data.corpus version:bible-web+bible-kjv+bible-bbe` classifies the translation. For your own texts add
    `--data.corpus my.jsonl`, with `text` and `label` in every line. Without `--train.start-from` the model is trained
    from scratch.
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
    """Return the variant for `ablate --init-from runs/base`: training from scratch."""
    return variants_of(base, FROM_SCRATCH)
