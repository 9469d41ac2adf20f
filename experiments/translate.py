"""Question: can two CPU cores learn to translate Wycliffe's English of 1395 into modern English?

Group: translation

Command: python launch.py --experiment translate

Time: 57 minutes on one core of an AMD EPYC, shared with another run (`taskset -c 0 python launch.py ...`)

Expected: 27.76 BLEU and 47.9 chrF on the test chapters, 30.31 and 50.3 on the validation chapters (one seed;
`evaluate --split test` and `--split validation`)
"""

from dataclasses import replace

from experiments.base_token_shift import experiment as base
from zerotollm.experiment import Experiment


def experiment() -> Experiment:
    """Return `base_token_shift` with an encoder, on verses of the Wycliffe Bible and of the World English Bible.

    It is narrower than `base`, since it has two sides and reads about five epochs. Its heads are more and narrower,
    since one head of cross-attention attends to one position. Token shift on both sides and rope in cross-attention
    make it learn the alignment sooner; docs/results/translation.md has their effects in `bible_style`.
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
