"""A rule is born where it stays above models without training and above token frequencies, and not before."""

import numpy as np
import pytest

from zerotollm.explain.grammar import PairWords, count_pair_words, deciding_words, measure_grammar

STEPS = np.array([0, 10, 20, 30, 40])
N, K = 120, 10


def measured(shares, chance=0.5, frequencies=0.5, seed=0, rules=("agreement",)):
    """Measure rules that are right as often as `shares` says at each step; pairs of two paradigms each."""
    draw = np.random.default_rng(seed)
    size = N * len(rules)
    right_YN = (
        draw.random((len(STEPS), size)) < np.repeat(np.atleast_2d(shares), N, axis=0).reshape(size, -1).T
    )
    fresh_KN = draw.random((K, size)) < np.clip(chance + draw.normal(0, 0.02, (K, 1)), 0, 1)
    frequencies_N = (draw.random(size) < frequencies).astype(float)
    phenomena = np.repeat(rules, N).tolist()
    paradigms = [f"{name} {i % 2}" for i, name in enumerate(phenomena)]
    often = np.repeat(np.arange(len(rules)) + 1.0, N)
    words = PairWords(often, np.ones(size))
    return measure_grammar(STEPS, right_YN, fresh_KN, frequencies_N, phenomena, paradigms, words)


def test_a_rule_is_born_where_it_rises_and_stays():
    (rule,) = measured([0.5, 0.5, 0.9, 0.9, 0.9]).rules
    assert rule.born == 20
    assert [part.name for part in rule.parts] == ["agreement 0", "agreement 1"]
    assert {part.born for part in rule.parts} == {20}
    assert rule.pairs == N
    (rule,) = measured([0.5, 0.95, 0.5, 0.9, 0.9]).rules  # what was lost in between was not learned for good
    assert rule.born == 30
    (rule,) = measured([0.5, 0.9, 0.9, 0.9, 0.5]).rules
    assert rule.born is None


def test_above_half_is_nothing_if_untrained_models_or_frequencies_are_there_too():
    assert measured([0.8] * 5, chance=0.8).rules[0].born is None
    assert measured([0.8] * 5, frequencies=0.8).rules[0].born is None
    assert measured([0.5, 0.5, 0.8, 0.8, 0.8], chance=0.2, frequencies=0.3).rules[0].born is not None


def test_the_sentence_names_the_rules_in_their_order_and_how_often_their_words_occur():
    names = ("rare", "seldom", "often", "common", "frequent", "noise")
    late = [[0.5] * (5 - k) + [0.95] * k for k in (1, 2, 3, 4, 4)]
    answer = measured([*late, [0.5] * 5], rules=names)
    assert [rule.name for rule in answer.learned()][-1] == "rare"
    assert answer.by_frequency.value < -0.9
    assert answer.sentence().startswith("5 of 6 phenomena are shown to be learned by step 40")
    assert "rules of frequent words came first (" in answer.sentence()
    panels = list(answer.panels())
    assert [panel.choice for panel in panels[1:]] == sorted(names)
    assert answer.show().panels
    nothing = measured([0.5] * 5)
    assert nothing.sentence().startswith("0 of 1 phenomena")
    assert np.isnan(nothing.by_frequency.value)


def test_order_is_not_claimed_where_all_came_together():
    answer = measured([[0.5, 0.95, 0.95, 0.95, 0.95]] * 5, rules=tuple("abcde"))
    assert len(answer.learned()) == 5
    assert "came first" not in answer.sentence()


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [
        ("The kings are here.", "The kings is here.", {"are", "is"}),
        ("He went to the house.", "He to went the house.", {"he", "went", "to", "the", "house"}),
        ("She has not left.", "She has never not left.", {"never"}),
        ("Don’t go.", "Don't go.", {"don’t", "don't"}),
    ],
)
def test_words_that_decide_a_pair(good, bad, words):
    assert deciding_words(good, bad) == words


def test_words_are_counted_whatever_their_case():
    words = count_pair_words(
        [("The Kings are", "The Kings is"), ("robots are", "robots is")], "the kings ARE is are it"
    )
    np.testing.assert_allclose(words.per_million_N, 1e6 / 6)
    np.testing.assert_array_equal(words.known_N, [1, 0])
