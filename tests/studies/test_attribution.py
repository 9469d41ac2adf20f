"""What the passages of a span cause is told from what their number causes, and from nothing."""

import json

import numpy as np
import pytest

from tests.studies.conftest import SECRET
from zerotollm.actions.attribute import attribute
from zerotollm.actions.config import AttributeOptions
from zerotollm.data.tokens.suffix_array import suffix_array
from zerotollm.errors import UsageError
from zerotollm.explain.estimates import Estimate
from zerotollm.explain.sources import AROUND
from zerotollm.studies.attribution import Attribution, compare_texts, edited_texts, nearest_places

DRAW = np.random.default_rng(0)


def test_only_the_passages_are_overwritten_and_the_span_is_gone():
    text_N = DRAW.integers(0, 4000, 20_000).astype(np.uint16)
    place_P, length = np.array([500, 7000, 19_990]), 8
    for place in place_P:
        text_N[place : place + length] = np.arange(4000, 4000 + length)
    same, without, random = edited_texts(text_N, place_P, length, seed=0)
    np.testing.assert_array_equal(same, text_N)
    span_L = text_N[500:508]
    assert [suffix_array(x).count(span_L) for x in (same, without, random)] == [3, 0, 3]
    size = length + 2 * AROUND
    for edited in (without, random):
        changed_N = np.flatnonzero(edited != text_N)
        assert len(edited) == len(text_N)
        assert 0 < len(changed_N) <= 3 * size
    near = np.abs(np.flatnonzero(random != text_N)[:, None] - place_P).min(1)
    assert near.min() > AROUND
    assert not np.array_equal(edited_texts(text_N, place_P, length, seed=1)[2], random)


def test_passages_that_are_most_of_the_text_are_refused():
    with pytest.raises(UsageError, match="too large a part"):
        edited_texts(np.arange(300), np.array([50, 150, 250]), 8, seed=0)


def test_passages_with_the_longest_parts_of_the_span_are_found():
    text_N = DRAW.integers(0, 4000, 20_000).astype(np.uint16)
    span_L = np.arange(4000, 4010, dtype=np.uint16)
    for place, (first, end) in {500: (0, 10), 3000: (3, 10), 6000: (0, 5), 9000: (2, 6), 530: (0, 9)}.items():
        text_N[place + first : place + end] = span_L[first:end]
    index = suffix_array(text_N)
    assert nearest_places(index, span_L, 20).tolist() == [
        500,
        3000,
        6000,
    ]  # 9000 has less than half, 530 is too near
    assert nearest_places(index, span_L, 2).tolist() == [500, 3000]


@pytest.mark.slow
def test_planted_passages_are_the_cause_and_others_are_not(tiny, tmp_path, capsys):
    options = AttributeOptions(text=f"the king saw {SECRET}", seeds=3)
    answer = attribute(tiny, tmp_path, options)
    assert SECRET in answer.span
    assert len(answer.documents) == 12
    assert answer.cause.low > 1
    assert answer.of_random.low < 1
    assert "the model knows the span because of them" in answer.sentence()
    record = json.loads((tmp_path / "attribution/attribution.json").read_text(encoding="utf-8"))
    assert record["answer"]["cause"]["low"] == answer.cause.low
    assert "without its passages" in capsys.readouterr().out
    # A span of the language, which the rest of the text teaches as well.
    common = AttributeOptions(text="king found the river of the a in", seeds=3)
    assert "is not shown" in attribute(tiny, tmp_path, common).sentence()


def test_noise_between_trainings_is_not_called_a_cause():
    """1,000 draws each, since 5 % of false claims are promised exactly: seeds differ by 2 nats and trainings by 0.5."""
    claimed = shown = 0
    for k in range(1000):
        random = np.random.default_rng(k)
        log_p_KS = -20 + random.normal(0, 2, 5) + random.normal(0, 0.5, (3, 5))
        without = np.array([[0.0], [2.0], [0.0]])
        facts = {"span": "a", "before": "", "documents": ("one",), "removed": 70, "epochs": 1.0}
        claimed += "is not shown" not in compare_texts(log_p_KS, **facts).sentence()
        shown += "because of it, which" in compare_texts(log_p_KS - without, **facts).sentence()
    print(
        f"\n| attribute: noise of 5 seeds; 2 nats less without the passages | {100 - claimed / 10} | {shown / 10} |"
    )
    assert claimed <= 65  # two standard deviations above 50
    assert shown >= 950


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (Estimate(2.0, 1.0, 3.0), "because of them, which made it 7.39 times as likely"),
        (Estimate(-2.0, -3.0, -1.0), "without them the span is likelier"),
        (Estimate(2.0, -1.0, 5.0), "because of them is not shown"),
    ],
)
def test_the_verdict_has_three_outcomes(cause, words):
    zero = Estimate(0.0, -1.0, 1.0)
    log_p_KS = DRAW.normal(-9, 1, (3, 5))
    answer = Attribution("a span", "before", ("one", "two"), 144, log_p_KS, cause, zero, 1.0)
    assert words in answer.sentence()
    assert len(answer.show().panels) == 2
    if cause.low > 0:
        assert "changes by -2 [-3, -1] nats (5 seeds" in answer.sentence()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (AttributeOptions(), "takes a text"),
        (AttributeOptions(text="the king", seeds=1), "--seeds is 1"),
        (AttributeOptions(text="the king", passages=0), "--passages 0"),
        (AttributeOptions(text="Ωψ"), "no two neighbouring tokens"),
        (AttributeOptions(text="of the"), "times in the training text"),
    ],
)
def test_bad_input_is_one_clear_line(tiny, tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        attribute(tiny, tmp_path, options)
