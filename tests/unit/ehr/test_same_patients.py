"""Who is a patient of two cohorts: by the record, whatever files and ids say."""

from dataclasses import replace

import numpy as np
import pytest

from ehr.cohorts.cohort import Cohort, Sex
from ehr.cohorts.loaders import build_cohort
from ehr.cohorts.same_patients import require_each_once, same_patients
from ehr.config import CohortSection
from ehr.errors import DataError

COHORT = build_cohort(CohortSection(num_patients=40, num_visits=2))
USED = (*COHORT.splits["train"], *COHORT.splits["val"])


def with_cases(cohort: Cohort, cases: dict, **changes: object) -> Cohort:
    return replace(cohort, cases=cases, **changes)


def test_other_patients_with_the_same_ids_are_others():
    other = build_cohort(CohortSection(num_patients=40, num_visits=2, seed=5))

    assert set(other.cases) == set(COHORT.cases)
    assert same_patients(COHORT, USED, other, list(other.cases)) == []


def test_the_same_patients_under_another_split_are_found():
    assert same_patients(COHORT, USED, COHORT, list(COHORT.cases)) == [
        patient for patient in COHORT.cases if patient in USED
    ]


def test_copies_under_other_ids_and_another_name_are_found():
    copies = {f"copy-{patient}": case for patient, case in COHORT.cases.items()}
    other = with_cases(COHORT, copies, name="elsewhere")

    assert same_patients(COHORT, USED[:3], other, list(copies)) == sorted(
        f"copy-{patient}" for patient in USED[:3]
    )


def test_fewer_features_and_visits_do_not_hide_a_patient():
    kept = slice(3, 15)
    cases = {
        patient: replace(
            case,
            values=case.values[-1:, kept][:, ::-1],
            visit_days=case.visit_days[-1:],
            visit_labels=case.visit_labels[-1:],
        )
        for patient, case in COHORT.cases.items()
    }
    other = with_cases(COHORT, cases, features=COHORT.features[kept][::-1])

    assert same_patients(COHORT, USED, other, USED) == list(USED)


def test_few_values_are_one_patients_only_under_the_same_id_and_source():
    sparse = np.full((1, len(COHORT.features)), np.nan)
    sparse[0, :2] = 15.0, 37.0
    case = replace(COHORT.cases[USED[0]], values=sparse, visit_days=(0.0,), visit_labels=("12 h",))
    one = with_cases(COHORT, {"one": case})

    assert same_patients(one, ["one"], one, ["one"]) == ["one"]
    assert same_patients(one, ["one"], with_cases(COHORT, {"two": case}), ["two"]) == []
    elsewhere = with_cases(COHORT, {"one": case}, name="elsewhere")
    assert same_patients(one, ["one"], elsewhere, ["one"]) == []


def test_many_equal_values_are_one_patients_whatever_age_and_sex_say():
    cases = {
        f"copy-{patient}": replace(case, age=None, sex=Sex.UNKNOWN)
        for patient, case in COHORT.cases.items()
    }
    other = with_cases(COHORT, cases, name="elsewhere")

    assert same_patients(COHORT, USED, other, list(cases)) == sorted(f"copy-{p}" for p in USED)


def test_a_patient_may_not_be_in_a_cohort_twice():
    patient = USED[0]
    case = COHORT.cases[patient]
    twice = with_cases(COHORT, {**COHORT.cases, "copy": replace(case, values=case.values.copy())})

    require_each_once(COHORT)
    with pytest.raises(
        DataError, match=rf"'{patient}' and 'copy' have the same age, sex, days and"
    ):
        require_each_once(twice)


def test_records_of_few_equal_values_are_several_patients():
    sparse = np.full((1, len(COHORT.features)), np.nan)
    sparse[0, :5] = 15.0
    case = replace(COHORT.cases[USED[0]], values=sparse, visit_days=(0.0,), visit_labels=("12 h",))

    require_each_once(with_cases(COHORT, {"one": case, "two": case}))


def test_records_without_values_are_one_under_the_same_id_with_the_same_background():
    empty = np.full((1, len(COHORT.features)), np.nan)
    case = replace(COHORT.cases[USED[0]], values=empty, age=60.0)
    one, older = with_cases(COHORT, {"x": case}), with_cases(COHORT, {"x": replace(case, age=61.0)})

    assert same_patients(one, ["x"], one, ["x"]) == ["x"]
    assert same_patients(one, ["x"], older, ["x"]) == []
