"""Question: can I pretrain a model with the shape of GPT-2 small on my own GPU?

Group: for your own GPU

Command: python launch.py --experiment gpt2_124m

Time: not yet measured; `plan --device rtx2080` predicts it

Expected: not yet measured
"""

from dataclasses import replace

from experiments.base import experiment as base
from zerotollm.data.config import DataConfig
from zerotollm.experiment import Experiment
from zerotollm.model.config import TransformerConfig


def experiment() -> Experiment:
    """Return `base` with 12 layers of width 768 and a context of 1,024, as in GPT-2 (Radford et al. 2019, table 2).

    The architecture is that of Qwen3, with tied embeddings. The length is 20 tokens per parameter
    (arXiv:2203.15556). Micro-batches of 4 windows fit into 8 GB: see `plan`.

    The text is FineWeb-Edu's sample of 10 billion tokens (arXiv:2406.17557), of which a quarter is read. It is
    streamed (`pip install -r requirements-hf.txt`), and only its tokens are kept, 2 bytes each: about 20 GB. `prepare`
    makes them before training: 48 s for a GB of text on two CPU cores (docs/results/speed.md), so about 40 minutes if
    the connection is as fast. Then `plan --device rtx2080` predicts 47 hours. For your own text, from about 2 GB on:
    `--data.corpus my_text/`.
    """
    parent = base()
    return replace(
        parent,
        name="gpt2_124m",
        data=DataConfig(
            corpus="hf:HuggingFaceFW/fineweb-edu/sample-10BT",
            validation_fraction=0.0005,
            test_fraction=0.0005,
            context=1024,
            batch_size=64,
        ),
        tokenizer=replace(parent.tokenizer, vocab_size=50304),
        model=TransformerConfig(num_layers=12, width=768, num_heads=12, tie_embeddings=True),
        optimizer=replace(parent.optimizer, warmup_steps=250),
        train=replace(
            parent.train,
            steps=38_000,
            micro_batches=16,
            eval_every=2000,
            sample_every=2000,
            checkpoint_every=1000,
        ),
    )
