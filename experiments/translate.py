"""Question: can two CPU cores learn to translate Wycliffe's English of 1395 into modern English?

Group: translation

Command: python launch.py --experiment translate

Time: 21:22 on one core of an AMD EPYC with AVX-512 (`taskset -c 0 python launch.py ...`)

Expected: 27.61 BLEU and 48.1 chrF on the test chapters, 30.18 and 50.1 on the validation chapters (one seed;
`evaluate --split test` and `--split validation`)
"""

from dataclasses import replace
from typing import Any

from experiments.base import experiment as base
from zerotollm.experiment import Experiment

STEP_TOKENS, BYTES_PER_STEP = 16 * 96, 5000
"""Tokens of a step of `experiment()`, and about the bytes of targets that it reads."""


def experiment() -> Experiment:
    """Return `base` with an encoder, on verses of the Wycliffe Bible and of the World English Bible.

    It is narrower than `base`, since it has two sides and reads about five epochs. Its heads are more and narrower,
    since one head of cross-attention attends to one position. Planted heads on both sides and rope in cross-attention
    make it learn the alignment sooner (docs/results/translation.md).
    """
    parent = base()
    return replace(
        parent,
        name="translate",
        data=replace(parent.data, corpus="bible-wyc:bible-web", context=96, batch_size=16),
        tokenizer=replace(parent.tokenizer, vocab_size=3072),
        model=replace(
            parent.model,
            architecture="encoder-decoder",
            num_layers=3,
            encoder_layers=3,
            width=128,
            num_heads=4,
            cross_rope=True,
            dropout=0.1,
        ),
        optimizer=replace(parent.optimizer, block=32),
        train=replace(
            parent.train,
            steps=4000,
            label_smoothing=0.1,
            eval_every=500,
            sample_every=1000,
            checkpoint_every=500,
        ),
        sample=replace(
            parent.sample,
            prompt="In the bigynnyng God made of nouyt heuene and erthe.",
            max_tokens=50,
            beam_size=8,
            length_penalty=1.4,  # with the paper's 0.6 the hypotheses of these models are 5 % too short
        ),
    )


def recipe_for_pairs(target_bytes: int, step_tokens: int = STEP_TOKENS) -> dict[str, Any]:
    """Return the fields for other pairs, by the bytes of their training targets (docs/results/translation.md).

    Training reads 40 MB of targets, but each at most 20 times and at least once, in 1,000 steps or more of
    `step_tokens` (batch times context). The more often it reads them, the more dropout. From 10 MB on, width and
    vocabulary follow usual practice and are not measured.
    """
    read = max(min(40e6, 20 * target_bytes), target_bytes)
    step_bytes = BYTES_PER_STEP * step_tokens / STEP_TOKENS
    steps = max(1000, round(read / step_bytes, -3))
    epochs = steps * step_bytes / max(1, target_bytes)
    size = sum(target_bytes >= limit for limit in (0.1e6, 1e6, 10e6, 100e6))
    width = (128, 128, 128, 256, 512)[size]
    return {
        "train.steps": int(steps),
        "model.dropout": 0.3 if epochs > 30 else 0.2 if epochs > 15 else 0.1,
        "model.width": width,
        "model.num_heads": width // 32,
        "tokenizer.vocab_size": (512, 2048, 4096, 8192, 16384)[size],
        "sample.length_penalty": 1.4,
    }
