"""Question: does a decoder that knows the target language translate as well as an encoder-decoder made for it?

Group: fine-tuning a pretrained model

Command: python launch.py --experiment finetune_translate --train.start-from runs/base

Time: 7 minutes on one core of an AMD EPYC, shared with another run

Expected: no. 17.23 BLEU on the validation chapters (0.9415 bits per byte), from scratch 16.47 (1.0231), with the
tokenizer of `base` 14.06 (0.9954; one seed each). The encoder-decoder at the same compute, from scratch, has 26.71
(0.9215; three seeds, by version 0.1)
"""

from dataclasses import replace

from experiments.base import experiment as base
from experiments.finetune_subject import FROM_SCRATCH
from experiments.translate import experiment as translate
from zerotollm.experiment import Experiment
from zerotollm.planning.flops import flops_per_step
from zerotollm.studies.suite import Change, Variant, variants_of


def experiment() -> Experiment:
    """Return `base` on the pairs of `translate`: a verse, a line end and its translation, with loss on the translation.

    The tokenizer is made of the pairs, since that of `base` splits the words of 1395 into many tokens.
    `evaluate --split test` measures BLEU, as for `translate`, the encoder-decoder on the same pairs.
    """
    parent = base()
    return replace(
        parent,
        name="finetune_translate",
        data=replace(parent.data, corpus="bible-wyc:bible-web", context=192, batch_size=8),
        train=replace(
            parent.train,
            objective="completion",
            start_tokenizer="new",
            steps=1000,
            eval_every=250,
            sample_every=500,
            checkpoint_every=250,
        ),
        sample=replace(
            parent.sample, prompt="In the bigynnyng God made of nouyt heuene and erthe.", max_tokens=80
        ),
    )


def variants(base: Experiment) -> tuple[Variant, ...]:
    """Return the variants for `ablate --init-from runs/base`: training from scratch, the tokenizer of `base`, and an
    encoder-decoder.

    The encoder-decoder is trained from scratch for as many steps as take the same compute.
    """
    other = translate()
    steps = max(1, round(base.train.steps * flops_per_step(base) / flops_per_step(other)))
    every = {"eval_every": 0, "sample_every": 0, "checkpoint_every": 0}
    encoder = replace(
        other, name=base.name, train=replace(other.train, steps=steps, seed=base.train.seed, **every)
    )
    sentence = "`translate`, from nothing, in steps that take the same compute"
    compared = Variant("encoder-decoder", "architecture", encoder, "arXiv:1706.03762", sentence)
    same = Change(
        "same-tokenizer", {"train.start_tokenizer": "same"}, "arXiv:2402.09977", "the tokenizer of `base`"
    )
    return (*variants_of(base, FROM_SCRATCH | {"tokenizer": [same]}), compared)
