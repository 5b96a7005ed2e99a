import json

import numpy as np
import pytest

from ehr.catalogue import Feature
from ehr.cohorts.cohort import Cohort, PatientCase, Sex
from ehr.config import Task
from ehr.errors import DataError
from ehr.expert.view import ExpertScaler, carry_forward

NAN = float("nan")


def make_case(
    patient_id: str, rows: list[list[float]], age: float | None = 50.0, sex: Sex = Sex.FEMALE
) -> PatientCase:
    return PatientCase(
        patient_id=patient_id,
        sex=sex,
        age=age,
        visit_labels=tuple(f"{12 * index} h" for index in range(len(rows))),
        visit_days=tuple(float(index) for index in range(len(rows))),
        values=np.array(rows, dtype=np.float64),
    )


def make_cohort(*cases: PatientCase) -> Cohort:
    return Cohort(
        name="small",
        task=Task.MORTALITY,
        horizon_days=30,
        features=(Feature(name="a"), Feature(name="b")),
        cases={case.patient_id: case for case in cases},
        labels={case.patient_id: 0 for case in cases},
        splits={},
        has_dates=False,
    )


SCALER = ExpertScaler(
    features=("a", "b"),
    mean=(10.0, 0.0),
    std=(2.0, 1.0),
    median=(12.0, 3.0),
    age_mean=60.0,
    age_std=10.0,
)


def test_values_are_carried_forward_and_never_backward():
    carried = carry_forward(np.array([[NAN, 1.0], [5.0, NAN], [NAN, NAN], [7.0, 2.0]]))

    np.testing.assert_array_equal(carried, [[NAN, 1.0], [5.0, 1.0], [5.0, 1.0], [7.0, 2.0]])


def test_what_is_still_missing_becomes_the_training_median():
    case = make_case("p", [[NAN, NAN], [14.0, NAN]])

    seen = SCALER.transform(case)

    np.testing.assert_array_equal(seen.values, [[1.0, 3.0], [2.0, 3.0]])
    np.testing.assert_array_equal(seen.observed, [True, False])


def test_scaled_values_are_clipped_at_ten():
    seen = SCALER.transform(make_case("p", [[1000.0, -1000.0]]))

    np.testing.assert_array_equal(seen.values, [[10.0, -10.0]])


@pytest.mark.parametrize(("sex", "code"), [(Sex.FEMALE, 0), (Sex.MALE, 1), (Sex.UNKNOWN, 0.5)])
def test_demographics_are_scaled_age_and_sex(sex: Sex, code: float):
    seen = SCALER.transform(make_case("p", [[1.0, 1.0]], age=75.0, sex=sex))

    np.testing.assert_array_equal(seen.demographics, np.array([1.5, code], dtype=np.float32))


def test_unknown_age_counts_as_the_training_mean():
    seen = SCALER.transform(make_case("p", [[1.0, 1.0]], age=None))

    assert seen.demographics[0] == 0


def test_the_expert_view_has_the_visits_of_the_prompt_view_and_leaves_it_alone():
    case = make_case("p", [[NAN, 1.0], [2.0, NAN]])
    before = case.values.copy()

    seen = SCALER.transform(case)

    assert seen.patient_id == "p"
    assert seen.days.tolist() == list(case.visit_days)
    assert (seen.values.dtype, seen.days.dtype, seen.demographics.dtype) == (np.float32,) * 3
    np.testing.assert_array_equal(case.values, before)


def test_statistics_leave_out_the_outer_five_percent():
    # 0..100 in 101 visits: the quantiles are 5 and 95, the mean of what lies inside is 50.
    rows = [[float(value), 1.0] for value in range(101)]
    rows[100][0] = 100_000.0

    scaler = ExpertScaler.fit(make_cohort(make_case("p", rows)), ["p"])

    assert scaler.mean[0] == 50.0
    assert scaler.median[0] == 50.0
    assert scaler.std[0] == pytest.approx(np.std(np.arange(5, 96)))


def test_statistics_come_from_the_given_patients_only():
    cohort = make_cohort(
        make_case("train", [[1.0, 2.0]], age=40.0), make_case("test", [[100.0, 200.0]], age=90.0)
    )

    scaler = ExpertScaler.fit(cohort, ["train"])

    assert (scaler.mean, scaler.age_mean) == ((1.0, 2.0), 40.0)


def test_constant_and_empty_columns_scale_to_finite_values():
    cohort = make_cohort(make_case("p", [[5.0, NAN], [5.0, NAN]]))

    seen = ExpertScaler.fit(cohort, ["p"]).transform(cohort.cases["p"])

    np.testing.assert_array_equal(seen.values, np.zeros((2, 2)))


def test_what_training_never_saw_vary_is_ignored_in_others():
    cohort = make_cohort(
        make_case("train", [[5.0, NAN], [5.0, NAN]], age=40.0),
        make_case("other", [[250.0, 300.0]], age=90.0),
    )

    seen = ExpertScaler.fit(cohort, ["train"]).transform(cohort.cases["other"])

    np.testing.assert_allclose(seen.values, 0.0, atol=1e-9)
    assert seen.demographics[0] == pytest.approx(0.0, abs=1e-9)


def test_three_values_have_their_own_spread_although_two_are_trimmed():
    cohort = make_cohort(make_case("p", [[10.0, NAN], [20.0, NAN], [60.0, NAN]]))

    scaler = ExpertScaler.fit(cohort, ["p"])

    assert scaler.mean[0] == 30.0
    assert scaler.std[0] == pytest.approx(np.std([10.0, 20.0, 60.0]))


def test_a_scaler_survives_json():
    restored = ExpertScaler.from_dict(json.loads(json.dumps(SCALER.to_dict())))

    assert restored == SCALER


def test_a_case_with_other_features_is_refused():
    case = make_case("p", [[1.0, 2.0, 3.0]])

    with pytest.raises(DataError, match=r"must have 2 features .* shape \(1, 3\)"):
        SCALER.transform(case)


def test_no_patient_to_fit_on_is_refused():
    with pytest.raises(DataError, match="at least one training patient"):
        ExpertScaler.fit(make_cohort(make_case("p", [[1.0, 2.0]])), [])
