import itertools
import json
import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from ehr.errors import DataError
from ehr.metrics import (
    Metric,
    auprc,
    auroc,
    bootstrap,
    bootstrap_interval,
    bootstrap_mean,
    brier,
    calibration_intercept,
    calibration_slope,
    ece,
    paired_difference,
    performance,
)
from ehr.salience.agreement import excess_jaccard

LABELS = [0, 0, 1, 1]
PROBABILITIES = [0.1, 0.4, 0.35, 0.8]


def sample(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(num) < 0.3).astype(int)
    noisy = 0.3 + 0.2 * labels + 0.2 * rng.standard_normal(num)
    return labels, np.clip(noisy, 0, 1).round(2)


def test_metrics_of_four_patients_worked_out_by_hand() -> None:
    assert auroc(LABELS, PROBABILITIES) == pytest.approx(3 / 4)
    assert auprc(LABELS, PROBABILITIES) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert brier(LABELS, PROBABILITIES) == pytest.approx((0.01 + 0.16 + 0.65**2 + 0.04) / 4)
    # Bins [.1, .2), [.3, .4), [.4, .5), [.8, .9) hold one patient each.
    assert ece(LABELS, PROBABILITIES) == pytest.approx((0.1 + 0.65 + 0.4 + 0.2) / 4)


def test_ties_count_one_half() -> None:
    assert auroc([0, 1], [0.5, 0.5]) == 0.5


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_no_ranking_metric_and_no_calibration(label: int) -> None:
    assert auroc([label] * 3, [0.1, 0.2, 0.3]) is None
    assert auprc([label] * 3, [0.1, 0.2, 0.3]) is None
    assert calibration_slope([label] * 3, [0.1, 0.2, 0.3]) is None
    assert calibration_intercept([label] * 3, [0.1, 0.2, 0.3]) is None


@pytest.mark.parametrize(
    ("metric", "reference"),
    [(Metric.AUROC, roc_auc_score), (Metric.AUPRC, average_precision_score)],
)
def test_resampled_values_equal_scikit_learn_on_the_same_resamples(metric, reference) -> None:
    labels, probabilities = sample(60)

    values = bootstrap(labels, probabilities, metric, num_resamples=20, seed=4).values

    drawn = np.random.default_rng(4).integers(60, size=(20, 60))
    expected = [reference(labels[rows], probabilities[rows]) for rows in drawn]
    np.testing.assert_allclose(values, expected, atol=1e-12)


@pytest.mark.parametrize(("metric", "point"), [(Metric.BRIER, brier), (Metric.ECE, ece)])
def test_resampled_errors_equal_the_point_estimates_of_the_resamples(metric, point) -> None:
    labels, probabilities = sample(60)

    values = bootstrap(labels, probabilities, metric, num_resamples=20, seed=4).values

    drawn = np.random.default_rng(4).integers(60, size=(20, 60))
    expected = [point(labels[rows], probabilities[rows]) for rows in drawn]
    np.testing.assert_allclose(values, expected, atol=1e-12)


def test_resamples_with_one_class_are_skipped_and_counted() -> None:
    result = bootstrap([0, 0, 0, 1], [0.1, 0.2, 0.3, 0.4], "auroc", num_resamples=400, seed=0)

    # A resample misses the only positive with probability (3/4)^4 = .316.
    assert 80 < result.num_skipped < 180
    assert len(result.values) == 400 - result.num_skipped
    assert np.isfinite(result.values).all()


def test_an_interval_of_one_class_does_not_exist() -> None:
    assert bootstrap_interval([0, 0], [0.1, 0.2], "auroc") == (None, None)


def test_the_interval_is_reproducible_and_holds_the_estimate() -> None:
    labels, probabilities = sample(300)
    point = auroc(labels, probabilities)

    low, high = bootstrap_interval(labels, probabilities, "auroc", 500, seed=3)

    assert low is not None
    assert high is not None
    assert point is not None
    assert low < point < high
    assert (low, high) == bootstrap_interval(labels, probabilities, "auroc", 500, seed=3)
    assert (low, high) != bootstrap_interval(labels, probabilities, "auroc", 500, seed=4)


def test_the_interval_does_not_depend_on_how_resamples_are_blocked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels, probabilities = sample(50)
    whole = bootstrap_interval(labels, probabilities, "auprc", 100, seed=3)

    monkeypatch.setattr("ehr.metrics._BLOCK_VALUES", 350)

    assert bootstrap_interval(labels, probabilities, "auprc", 100, seed=3) == whole


def test_the_width_of_the_interval_is_what_theory_says() -> None:
    labels, probabilities = sample(2000)
    low, high = bootstrap_interval(labels, probabilities, "brier", 1000, seed=0)
    sd = np.square(probabilities - labels).std() / math.sqrt(2000)

    assert low is not None
    assert high is not None
    assert high - low == pytest.approx(2 * 1.96 * sd, rel=0.1)


def test_a_method_does_not_differ_from_itself() -> None:
    labels, probabilities = sample(100)

    result = paired_difference(labels, probabilities, probabilities, "auroc")

    assert (result.difference, result.low, result.high) == (0, 0, 0)


def test_a_paired_difference_is_narrower_than_two_intervals() -> None:
    labels, probabilities = sample(300)
    better = np.clip(probabilities + 0.02 * labels, 0, 1)
    low, high = bootstrap_interval(labels, probabilities, "auroc")

    result = paired_difference(labels, better, probabilities, "auroc")

    assert result.low is not None
    assert result.high is not None
    assert result.difference is not None
    assert low is not None
    assert high is not None
    assert 0 < result.low < result.difference < result.high
    assert result.high - result.low < (high - low) / 2


def test_probabilities_that_are_the_truth_are_calibrated() -> None:
    rng = np.random.default_rng(0)
    risk = rng.beta(1, 2, size=20_000)
    labels = (rng.random(20_000) < risk).astype(int)

    assert calibration_slope(labels, risk) == pytest.approx(1, abs=0.05)
    assert calibration_intercept(labels, risk) == pytest.approx(0, abs=0.05)
    assert ece(labels, risk) < 0.01


def test_overconfident_probabilities_have_a_slope_below_one() -> None:
    rng = np.random.default_rng(0)
    log_odds = rng.standard_normal(5000)
    labels = (rng.random(5000) < 1 / (1 + np.exp(-log_odds))).astype(int)

    assert calibration_slope(labels, 1 / (1 + np.exp(-2 * log_odds))) == pytest.approx(
        0.5, abs=0.05
    )


def test_probabilities_that_are_too_low_have_a_positive_intercept() -> None:
    # Half of the patients have the event; log-odds of .2 must rise by log 4.
    assert calibration_intercept([0, 1] * 50, [0.2] * 100) == pytest.approx(math.log(4))


@pytest.mark.parametrize(
    "probabilities", [[0.1, 0.2, 0.8, 0.9], [0.9, 0.8, 0.2, 0.1], [0.5, 0.5, 0.5, 0.5]]
)
def test_a_separating_or_constant_probability_has_no_slope(probabilities: list[float]) -> None:
    assert calibration_slope([0, 0, 1, 1], probabilities) is None


def test_probabilities_of_zero_and_one_are_scored() -> None:
    row = performance([0, 1, 0, 1], [0.0, 1.0, 1.0, 0.0], num_resamples=50)

    assert row["auroc"] == 0.5
    assert row["calibration_intercept"] == pytest.approx(0, abs=1e-6)


def test_a_row_of_results_is_json_without_nan_even_for_one_class() -> None:
    for labels in ([0, 0, 0], [0, 1, 0]):
        row = performance(labels, [0.2, 0.2, 0.2], num_resamples=100)

        json.dumps(row, allow_nan=False)


def test_a_row_of_results_has_both_forms_of_uncertainty() -> None:
    labels, probabilities = sample(100)

    row = performance(labels, probabilities, num_resamples=200)

    assert {"n", "auroc", "auroc_low", "auroc_high", "auroc_mean", "auroc_sd", "auprc"} <= set(row)
    assert {"auprc_low", "auprc_high", "auprc_mean", "auprc_sd", "brier", "ece"} <= set(row)
    assert row["n"] == 100
    assert row["num_positives"] == labels.sum()


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([], [], "non-empty"),
        ([0, 1], [0.5], "equally long"),
        ([0, 2], [0.5, 0.5], "must be 0 or 1"),
        ([0, 1], [0.5, math.nan], r"\[0, 1\]"),
        ([0, 1], [0.5, math.inf], r"\[0, 1\]"),
        ([0, 1], [0.5, 1.5], r"\[0, 1\]"),
    ],
)
def test_input_that_cannot_be_scored_is_refused(labels, probabilities, message: str) -> None:
    with pytest.raises(DataError, match=message):
        auroc(labels, probabilities)


def test_excess_jaccard_of_a_constant_answer_is_not_positive() -> None:
    salient = [{"a", "b"}, {"a", "c"}, {"a", "b"}]

    result = excess_jaccard([{"a", "b"}] * 3, salient, size=2)

    assert result.jaccard == pytest.approx((1 + 1 / 3 + 1) / 3)
    assert result.excess == pytest.approx(0)


def test_excess_jaccard_of_the_right_answers_is_what_no_constant_reaches() -> None:
    salient = [{"a"}, {"b"}]

    result = excess_jaccard(salient, salient, size=1)

    assert (result.jaccard, result.constant, result.excess) == (1, 0.5, 0.5)


@pytest.mark.parametrize("named", ["a", "abcd", "abcdef"])
def test_a_constant_answer_of_another_size_has_no_excess_either(named):
    # Each patient: a, and two of five others. The best constant set of three is beaten by a alone.
    salient = [{"a", *pair} for pair in itertools.combinations("bcdef", 2)]

    assert excess_jaccard([set(named)] * len(salient), salient, size=3).excess <= 1e-12


def test_answers_without_features_score_below_the_constant() -> None:
    assert excess_jaccard([set(), set()], [{"a"}, {"a"}], size=1).excess == -1


def test_the_bootstrap_of_a_mean_has_the_standard_error_of_the_mean():
    values = np.random.default_rng(3).normal(2.0, 1.0, 400)

    mean, sd = bootstrap_mean(values, 2000, seed=1).mean_and_sd()

    assert mean == pytest.approx(values.mean(), abs=0.01)
    assert sd == pytest.approx(values.std() / 20, rel=0.1)


def test_the_bootstrap_of_equal_values_is_a_point():
    assert bootstrap_mean([0.5] * 7, 100).interval() == (0.5, 0.5)


def test_the_bootstrap_of_a_mean_refuses_no_patients():
    with pytest.raises(DataError, match="at least one patient"):
        bootstrap_mean([], 100)
