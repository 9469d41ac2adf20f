"""Question: can two CPU cores rewrite literal English as Basic English better than published systems did?

Command: python launch.py --experiment bible_style --data.corpus Train.source.txt:Train.target.txt
--data.validation Dev.source.txt:Dev.target.txt --data.test Test.source.txt:Test.target.txt

Time: 37:44 on one core of an AMD EPYC, beside another run (`taskset -c 0 python launch.py ...`)

Expected: 35.4 BLEU on the dev file (evaluate --split validation; one seed), with --model.dropout 0.2 34.4; the test
file has not been looked at: there Moses has 28.5 BLEU and the paper's Seq2Seq 27.6 (arXiv:1711.04731)
"""

from dataclasses import replace

from experiments.translate import experiment as translate
from zerotollm.experiment import Experiment


def experiment() -> Experiment:
    """`translate` on the files YLTToBBE of "Evaluating prose style transfer with the Bible" (arXiv:1711.04731)."""
    parent = translate()
    return replace(
        parent,
        name="bible_style",
        data=replace(parent.data, corpus=""),
        sample=replace(parent.sample, prompt="And God saith, `Let light be;' and light is."),
    )
