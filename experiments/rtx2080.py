"""Question: what is the best model of English that 24 hours of an RTX 2080 can train?

Group: for your own GPU

Command: python launch.py --experiment rtx2080

Time: not yet measured; `plan --device rtx2080` predicts about 23 hours, a factor of 2 either way

Expected: not yet measured
"""

from dataclasses import replace

from experiments.gpt2_124m import experiment as gpt2_124m
from zerotollm.experiment import Experiment


def experiment() -> Experiment:
    """Return `gpt2_124m` in the compute-optimal size for 24 hours, from `plan --device rtx2080 --hours 24`.

    `gpt2_124m` itself would see 10 tokens per parameter in a day. At the speed predicted for this card, 20 tokens per
    parameter (arXiv:2203.15556, table 3) take 24 hours for 80 to 90 million parameters. Width 640 suits matrix units
    (10 heads of 64), and 12 layers keep GPT-2's shape. The head takes a third of all products there; a vocabulary of
    32,768 instead of 50,304 makes it cheaper by a third. Micro-batches of 4 windows fit into 8 GB without remat. If
    the card is faster or slower, change `train.steps`: `plan` shows tokens/s.
    """
    parent = gpt2_124m()
    return replace(
        parent,
        name="rtx2080",
        tokenizer=replace(parent.tokenizer, vocab_size=32768),
        model=replace(parent.model, width=640, num_heads=10),
        train=replace(parent.train, steps=26_000),
    )
