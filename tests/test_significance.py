"""Means, deviations and paired intervals against scipy's."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from zerotollm.significance import (
    Comparison,
    Looks,
    compare_all,
    equivalence_p_value,
    holm,
    outcome,
    shorter_p_value,
    standard_deviation,
    student_p_value,
    upper_p_value,
)
from zerotollm.studies.records import read_runs

ROOT = Path(__file__).parent.parent


def paired_difference(base: list[float], variant: list[float], margin: float = 0.0) -> Comparison:
    """Return one comparison alone; no difference is within a margin of 0."""
    return compare_all([[right - left for left, right in zip(base, variant, strict=True)]], margin)[0]


PAIRS = st.lists(st.tuples(st.floats(0.5, 3.0), st.floats(0.5, 3.0)), min_size=2, max_size=8)


@given(PAIRS)
def test_is_scipys_paired_t_interval(pairs):
    base, variant = map(list, zip(*pairs, strict=True))
    assume(np.std(np.subtract(variant, base)) > 1e-6)
    found = paired_difference(base, variant)
    expected = stats.ttest_rel(variant, base).confidence_interval(0.95)
    assert found.low == pytest.approx(expected.low, rel=1e-6, abs=1e-9)
    assert found.high == pytest.approx(expected.high, rel=1e-6, abs=1e-9)
    assert found.difference == pytest.approx(np.mean(variant) - np.mean(base), abs=1e-9)
    assert found.pairs == len(pairs)
    assert standard_deviation(base) == pytest.approx(np.std(base, ddof=1), abs=1e-9)


@given(PAIRS)
def test_a_verdict_is_the_side_of_the_interval_and_turns_with_the_roles(pairs):
    base, variant = map(list, zip(*pairs, strict=True))
    there, back = paired_difference(base, variant), paired_difference(variant, base)
    turned = {"better": "worse", "worse": "better", "no difference shown": "no difference shown"}
    assert back.verdict == turned[there.verdict]
    assert (there.verdict == "better") == (there.high < 0)
    assert (there.verdict == "worse") == (there.low > 0)


def test_one_seed_shows_nothing():
    alone = paired_difference([1.0], [0.5])
    assert (alone.difference, alone.low, alone.high, alone.verdict) == (-0.5, None, None, "one seed")
    assert standard_deviation([1.0]) is None


def test_what_the_seed_does_to_both_drops_out():
    """Seeds far apart, the difference the same: paired, it shows."""
    assert paired_difference([1.0, 2.0, 3.0], [0.99, 1.991, 2.989]).verdict == "better"
    assert paired_difference([1.0, 2.0, 3.0], [1.5, 1.5, 3.0]).verdict == "no difference shown"


def test_equal_runs_show_no_difference():
    same = paired_difference([1.0, 2.0], [1.0, 2.0])
    assert (same.low, same.high, same.verdict) == (0.0, 0.0, "no difference shown")


def test_pairs_must_be_pairs():
    with pytest.raises(ValueError, match="no pair"):
        paired_difference([], [])
    assert math.isnan(paired_difference([math.nan, 1.0], [1.0, 1.0]).difference)


def test_verdicts_are_corrected_for_all_rows():
    """By scipy's p-values and Holm's steps: 0.03 is shown alone, but not together with a row that shows nothing."""
    sure, likely, nothing = [0.1, 0.11, 0.12], [0.01, 0.016, 0.013], [-0.3, 0.2, 0.14]
    p = [stats.ttest_1samp(row, 0.0).pvalue for row in (sure, likely, nothing)]
    assert p[0] < p[1] < 0.05 / 2 < p[2]
    found = compare_all([nothing, sure, likely, [0.5]], 0.001)
    assert [c.verdict for c in found] == ["no difference shown", "worse", "worse", "one seed"]
    assert [c.p_value for c in found] == pytest.approx([p[2], 3 * p[0], 2 * p[1], 1.0])
    rows = [nothing, likely, [-x for x in sure], *[nothing] * 4]
    found = compare_all(rows, 0.001)
    assert [c.verdict for c in found[:3]] == ["no difference shown", "no difference shown", "better"]
    # Intervals are of a row alone.
    assert (found[1].low, found[1].high) == pytest.approx(
        tuple(stats.ttest_1samp(likely, 0).confidence_interval())
    )


def test_a_difference_may_be_sure_and_too_small_to_matter():
    tiny, loose = [2e-5, 2.1e-5, 2.2e-5], [0.003, -0.003, 0.0001]
    found = compare_all([tiny, loose], 0.002)
    assert [c.verdict for c in found] == ["no difference that matters", "no difference shown"]
    lower = stats.ttest_1samp(tiny, -0.002, alternative="greater").pvalue
    upper = stats.ttest_1samp(tiny, 0.002, alternative="less").pvalue
    assert found[0].equivalence_p_value == pytest.approx(2 * max(lower, upper))
    assert compare_all([tiny], 2e-5)[0].verdict == "worse"
    # Shown to be within the margin alone, but not for 50 rows.
    near = [0.0008, 0.0003, 0.0005]
    assert compare_all([near], 0.002)[0].verdict == "no difference that matters"
    assert compare_all([near] + [loose] * 49, 0.002)[0].verdict == "no difference shown"


@pytest.mark.parametrize(
    ("true", "wrong"),
    [
        (0.0, {"better", "worse"}),
        (0.002, {"no difference that matters"}),
        (-0.002, {"no difference that matters"}),
    ],
)
def test_suites_of_noise_show_nothing(true, wrong):
    """At most 5 % of 1,000 suites (45 rows, 3 seeds), and three standard errors, may show a false difference."""
    noise = np.random.default_rng(0).normal(true, 0.001, (1000, 45, 3))
    shown = [any(c.verdict in wrong for c in compare_all(rows.tolist(), 0.002)) for rows in noise]
    print(f"nothing shown in {100 - sum(shown[:100])}")
    assert np.mean(shown) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)
    assert sum(shown[:100]) <= 5


def test_planted_differences_are_shown():
    """In 100 suites, one row is far from the base, then very close to it."""
    far = close = 0
    for seed in range(100):
        rows = np.random.default_rng(seed).normal(0, 0.001, (45, 3))
        rows[7] += 0.2
        far += compare_all(rows.tolist(), 0.002)[7].verdict == "worse"
        rows[7] *= 1e-5 / 0.2
        close += compare_all(rows.tolist(), 0.002)[7].verdict == "no difference that matters"
    print(f"planted shown in {far} and {close}")
    assert min(far, close) >= 95


LOOKS = Looks(3, 12)
UNDECIDED = "no difference shown"


def until_shown(rows: np.ndarray, margin: float = 0.002) -> list[Comparison]:
    """Return the last comparisons of a suite that adds a seed to every undecided row."""
    counts = [LOOKS.first] * len(rows)
    for seeds in range(LOOKS.first, LOOKS.last + 1):
        found = compare_all([list(row[:n]) for row, n in zip(rows, counts, strict=True)], margin, LOOKS)
        undecided = [i for i, c in enumerate(found) if c.verdict == UNDECIDED]
        for i in undecided:
            counts[i] = min(seeds + 1, LOOKS.last)
    return found


def test_the_looks_spend_what_is_allowed():
    shares = [LOOKS.share(seeds) for seeds in range(LOOKS.first, LOOKS.last + 1)]
    assert sum(shares) == pytest.approx(1)
    assert shares[0] == 9 / 144
    assert min(shares) > 0


def test_one_look_is_the_fixed_design():
    rows = np.random.default_rng(0).normal(0.001, 0.001, (5, 4)).tolist()
    assert compare_all(rows, 0.002, Looks(4, 4)) == compare_all(rows, 0.002)


def recorded_noise(draw: np.random.Generator, rows: int) -> np.ndarray:
    """Return differences between real runs that differ by the seed alone, drawn from the suite of ablations."""
    values: dict[str, list[float]] = {}
    for record in read_runs(ROOT / "results" / "ablations" / "small"):
        if record["rate"] == 1 and record["validation_bpb"]:
            values.setdefault(record["variant"], []).append(record["validation_bpb"])
    groups = [np.array(group) for group in values.values() if len(group) == 3]
    residuals = np.concatenate([(group - group.mean()) * math.sqrt(3 / 2) for group in groups])
    return draw.choice(residuals, (rows, LOOKS.last)) - draw.choice(residuals, (rows, LOOKS.last))


@pytest.mark.parametrize("noise", ["normal", "recorded"])
def test_adding_seeds_until_something_is_shown_invents_no_difference(noise):
    """200 null variants alone, each tested at every look, then 200 suites of 20: at most 5 % and three errors."""
    draw = np.random.default_rng(1)

    def null(rows: int) -> np.ndarray:
        return draw.normal(0, 0.005, (rows, LOOKS.last)) if noise == "normal" else recorded_noise(draw, rows)

    alone = np.mean([until_shown(row[None], 1e-6)[0].verdict != UNDECIDED for row in null(200)])
    suites = np.mean([any(c.verdict != UNDECIDED for c in until_shown(null(20), 1e-6)) for _ in range(200)])
    print(f"{noise}: shown falsely {alone:.3f} of variants, in {suites:.3f} of suites")
    assert max(alone, suites) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)


def test_a_planted_difference_is_shown_with_few_seeds():
    """Twice the noise of a seed in 14 rows: three seeds show it rarely, up to twelve nearly always."""
    draw = np.random.default_rng(2)
    shown, few, seeds = 0, 0, []
    for _ in range(100):
        rows = draw.normal(0, 0.005, (14, LOOKS.last))
        rows[4] += 0.01
        found = until_shown(rows)[4]
        shown += found.verdict == "worse"
        seeds.append(found.pairs)
        few += compare_all(rows[:, :3].tolist(), 0.002)[4].verdict == "worse"
    print(f"shown in {shown} of 100 with {np.mean(seeds):.1f} seeds on average; with three seeds in {few}")
    assert shown >= 90
    assert few < 20


@given(st.lists(st.floats(-1.0, 1.0), min_size=2, max_size=8))
def test_p_values_are_scipys(differences):
    assume(np.std(differences) > 1e-3)
    assert student_p_value(differences) == pytest.approx(stats.ttest_1samp(differences, 0.0).pvalue, abs=1e-9)
    lower = stats.ttest_1samp(differences, -0.1, alternative="greater").pvalue
    upper = stats.ttest_1samp(differences, 0.1, alternative="less").pvalue
    assert equivalence_p_value(differences, 0.1) == pytest.approx(max(lower, upper), abs=1e-9)


def test_p_values_without_noise():
    assert equivalence_p_value([0.5, 0.5], 0.5) == 0.5, "at the margin, either side is as likely"
    assert student_p_value([0.3]) == 1.0
    assert equivalence_p_value([0.0], 0.1) == 1.0
    assert student_p_value([0.25, 0.25]) == 0.0
    assert student_p_value([0.0, 0.0]) == 1.0
    assert equivalence_p_value([0.0, 0.0], 0.1) == 0.0
    assert equivalence_p_value([0.25, 0.25], 0.1) == 1.0


def test_holm_is_the_step_down_method():
    # Holm 1979 by hand: 0.01 x 4, 0.02 x 3, then 0.03 x 2 = 0.06 (not below the one before), 0.5 x 1.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_an_outcome_has_three_values():
    assert outcome(0.1, 0.04) == "shown"
    assert outcome(-0.1, 0.04) == "opposite shown"
    assert outcome(0.1, 0.06) == "not shown"


def test_the_borders_of_an_outcome():
    """5 % itself is shown; a difference of exactly 0 has no side."""
    assert outcome(0.1, 1 - 0.95) == "shown"
    assert outcome(0.0, 0.0) == "not shown"


@given(st.lists(st.floats(-1.0, 2.0), min_size=2, max_size=8))
def test_a_mean_above_zero_is_scipys_one_sided_test(values):
    assume(np.std(values) > 1e-6)
    expected = stats.ttest_1samp(values, 0.0, alternative="greater").pvalue
    assert upper_p_value(values) == pytest.approx(expected, abs=1e-9)


@given(*[st.lists(st.floats(0.5, 3.0), min_size=2, max_size=8)] * 2)
def test_shorter_times_are_scipys_welch_test(ours, theirs):
    assume(min(np.std(ours), np.std(theirs)) > 1e-6)
    expected = stats.ttest_ind(ours, theirs, equal_var=False, alternative="less").pvalue
    assert shorter_p_value(ours, theirs) == pytest.approx(expected, abs=1e-9)


def test_one_value_and_equal_values_show_what_they_can():
    assert upper_p_value([5.0]) == shorter_p_value([1.0], [9.0, 9.1]) == 1.0
    assert upper_p_value([0.5, 0.5]) == shorter_p_value([1.0, 1.0], [2.0, 2.0]) == 0.0
    assert shorter_p_value([2.0, 2.0], [2.0, 2.0]) == 1.0
