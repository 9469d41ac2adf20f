"""Test the scores of translations against the arithmetic of their definitions and against sacrebleu's functions."""

import math

import pytest
import sacrebleu

from zerotollm.evaluation.bleu import corpus_scores

REFERENCE = "the cat sat on the mat today"


def test_bleu_is_the_geometric_mean_of_the_precisions():
    # 5 of 6 words, 4 of 5 pairs, 3 of 4 triples and 2 of 3 quadruples occur in a reference of the same length.
    scores = corpus_scores(["a b c d e x"], ["a b c d e f"])
    assert scores["bleu"] == pytest.approx(100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25)


def test_a_short_translation_pays_the_brevity_penalty_and_a_long_one_loses_precision():
    """Swapped sides would give each the score of the other."""
    short = corpus_scores(["the cat sat on the mat"], [REFERENCE])["bleu"]
    long = corpus_scores([REFERENCE], ["the cat sat on the mat"])["bleu"]
    assert short == pytest.approx(100 * math.exp(1 - 7 / 6))
    assert long == pytest.approx(100 * (6 / 7 * 5 / 6 * 4 / 5 * 3 / 4) ** 0.25)


def test_scores_of_a_corpus_are_sacrebleus():
    hypotheses = ("The cat sat on the mat", "a small dog barks at night, loudly!")
    references = (REFERENCE, "a small dog barked at night, loudly!")
    scores = corpus_scores(hypotheses, references)
    assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(hypotheses, [references]).score)
    lower = sacrebleu.corpus_bleu(hypotheses, [references], lowercase=True)
    assert scores["bleu_lowercase"] == pytest.approx(lower.score)
    assert "case:lc" in scores["bleu_lowercase_signature"]
    assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(hypotheses, [references]).score)
    for part in ("nrefs:1", "tok:13a", "case:mixed", "smooth:exp"):
        assert part in scores["bleu_signature"]
    assert "nc:6|nw:0" in scores["chrf_signature"]


@pytest.mark.parametrize(
    ("hypotheses", "references"), [([], []), (["a"], []), ([], ["a"]), (["a"], ["a", "b"])]
)
def test_every_translation_needs_its_reference(hypotheses, references):
    with pytest.raises(ValueError, match=f"{len(hypotheses)} hypotheses for {len(references)} references"):
        corpus_scores(hypotheses, references)
