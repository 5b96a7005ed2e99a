import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from ehr.errors import DataError
from ehr.expert.baselines import BASELINES
from ehr.expert.view import ExpertScaler
from ehr.metrics import auroc
from tests.expert_cohort import tiny_cohort

COHORT = tiny_cohort(num_patients=90)
SCALER = ExpertScaler.fit(COHORT, COHORT.splits["train"])
TRAIN = [SCALER.transform(COHORT.cases[patient]) for patient in COHORT.splits["train"]]
LABELS = [COHORT.labels[patient] for patient in COHORT.splits["train"]]
TEST = [SCALER.transform(COHORT.cases[patient]) for patient in COHORT.splits["test"]]

every_baseline = pytest.mark.parametrize("baseline", BASELINES.values(), ids=BASELINES)


@every_baseline
def test_a_baseline_finds_the_signal(baseline: Callable[..., np.ndarray]) -> None:
    probabilities = baseline(TRAIN, LABELS, TEST, 0)

    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    value = auroc([COHORT.labels[patient] for patient in COHORT.splits["test"]], probabilities)
    assert value is not None
    assert value > 0.85


@every_baseline
def test_a_baseline_is_reproducible(baseline: Callable[..., np.ndarray]) -> None:
    first, second = (baseline(TRAIN, LABELS, TEST, 3) for _ in range(2))

    np.testing.assert_array_equal(first, second)


@every_baseline
def test_a_baseline_reads_the_last_visit_only(baseline: Callable[..., np.ndarray]) -> None:
    last = [dataclasses.replace(entry, values=entry.values[-1:]) for entry in TEST]

    np.testing.assert_array_equal(
        baseline(TRAIN, LABELS, last, 0), baseline(TRAIN, LABELS, TEST, 0)
    )


@every_baseline
def test_a_baseline_needs_both_classes(baseline: Callable[..., np.ndarray]) -> None:
    with pytest.raises(DataError, match=r"both classes, but|both classes, got labels \[0\]"):
        baseline(TRAIN, [0] * len(TRAIN), TEST, 0)


@every_baseline
def test_a_baseline_refuses_values_that_are_not_finite(baseline: Callable[..., np.ndarray]) -> None:
    broken = dataclasses.replace(TEST[0], values=np.full_like(TEST[0].values, np.nan))

    with pytest.raises(DataError, match=f"{TEST[0].patient_id!r} must be finite"):
        baseline(TRAIN, LABELS, [broken], 0)


@every_baseline
def test_a_baseline_refuses_a_patient_without_visits(baseline: Callable[..., np.ndarray]) -> None:
    empty = dataclasses.replace(TEST[0], values=TEST[0].values[:0])

    with pytest.raises(DataError, match="at least one visit"):
        baseline(TRAIN, LABELS, [empty], 0)


@every_baseline
def test_a_baseline_refuses_no_patients(baseline: Callable[..., np.ndarray]) -> None:
    with pytest.raises(DataError, match="at least one patient"):
        baseline(TRAIN, LABELS, [], 0)
