"""Every metric against another way to compute it: SciPy, scikit-learn, or a plain loop."""

import itertools
import math

import numpy as np
import pytest
from scipy import optimize, stats
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from ehr.metrics import (
    PAPER_NUM_RESAMPLES,
    Bootstrap,
    auprc,
    auroc,
    bootstrap,
    brier,
    calibration_intercept,
    calibration_slope,
    ece,
    paired_difference,
    performance,
)
from ehr.salience.agreement import excess_jaccard, jaccard

REFERENCES = {"auroc": roc_auc_score, "auprc": average_precision_score}


def sample(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and two-digit probabilities, many of them tied."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(num) < 0.3).astype(int)
    noisy = 0.3 + 0.2 * labels + 0.2 * rng.standard_normal(num)
    return labels, np.clip(noisy, 0.01, 0.99).round(2)


def log_likelihood_maximum(labels: np.ndarray, log_odds: np.ndarray, *, fixed_slope: bool):
    """Intercept and slope of a logistic regression by minimisation, without scikit-learn."""

    def loss(parameters: np.ndarray) -> float:
        slope = 1.0 if fixed_slope else parameters[1]
        linear = parameters[0] + slope * log_odds
        return float(np.logaddexp(0, linear).sum() - (labels * linear).sum())

    return optimize.minimize(loss, np.array([0.0, 1.0]), tol=1e-10).x


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_auroc_is_the_mann_whitney_statistic(seed: int) -> None:
    labels, probabilities = sample(200, seed)
    positive, negative = probabilities[labels == 1], probabilities[labels == 0]

    expected = stats.mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative))

    assert auroc(labels, probabilities) == pytest.approx(expected)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_auprc_is_the_step_area_under_the_precision_recall_curve(seed: int) -> None:
    labels, probabilities = sample(200, seed)

    precision, recall, _ = precision_recall_curve(labels, probabilities)

    assert auprc(labels, probabilities) == pytest.approx(-np.sum(np.diff(recall) * precision[:-1]))


def test_brier_is_the_mean_of_squared_errors() -> None:
    labels, probabilities = sample(200, 0)

    expected = sum((p - y) ** 2 for y, p in zip(labels, probabilities, strict=True)) / 200

    assert brier(labels, probabilities) == pytest.approx(expected)


def test_ece_weighs_the_gaps_of_scikit_learns_calibration_curve() -> None:
    # No probability on an edge of a bin: there the two conventions differ.
    labels, probabilities = sample(300, 0)
    inside = np.clip(probabilities + 0.005, 0, 1)

    shares, means = calibration_curve(labels, inside, n_bins=10)
    counts = np.histogram(inside, bins=np.linspace(0, 1, 11))[0]

    expected = np.sum(counts[counts > 0] * np.abs(shares - means)) / 300
    assert ece(labels, inside) == pytest.approx(expected)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_calibration_slope_and_intercept_maximise_the_likelihood(seed: int) -> None:
    labels, probabilities = sample(400, seed)
    log_odds = np.log(probabilities / (1 - probabilities))

    slope = log_likelihood_maximum(labels, log_odds, fixed_slope=False)[1]
    intercept = log_likelihood_maximum(labels, log_odds, fixed_slope=True)[0]

    assert calibration_slope(labels, probabilities) == pytest.approx(slope, abs=1e-3)
    assert calibration_intercept(labels, probabilities) == pytest.approx(intercept, abs=1e-4)


@pytest.mark.parametrize("metric", REFERENCES)
def test_interval_and_paper_form_are_those_of_the_same_resamples(metric: str) -> None:
    labels, probabilities = sample(80, 5)
    drawn = np.random.default_rng(7).integers(80, size=(PAPER_NUM_RESAMPLES, 80))

    row = performance(labels, probabilities, num_resamples=PAPER_NUM_RESAMPLES, seed=7)

    values = [REFERENCES[metric](labels[rows], probabilities[rows]) for rows in drawn]
    low, high = np.percentile(values, [2.5, 97.5])
    assert row[f"{metric}_low"] == pytest.approx(low)
    assert row[f"{metric}_high"] == pytest.approx(high)
    assert row[f"{metric}_mean"] == pytest.approx(np.mean(values))
    assert row[f"{metric}_sd"] == pytest.approx(np.std(values, ddof=1))


@pytest.mark.parametrize("metric", REFERENCES)
def test_paired_differences_and_what_they_could_show_are_those_of_the_same_resamples(
    metric,
) -> None:
    labels, first = sample(80, 5)
    _, second = sample(80, 6)
    drawn = np.random.default_rng(7).integers(80, size=(50, 80))

    found = paired_difference(labels, first, second, metric, num_resamples=50, seed=7)

    score = REFERENCES[metric]
    values = [score(labels[r], first[r]) - score(labels[r], second[r]) for r in drawn]
    low, high = np.percentile(values, [2.5, 97.5])
    assert found.difference == pytest.approx(score(labels, first) - score(labels, second))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    # Bloom 1995: 1.960 + 0.842 standard errors.
    multiple = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    assert found.minimal_detectable == pytest.approx(multiple * np.std(values, ddof=1))
    assert multiple == pytest.approx(2.802, abs=1e-3)


def test_a_true_difference_of_the_detectable_size_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(0)
    standard_error = 0.3
    detectable = Bootstrap(
        values=standard_error * rng.standard_normal(200_000), num_skipped=0
    ).minimal_detectable()
    assert detectable is not None

    estimates = detectable + standard_error * rng.standard_normal(200_000)

    share = np.mean(np.abs(estimates) > stats.norm.ppf(0.975) * standard_error)
    assert share == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("values", [[], [0.1], [0.0, 0.0, 0.0]])
def test_resamples_that_do_not_vary_say_nothing_about_what_can_be_found(values) -> None:
    assert Bootstrap(values=np.array(values), num_skipped=0).minimal_detectable() is None


def test_four_times_the_patients_show_half_the_difference() -> None:
    labels, first = sample(4000, 1)
    _, second = sample(4000, 2)

    few = paired_difference(labels[:1000], first[:1000], second[:1000], "auroc", 500)
    many = paired_difference(labels, first, second, "auroc", 500)

    assert few.minimal_detectable is not None
    assert many.minimal_detectable == pytest.approx(few.minimal_detectable / 2, rel=0.15)


def test_excess_jaccard_is_what_a_search_of_all_constant_sets_leaves() -> None:
    rng = np.random.default_rng(3)
    salient = [set(rng.choice(list("abcdefg"), 3, replace=False)) for _ in range(12)]
    predicted = [set(rng.choice(list("abcdefg"), 4, replace=False)) for _ in range(12)]

    found = excess_jaccard(predicted, salient, size=3)

    reached = np.mean([jaccard(a, b) for a, b in zip(predicted, salient, strict=True)])
    best = max(
        np.mean([jaccard(constant, b) for b in salient])
        for num in range(1, 5)
        for constant in itertools.combinations("abcdefg", num)
    )
    assert found.jaccard == pytest.approx(reached)
    assert found.constant == pytest.approx(best)
    assert found.excess == pytest.approx(reached - best)
    assert not math.isclose(found.excess, 0)


def test_the_mean_of_many_resamples_is_near_the_estimate() -> None:
    labels, probabilities = sample(500, 4)

    mean, _ = bootstrap(labels, probabilities, "brier", 2000, seed=1).mean_and_sd()

    assert mean == pytest.approx(brier(labels, probabilities), rel=0.01)
