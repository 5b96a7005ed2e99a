import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from ehr.calibration import (
    MIN_BIN_PATIENTS,
    MOST_BINS,
    at_rate,
    reliability_curve,
    wilson_interval,
)
from ehr.errors import DataError

ANSWERS = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 20).map(lambda number: number / 20)),
    min_size=1,
    max_size=400,
)


@given(st.integers(1, 500), st.data())
def test_the_interval_is_that_of_the_reference(num_patients: int, data) -> None:
    num_events = data.draw(st.integers(0, num_patients))

    low, high = wilson_interval(num_events, num_patients)

    reference = binomtest(num_events, num_patients).proportion_ci(0.95, "wilson")
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=1e-9)
    assert 0 <= low <= num_events / num_patients <= high <= 1


@settings(max_examples=60)
@given(ANSWERS)
def test_bins_hold_every_patient_once_and_rise(answers) -> None:
    labels, probabilities = (list(values) for values in zip(*answers, strict=True))

    bins = reliability_curve(labels, probabilities)

    assert sum(each.num_patients for each in bins) == len(labels)
    assert sum(each.num_events for each in bins) == sum(labels)
    assert sum(each.predicted * each.num_patients for each in bins) == pytest.approx(
        sum(probabilities)
    )
    heights = [each.predicted for each in bins]
    assert heights == sorted(set(heights))
    assert len(bins) <= min(MOST_BINS, max(1, len(labels) // MIN_BIN_PATIENTS))
    assert len(bins) <= len(set(probabilities))


@settings(max_examples=40)
@given(ANSWERS, st.randoms())
def test_the_order_of_patients_does_not_matter(answers, random) -> None:
    shuffled = random.sample(answers, len(answers))

    curve, other = (
        reliability_curve(*(list(values) for values in zip(*each, strict=True)))
        for each in (answers, shuffled)
    )

    assert [each.num_events for each in curve] == [each.num_events for each in other]
    assert [each.num_patients for each in curve] == [each.num_patients for each in other]


def test_different_predictions_fill_the_bins_equally() -> None:
    labels = [0] * 30 + [1] * 30

    bins = reliability_curve(labels, np.linspace(0, 1, 60))

    assert [each.num_patients for each in bins] == [15, 15, 15, 15]
    assert [each.observed for each in bins] == [0, 0, 1, 1]
    assert bins[0].predicted == pytest.approx(7 / 59)


def test_one_answer_for_everybody_is_one_bin() -> None:
    (only,) = reliability_curve([0, 1] * 100, [0.5] * 200)

    assert (only.predicted, only.observed, only.num_patients) == (0.5, 0.5, 200)
    assert only.high - only.low == pytest.approx(0.1375, abs=1e-3)


def test_a_probability_outside_the_unit_interval_is_refused() -> None:
    with pytest.raises(DataError, match="must lie in"):
        reliability_curve([0, 1], [0.5, 1.5])


@given(st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.floats(0.01, 0.99))
def test_a_risk_at_another_rate_is_that_of_bayes_rule(rate: float, drawn: float, seen: float):
    """What is seen in the positive is as likely at either rate; only how many there are differs."""
    in_positive, in_negative = seen, 1 - seen
    at_drawn = in_positive * drawn / (in_positive * drawn + in_negative * (1 - drawn))

    (risk,) = at_rate(np.array([at_drawn]), rate, drawn)

    assert risk == pytest.approx(
        in_positive * rate / (in_positive * rate + in_negative * (1 - rate))
    )


def test_certain_risks_stay_and_one_in_two_becomes_the_rate() -> None:
    assert at_rate(np.array([0.0, 0.5, 1.0]), 0.14).tolist() == pytest.approx([0.0, 0.14, 1.0])


@pytest.mark.parametrize("rates", [(0.0, 0.5), (1.0, 0.5), (0.1, 0.0), (float("nan"), 0.5)])
def test_a_rate_of_nobody_or_everybody_is_refused(rates: tuple[float, float]) -> None:
    with pytest.raises(DataError, match=r"inside \(0, 1\)"):
        at_rate(np.array([0.3]), *rates)
