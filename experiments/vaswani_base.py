"""Question: which BLEU does the Transformer of "Attention Is All You Need" reach, exactly as in the paper?

Group: translation

Command: python launch.py --experiment vaswani_base

Time: not yet measured; the paper took 12 hours on 8 P100 GPUs

Expected: not yet measured; the paper reports 27.3 tokenized BLEU on newstest2014, English to German
"""

from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.decoding.config import SamplingConfig
from zerotollm.experiment import Experiment
from zerotollm.model.config import TransformerConfig
from zerotollm.training.config import OptimizerConfig, TrainConfig

WARMUP = 4000


def rate(width: int) -> float:
    """Return the peak (at the last step of warmup) of equation 3 in arXiv:1706.03762."""
    return width**-0.5 * WARMUP**-0.5


def experiment() -> Experiment:
    """Return sections 3, 5 and 6.1 of arXiv:1706.03762, on WMT 2014 English to German.

    It has 63.1 million parameters: 18.9 in a shared vocabulary of 37,000 rows of 512, 18.9 in 6 encoder blocks, 25.2
    in 6 decoder blocks. The paper says 65. If these blocks are subtracted from every row of its Table 3, about 41,000
    rows of embedding remain, although the paper gives a vocabulary of "about 37000".

    TensorFlow Datasets downloads and prepares WMT 2014. Two files with a sentence per line do as well:
    `--data.corpus train.en.gz:train.de.gz --data.validation val.en.gz:val.de.gz --data.test test.en.gz:test.de.gz`,
    with `--data.reverse False` where the first is the source.
    """
    return Experiment(
        name="vaswani_base",
        # 98 x 256 = 25,088 source tokens and as many target tokens in a batch.
        data=DataConfig(corpus="tfds:wmt14_translate/de-en", reverse=True, context=256, batch_size=98),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=37000),
        model=TransformerConfig(
            architecture="encoder-decoder",
            num_layers=6,
            width=512,
            num_heads=8,
            ff_width=2048,
            feed_forward="relu",
            biases="feed_forward",
            norm="layer",
            norm_position="post",
            position="sinusoidal",
            qk_norm=False,
            tie_embeddings=True,
            embedding_scale=True,
            initialization="plain",
            dropout=0.1,
        ),
        optimizer=OptimizerConfig(
            kind="adamw",
            learning_rate=rate(512),
            schedule="inverse_sqrt",
            warmup_steps=WARMUP,
            weight_decay=0.0,
            beta1=0.9,
            beta2=0.98,
            epsilon=1e-9,
        ),
        # The paper wrote checkpoints every 10 minutes, at 0.4 seconds a step.
        train=TrainConfig(
            steps=100_000,
            label_smoothing=0.1,
            eval_every=5000,
            sample_every=5000,
            checkpoint_every=1500,
            keep=5,
            average=5,
            log_every=100,
        ),
        sample=SamplingConfig(
            prompt="The Transformer reads a sentence and writes its translation.",
            max_tokens=50,
            beam_size=4,
            length_penalty=0.6,
        ),
    )
