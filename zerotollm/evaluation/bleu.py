"""Translation quality by sacrebleu (Post 2018, arXiv:1804.08771), comparable with published numbers."""

from collections.abc import Sequence

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF


def corpus_scores(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """Return corpus BLEU (Papineni et al. 2002) and chrF (Popović 2015), 0 to 100, one reference a hypothesis.

    The keys are `bleu`, `bleu_lowercase` (for benchmarks that are scored in lower case) and `chrf`, and each with
    `_signature`, which says how sacrebleu computed it. Raises ValueError for different numbers of hypotheses and
    references, and for none.
    """
    if len(hypotheses) != len(references) or not hypotheses:
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(references)} references")
    scores: dict[str, float | str] = {}
    metrics = {"bleu": BLEU(), "bleu_lowercase": BLEU(lowercase=True), "chrf": CHRF()}
    for name, metric in metrics.items():
        scores[name] = metric.corpus_score(list(hypotheses), [list(references)]).score
        scores[f"{name}_signature"] = str(metric.get_signature())
    return scores
