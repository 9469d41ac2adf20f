"""Question: can two CPU cores rewrite literal English as Basic English better than published systems did?

Group: translation

Command: python launch.py --experiment bible_style --data.corpus Train.source.txt:Train.target.txt
--data.validation Dev.source.txt:Dev.target.txt --data.test Test.source.txt:Test.target.txt

Time: 38 minutes on one core of an AMD EPYC, shared with another run (`taskset -c 0 python launch.py ...`)

Expected: 31.2 BLEU on the test file (31.10, 31.27, 31.34: three seeds, `evaluate --split test`), compared with 28.5 of
Moses and 27.6 of the paper's Seq2Seq (arXiv:1711.04731); 36.4 on the easier dev file (36.48, 36.29, 36.29)
"""

from dataclasses import replace

from experiments.base_token_shift import with_token_shift
from experiments.translate import experiment as translate
from zerotollm.experiment import Experiment


def experiment() -> Experiment:
    """Return `translate` on YLTToBBE of "Evaluating prose style transfer with the Bible" (arXiv:1711.04731).

    It has token shift instead of planted heads, which were 0.2 BLEU worse with both seeds that were tried
    (docs/results/translation.md).
    """
    parent = with_token_shift(translate())
    return replace(
        parent,
        name="bible_style",
        data=replace(parent.data, corpus=""),
        sample=replace(parent.sample, prompt="And God saith, `Let light be;' and light is."),
    )
