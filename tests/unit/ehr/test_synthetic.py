import hashlib
import json
import time

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit
from sklearn.metrics import roc_auc_score

from ehr.catalogue import AGE_AND_SEX, BENCHMARK_17
from ehr.cohorts.cohort import Cohort, cohort_hash
from ehr.cohorts.loaders import build_cohort
from ehr.cohorts.schema import CONTRIBUTION_PREFIX, SALIENT_COLUMNS
from ehr.cohorts.synthetic import generate
from ehr.config import CohortSection, Task
from ehr.errors import DataError
from ehr.tables import column, columns

NAMES = [feature.name for feature in BENCHMARK_17]
DEMO = generate(CohortSection())
LARGE = generate(CohortSection(num_patients=2000))


def truth_of(cohort: Cohort) -> pd.DataFrame:
    assert cohort.truth is not None
    return cohort.truth.set_index("patient_id")


def charts_of(cohort: Cohort) -> pd.DataFrame:
    return pd.DataFrame(
        np.concatenate([case.values for case in cohort.cases.values()]), columns=NAMES
    )


def contributions_of(cohort: Cohort) -> pd.DataFrame:
    columns = [CONTRIBUTION_PREFIX + name for name in (*NAMES, AGE_AND_SEX)]
    return truth_of(cohort).loc[:, columns].set_axis([*NAMES, AGE_AND_SEX], axis=1)


def test_the_demo_cohort_takes_less_than_two_seconds():
    start = time.perf_counter()

    generate(CohortSection(num_patients=240))

    assert time.perf_counter() - start < 2


def test_the_same_section_gives_the_same_cohort():
    again = generate(CohortSection())

    assert cohort_hash(again) == cohort_hash(DEMO)
    pd.testing.assert_frame_equal(truth_of(again), truth_of(DEMO))


def test_another_seed_gives_other_patients():
    assert cohort_hash(generate(CohortSection(seed=1))) != cohort_hash(DEMO)


def test_both_tasks_have_the_same_charts_and_other_labels():
    returned = generate(CohortSection(task=Task.READMISSION))

    pd.testing.assert_frame_equal(charts_of(returned), charts_of(DEMO))
    assert returned.labels != DEMO.labels


def readmission(horizon_days: int = 30, **fields: object) -> Cohort:
    settings = {"task": "readmission", "horizon_days": horizon_days, **fields}
    return generate(CohortSection.model_validate(settings))


def content(cohort: Cohort) -> str:
    digest = hashlib.sha256(json.dumps([cohort.labels, cohort.splits]).encode())
    for case in cohort.cases.values():
        digest.update(np.nan_to_num(case.values, nan=-1.0).tobytes())
    return digest.hexdigest()[:16]


def test_cohorts_of_thirty_days_are_those_of_earlier_releases():
    # Charts, labels and splits, as they were before labels of readmission had a horizon.
    assert content(DEMO) == "2fce152f0e8e9489"
    assert content(readmission()) == "625c4a64b519e05e"


def test_a_horizon_moves_the_log_odds_of_everybody_alike_and_nothing_else():
    month, year = truth_of(readmission()), truth_of(readmission(365))

    # Odds grow as the square root of the days: four times as long, twice the odds.
    risks = [truth_of(readmission(days))["true_risk"] for days in (30, 120)]
    np.testing.assert_allclose(logit(risks[1]) - logit(risks[0]), np.log(2), atol=1e-9)
    shift = year["base_log_odds"] - month["base_log_odds"]
    np.testing.assert_allclose(shift, 0.5 * np.log(365 / 30))
    unchanged = [name for name in month if name not in ("true_risk", "base_log_odds")]
    pd.testing.assert_frame_equal(columns(year, unchanged), columns(month, unchanged))
    pd.testing.assert_frame_equal(charts_of(readmission(365)), charts_of(readmission()))


def test_labels_of_every_horizon_are_drawn_from_its_true_risk():
    for days in (7, 90):
        cohort = readmission(days, num_patients=2000)
        risk = truth_of(cohort)["true_risk"]
        labels = [cohort.labels[str(patient)] for patient in risk.index]

        assert np.mean(labels) == pytest.approx(risk.mean(), abs=0.03)
        assert roc_auc_score(labels, risk) == pytest.approx(0.885, abs=0.03)


@pytest.mark.parametrize(
    ("days", "remedy"), [(1, "both classes|be split"), (2**32 - 1, "both classes|be split")]
)
def test_a_horizon_within_which_one_class_is_left_is_refused(days: int, remedy: str):
    section = {"task": "readmission", "horizon_days": days, "num_patients": 20}

    with pytest.raises(DataError, match=remedy):
        build_cohort(CohortSection.model_validate(section))


def test_death_in_hospital_has_no_horizon():
    with pytest.raises(ValueError, match="horizon_days is about task 'readmission' only, got 90"):
        CohortSection(horizon_days=90)
    assert CohortSection(horizon_days=30) == CohortSection()


def test_sizes_follow_the_section():
    visits = {case.num_visits for case in DEMO.cases.values()}

    assert len(DEMO.cases) == 240
    assert visits == {1, 2, 3}
    assert {split: len(ids) for split, ids in DEMO.splits.items()} == {
        "train": 136,
        "val": 20,
        "test": 84,
    }


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("fraction", [0.15, 0.35])
def test_risks_average_to_the_configured_share_and_reach_the_target_auroc(
    task: Task, fraction: float
):
    cohort = generate(CohortSection(num_patients=2000, task=task, positive_fraction=fraction))

    truth = truth_of(cohort)
    labels = [cohort.labels[patient] for patient in truth.index]

    assert np.mean(truth["true_risk"]) == pytest.approx(fraction)
    assert np.mean(labels) == pytest.approx(fraction, abs=0.03)
    assert roc_auc_score(labels, truth["true_risk"]) == pytest.approx(0.885, abs=0.03)


def test_contributions_add_up_to_the_log_odds_of_the_true_risk():
    truth = truth_of(DEMO)

    total = truth["base_log_odds"] + contributions_of(DEMO).sum(axis=1)

    np.testing.assert_allclose(total, logit(truth["true_risk"]), atol=1e-9)


def test_only_observed_features_contribute():
    contributions = contributions_of(DEMO)[NAMES].to_numpy()
    observed = np.array([(~np.isnan(case.values)).any(axis=0) for case in DEMO.cases.values()])

    assert list(DEMO.cases) == list(truth_of(DEMO).index)
    assert (contributions[~observed] == 0).all()


def test_salient_features_are_the_largest_contributions_and_observed():
    sizes = contributions_of(DEMO).abs()
    salient = truth_of(DEMO)[list(SALIENT_COLUMNS)]

    largest = np.sort(sizes.to_numpy(), axis=1)[:, :-6:-1]
    found = [[sizes.loc[patient, name] for name in row] for patient, row in salient.iterrows()]

    np.testing.assert_array_equal(found, largest)
    assert (largest > 0).all()


def test_salient_features_differ_between_patients():
    counts = pd.Series(truth_of(LARGE)[list(SALIENT_COLUMNS)].to_numpy().ravel()).value_counts()
    shares = counts / len(LARGE.cases)

    # Nobody could win with one set for everybody: the best five are salient for under 2/3 each.
    assert shares.max() < 2 / 3
    assert len(shares) >= 15
    assert "Height" not in shares


def test_charts_are_plausible():
    charts = charts_of(LARGE)

    for feature in BENCHMARK_17:
        low, high = feature.plausible or (0, 10)
        assert charts[feature.name].dropna().between(low, high).all(), feature.name


def test_pressures_are_in_order_and_charted_together():
    charts = columns(
        charts_of(LARGE),
        ["Systolic blood pressure", "Mean blood pressure", "Diastolic blood pressure"],
    )
    known = charts.dropna()

    assert (known.iloc[:, 0] > known.iloc[:, 1]).all()
    assert (known.iloc[:, 1] > known.iloc[:, 2]).all()
    assert charts.isna().nunique(axis=1).eq(1).all()


def test_coma_parts_are_codes_and_the_total_is_their_sum_only_when_all_are_there():
    charts = charts_of(LARGE)
    parts = columns(
        charts,
        [
            f"Glasgow coma scale {part}"
            for part in ("eye opening", "motor response", "verbal response")
        ],
    )
    total = column(charts, "Glasgow coma scale total")

    assert set(parts.stack().dropna()) <= {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}
    np.testing.assert_array_equal(total, parts.sum(axis=1, skipna=False))
    assert (total.isna().to_numpy() & parts.notna().to_numpy().any(axis=1)).any()


def test_values_are_rounded_as_in_charts():
    charts = charts_of(LARGE)

    np.testing.assert_array_equal(charts["Temperature"], charts["Temperature"].round(1))
    np.testing.assert_array_equal(charts["pH"], charts["pH"].round(2))
    np.testing.assert_array_equal(charts["Heart Rate"], charts["Heart Rate"].round())


def test_missingness_is_that_of_a_ward():
    missing = charts_of(LARGE).isna().mean().to_dict()

    assert missing["Height"] > 0.8
    assert missing["Capillary refill rate"] > 0.65
    assert missing["Heart Rate"] < 0.05
    assert 0.3 < missing["pH"] < 0.7


def test_sicker_patients_are_charted_more():
    gaps = {
        patient: np.isnan(case.values[:, NAMES.index("pH")]).mean()
        for patient, case in LARGE.cases.items()
    }
    risk = truth_of(LARGE)["true_risk"]
    share = pd.Series(gaps)

    assert share[risk > risk.quantile(0.8)].mean() < share[risk < risk.quantile(0.2)].mean() - 0.1


def test_visits_have_iso_dates_that_match_their_days():
    for case in DEMO.cases.values():
        dates = pd.to_datetime(list(case.visit_labels), format="%Y-%m-%d")
        assert tuple((date - dates[0]).days for date in dates) == case.visit_days
        assert case.visit_days[0] == 0
        assert all(gap in (1, 2, 3) for gap in np.diff(case.visit_days))


def test_number_of_visits_says_nothing_about_the_label():
    visits = [case.num_visits for case in LARGE.cases.values()]
    labels = [LARGE.labels[patient] for patient in LARGE.cases]

    assert roc_auc_score(labels, visits) == pytest.approx(0.5, abs=0.04)


def test_patients_with_too_few_visits_are_dropped_and_counted():
    cohort = generate(CohortSection(min_visits=2))

    single = sum(case.num_visits == 1 for case in DEMO.cases.values())

    assert cohort.dropped == {"patients_with_too_few_visits": single}
    assert len(cohort.cases) == 240 - single
    assert list(truth_of(cohort).index) == list(cohort.cases)


def test_one_visit_and_twenty_patients_work():
    cohort = generate(CohortSection(num_patients=40, num_visits=1))

    assert {case.num_visits for case in cohort.cases.values()} == {1}
