"""Question: what is the best model of English that 24 hours of an RTX 2080 can train?

Group: for a GPU of your own

Command: python launch.py --experiment rtx2080

Time: not yet measured; `plan --device rtx2080` predicts about 23 hours, a factor of 2 either way

Expected: not yet measured
"""

from dataclasses import replace

from experiments.gpt2_124m import experiment as gpt2_124m
from zerotollm.experiment import Experiment


def experiment() -> Experiment:
    """`gpt2_124m`, as small as 24 hours ask for, by the reasoning of `plan --device rtx2080 --hours 24`.

    `gpt2_124m` itself would see 10 tokens a parameter in a day. At the speed predicted for this card, 20 tokens a
    parameter (arXiv:2203.15556, table 3) meet 24 hours at 80 to 90 million parameters. Width 640 keeps matrix units
    busy (10 heads of 64) and 12 layers GPT-2's shape. A vocabulary of 32,768 instead of 50,304 makes the head,
    which is a third of all products there, cheaper by a third. Micro-batches of 4 windows
    leave room on 8 GB without computing anything twice. Should the card prove faster or slower, `train.steps` is
    what to change: see `plan` for tokens/s.
    """
    parent = gpt2_124m()
    return replace(
        parent,
        name="rtx2080",
        tokenizer=replace(parent.tokenizer, vocab_size=32768),
        model=replace(parent.model, width=640, num_heads=10),
        train=replace(parent.train, steps=26_000),
    )
