"""Means over a few seeds: by hand, and how often their intervals hold the truth."""

import math

import numpy as np
import pytest
from scipy import stats

from ehr.seeds import SeedMean, holm, mean_over_seeds, of_resamples, seeds_note

NUM_PATIENTS = 60


def test_the_variance_is_what_seeds_share_and_a_share_of_what_they_do_not() -> None:
    covariance = np.array([[0.5, 0.2, 0.2], [0.2, 0.5, 0.2], [0.2, 0.2, 0.5]])

    found = mean_over_seeds(np.array([1.0, 2.0, 3.0]), covariance)

    # shared .2, between the seeds 1 / 3 with two degrees of freedom
    assert found.mean == 2
    assert found.standard_error == pytest.approx(math.sqrt(0.2 + 1 / 3))
    assert found.degrees == pytest.approx(2 * (0.2 + 1 / 3) ** 2 / (1 / 3) ** 2)
    t = stats.t(df=float(found.degrees))
    half = t.ppf(0.975) * math.sqrt(0.2 + 1 / 3)
    assert found.interval() == pytest.approx((2 - half, 2 + half))
    assert found.p_value() == pytest.approx(2 * t.sf(2 / math.sqrt(0.2 + 1 / 3)))
    assert found.minimal_detectable() == pytest.approx(
        (t.ppf(0.975) + t.ppf(0.8)) * math.sqrt(0.2 + 1 / 3)
    )


def test_seeds_that_agree_leave_what_patients_do_to_the_mean() -> None:
    covariance = np.array([[0.5, 0.2, 0.2], [0.2, 0.5, 0.2], [0.2, 0.2, 0.5]])

    found = mean_over_seeds(np.full(3, 0.7), covariance)

    assert found.standard_error == pytest.approx(math.sqrt((3 * 0.5 + 6 * 0.2) / 9))
    assert math.isinf(found.degrees)


@pytest.mark.parametrize("num", [1, 2])
def test_with_one_seed_or_two_everything_is_over_patients(num) -> None:
    resampled = np.random.default_rng(0).normal(size=(500, num))

    found = of_resamples(np.arange(num, dtype=float), resampled)

    assert found.standard_error == pytest.approx(resampled.mean(axis=1).std(ddof=1))
    assert math.isinf(found.degrees)


def test_resamples_without_a_value_are_passed_over_and_none_leave_no_standard_error() -> None:
    resampled = np.array([[0.1, 0.2, 0.3], [np.nan, 0.1, 0.2], [0.3, 0.1, 0.5]])

    kept = of_resamples(np.array([0.2, 0.2, 0.4]), resampled)
    without = of_resamples(np.array([0.2, 0.2, 0.4]), resampled[:2])

    same = of_resamples(np.array([0.2, 0.2, 0.4]), resampled[[0, 2]])
    assert kept.standard_error == same.standard_error
    assert np.isnan(without.standard_error)


def experiments(
    num_seeds: int, of_seed: float, of_patient: float, of_both: float, num: int = 2000
) -> SeedMean:
    """Means over patients and seeds whose truth is 0, as many experiments at once."""
    random = np.random.default_rng(20)
    each = of_patient * random.normal(size=(num, NUM_PATIENTS, 1))
    each = each + of_both * random.normal(size=(num, NUM_PATIENTS, num_seeds))
    gaps = each - each.mean(axis=1, keepdims=True)
    # over resamples of the patients, with as many of them as one likes
    covariance = gaps.transpose(0, 2, 1) @ gaps / NUM_PATIENTS**2
    by_seed = each.mean(axis=1) + of_seed * random.normal(size=(num, num_seeds))
    return mean_over_seeds(by_seed, covariance)


@pytest.mark.parametrize("num_seeds", [3, 5])
@pytest.mark.parametrize(
    ("of_seed", "of_patient", "of_both"),
    [(0, 8, 8), (0, 8, 0), (0.5, 8, 4), (1, 8, 4), (2, 8, 4), (3, 1, 1)],
    ids=["seeds do not matter", "nor differ", "a little", "as patients do", "more", "alone"],
)
def test_intervals_hold_the_truth_however_much_seeds_matter(
    num_seeds, of_seed, of_patient, of_both
) -> None:
    found = experiments(num_seeds, of_seed, of_patient, of_both)

    low, high = found.interval()
    covered = np.mean((low <= 0) & (high >= 0))
    assert 0.93 <= covered <= 0.97
    assert np.mean(found.p_value() < 0.05) == pytest.approx(1 - covered, abs=1e-3)


def test_what_can_be_detected_is_found_in_four_of_five_experiments() -> None:
    reach = float(np.median(experiments(5, 1, 8, 4).minimal_detectable()))

    noise = experiments(5, 1, 8, 4)
    moved = SeedMean(
        mean=noise.mean + reach, standard_error=noise.standard_error, degrees=noise.degrees
    )

    assert np.mean(moved.p_value() < 0.05) == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize("value", [0.02, 0.5, 0.97, 0.0, 1.0])
def test_the_interval_of_a_share_stays_among_shares_and_holds_it(value) -> None:
    found = SeedMean(mean=np.array(value), standard_error=np.array(0.05), degrees=np.array(2.0))

    low, high = found.interval(is_share=True)

    assert 0 <= low <= value <= high <= 1
    if value == 0.5:
        odds = 4.302653 * 0.05 / 0.25
        assert (low, high) == pytest.approx((1 / (1 + math.exp(odds)), 1 / (1 + math.exp(-odds))))


def test_what_does_not_vary_has_no_p_value_unless_it_is_nothing() -> None:
    same = mean_over_seeds(np.array([[0.0, 0, 0], [0.1, 0.1, 0.1]]), np.zeros((2, 3, 3)))

    assert same.p_value()[0] == 1
    assert np.isnan(same.p_value()[1])
    assert np.isnan(same.minimal_detectable()).all()


def test_a_few_seeds_are_said_to_be_few() -> None:
    assert seeds_note(1) == "one seed: over patients only"
    assert "two seeds: too few for an interval over seeds" in str(seeds_note(2))
    assert "three seeds: too few for an interval over seeds" in str(seeds_note(3))
    assert seeds_note(4) is None


def test_holm_by_hand() -> None:
    # .005 * 4, .01 * 3, .03 * 2, and no smaller than the one before
    assert holm([0.01, 0.04, None, 0.03, 0.005]) == pytest.approx([0.03, 0.06, None, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
