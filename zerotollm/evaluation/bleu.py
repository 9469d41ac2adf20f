"""How good translations are, by sacrebleu (Post 2018, arXiv:1804.08771): numbers that compare with published ones."""

from collections.abc import Sequence
from typing import Any


def corpus_scores(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """BLEU (Papineni et al. 2002) and chrF (Popović 2015) of a whole corpus, 0 to 100, one reference a hypothesis.

    Returns `bleu`, `chrf` and sacrebleu's signatures of both, which say how they were computed. Raises ValueError
    where there are not as many hypotheses as references, or none.
    """
    if len(hypotheses) != len(references) or not hypotheses:
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(references)} references")
    from sacrebleu.metrics import BLEU, CHRF

    scores = {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        scores[name] = metric.corpus_score(list(hypotheses), [list(references)]).score
        scores[f"{name}_signature"] = str(metric.get_signature())
    return scores
