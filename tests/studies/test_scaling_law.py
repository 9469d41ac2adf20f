"""The fit finds the law that made the points, gives its uncertainty, and predicts a run that was not in the fit."""

from dataclasses import astuple
from itertools import product

import numpy as np
import pytest

from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.planning.flops import counted_parameters
from zerotollm.studies.scaling_figure import human
from zerotollm.studies.scaling_law import (
    Law,
    Point,
    fit_law,
    is_wide,
    optimal_parameters,
    predict,
)
from zerotollm.studies.scaling_report import budgets, law_lines, outcome_line

TRUTH = Law(E=0.9, A=40.0, B=500.0, alpha=0.4, beta=0.5)
SIZES = (90_000, 280_000, 580_000, 1_000_000, 2_100_000)
TOKENS = (250_000, 500_000, 1_200_000)
LARGER = (3_700_000, 2_000_000)


def points(noise: float = 0.0, seed: int = 0, law: Law = TRUTH) -> list[Point]:
    """Return runs of that law, with a relative error `noise` of the loss."""
    rng = np.random.default_rng(seed)
    return [
        Point(f"{n}-{d}", n, d, float(law(n, d) * np.exp(noise * rng.standard_normal())))
        for n, d in product(SIZES, TOKENS)
    ]


def test_finds_the_law_behind_exact_points():
    fit = fit_law(points())
    assert astuple(fit.law) == pytest.approx(astuple(TRUTH), rel=1e-2)
    assert fit.law(*LARGER) == pytest.approx(TRUTH(*LARGER), rel=1e-4)
    assert max(map(abs, fit.residuals)) < 1e-4
    assert predict(fit, *LARGER).high - predict(fit, *LARGER).low < 1e-3


@pytest.mark.slow
def test_one_run_that_went_wrong_does_not_bend_it():
    good = points()
    broken = [good[0]._replace(bpb=good[0].bpb * 1.1), *good[1:]]
    assert fit_law(broken).law(*LARGER) == pytest.approx(TRUTH(*LARGER), rel=5e-3)


@pytest.mark.slow
def test_intervals_hold_the_truth_about_as_often_as_they_say():
    fits = [fit_law(points(0.003, seed)) for seed in range(20)]
    measured = TRUTH(*LARGER) * np.exp(0.003 * np.random.default_rng(99).standard_normal(len(fits)))
    intervals = [fit.interval(lambda law: law.beta) for fit in fits]
    assert sum(low <= TRUTH.beta <= high for low, high in intervals) >= 15
    predictions = [predict(fit, *LARGER) for fit in fits]
    assert sum(p.low <= m <= p.high for p, m in zip(predictions, measured, strict=True)) >= 15
    assert np.mean([p.high - p.low for p in predictions]) < 0.08  # of a loss of 1.35: they do say something


def test_a_prediction_holds_the_run_that_is_then_measured():
    prediction = predict(fit_law(points(0.003)), *LARGER)
    assert prediction.low <= TRUTH(*LARGER) <= prediction.high
    assert prediction.high - prediction.low < 0.08


def test_more_noise_makes_wider_intervals():
    widths = [p.high - p.low for p in (predict(fit_law(points(noise)), *LARGER) for noise in (0.001, 0.01))]
    assert widths[1] > 3 * widths[0]


def test_the_same_points_give_the_same_fit():
    assert fit_law(points(0.003)) == fit_law(points(0.003))


def test_too_few_points_are_refused():
    with pytest.raises(ValueError, match="4 points cannot fix 5 constants"):
        fit_law(points()[:4])


@pytest.mark.parametrize("compute", [1e12, 1e15])
def test_the_best_size_is_the_least_loss_at_that_compute(compute):
    sizes = np.geomspace(1e4, 1e9, 200_001)
    best = sizes[np.argmin(TRUTH(sizes, compute / 6 / sizes))]
    assert optimal_parameters(TRUTH, compute) == pytest.approx(best, rel=1e-3)


def test_the_best_size_grows_with_the_exponent():
    growth = optimal_parameters(TRUTH, 1e14) / optimal_parameters(TRUTH, 1e12)
    assert growth == pytest.approx(100**TRUTH.exponent)


def test_what_is_not_known_is_said_plainly():
    flat = Law(E=1e-9, A=40.0, B=500.0, alpha=0.4, beta=0.5)
    lines = {line.split()[0]: line for line in law_lines(fit_law(points(0.002, law=flat)))[1:]}
    assert "not distinguishable from 0" in lines["E"]
    assert "little" not in lines["beta"]
    assert is_wide(1.0, 3.0)
    assert not is_wide(1.0, 2.9)


def test_the_outcome_says_which_way_and_how_far():
    fit = fit_law(points(0.003))
    prediction = predict(fit, *LARGER)
    line = outcome_line(prediction, prediction.value * 1.25)
    assert "(20.00%) too low" in line
    assert "outside" in line
    assert "inside" in outcome_line(prediction, prediction.value)


def test_parameters_in_products_are_counted():
    model = resolve(TransformerConfig(num_layers=1, width=32, num_heads=1), vocab_size=256, context=8)
    tied = resolve(
        TransformerConfig(num_layers=1, width=32, num_heads=1, tie_embeddings=True), vocab_size=256, context=8
    )
    assert counted_parameters(model) == counted_parameters(tied)
    assert counted_parameters(model) == 4 * 32 * 32 + 3 * 32 * model.ff_width + 256 * 32 + 5 * 32


def test_runs_of_equal_compute_stand_together():
    near = [Point("a", 100, 1000, 1.0), Point("b", 200, 505, 1.0), Point("c", 100, 2000, 1.0)]
    assert [[p.name for p in group] for group in budgets(near)] == [["a", "b"], ["c"]]


@pytest.mark.parametrize(
    ("number", "text"),
    [(950, "950"), (86_560, "87k"), (999_700, "1.0M"), (2_115_520, "2.1M"), (12e6, "12M")],
)
def test_human(number, text):
    assert human(number) == text
