import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ehr.catalogue import TJH_LABS
from ehr.cohort import Cohort, Sex, cohort_hash, summary
from ehr.config import CohortSection, Task
from ehr.errors import DataError
from ehr.loaders import build_cohort
from ehr.tjh import FILE_NAME

BESIDE_CHECKOUT = Path(__file__).parents[4] / "shared" / "data" / "tjh"
PUBLISHED = Path(os.environ.get("EAG_RL_TJH", BESIDE_CHECKOUT))
NUM_PATIENTS = 24


def small_table() -> pd.DataFrame:
    """24 patients with two records each on 1 and 3 February; ids and times as the workbook has."""
    rows = []
    for patient in range(1, NUM_PATIENTS + 1):
        for record, day in enumerate((1, 3)):
            rows.append(
                {
                    "PATIENT_ID": patient if record == 0 else None,
                    "RE_DATE": pd.Timestamp(2020, 2, day, 9, 30),
                    "age": 40 + patient,
                    "gender": 1 + patient % 2,
                    "Admission time": pd.Timestamp(2020, 1, 31, 15),
                    "Discharge time": pd.Timestamp(2020, 2, 4, 10),
                    "outcome": int(patient > NUM_PATIENTS // 2),
                    "hemoglobin": 100.0 + patient,
                    "2019-nCoV nucleic acid detection": -1,
                }
            )
    table = pd.DataFrame(rows)
    labs = [lab.name for lab in TJH_LABS if lab.name != "hemoglobin"]
    table = pd.concat([table, pd.DataFrame(np.nan, index=table.index, columns=labs)], axis=1)
    # The workbook ends some of its names in a blank.
    return table.rename(columns={"platelet large cell ratio": "platelet large cell ratio "})


def load_table(table: pd.DataFrame, folder: Path, **options: object) -> Cohort:
    table.to_excel(folder / FILE_NAME, index=False)
    return build_cohort(
        CohortSection.model_validate({"source": "tjh", "path": str(folder), **options})
    )


def test_a_visit_is_the_mean_of_a_day(tmp_path: Path):
    table = small_table()
    table.loc[1, "RE_DATE"] = pd.Timestamp(2020, 2, 1, 23, 59)
    table.loc[1, "hemoglobin"] = 121.0

    case = load_table(table, tmp_path).cases["01"]

    assert case.visit_labels == ("2020-02-01",)
    assert case.values[0, 1] == (101.0 + 121.0) / 2


def test_background_labels_and_days_are_read(tmp_path: Path):
    cohort = load_table(small_table(), tmp_path)

    assert (cohort.cases["01"].sex, cohort.cases["02"].sex) == (Sex.FEMALE, Sex.MALE)
    assert cohort.cases["07"].age == 47
    assert (cohort.labels["12"], cohort.labels["13"]) == (0, 1)
    assert cohort.cases["01"].visit_days == (0.0, 2.0)
    assert cohort.has_dates


def test_discharge_time_is_in_no_feature_and_no_case(tmp_path: Path):
    longer = small_table()
    longer["Discharge time"] += pd.Timedelta(days=9)
    (tmp_path / "longer").mkdir()

    cohort = load_table(small_table(), tmp_path)

    assert cohort_hash(load_table(longer, tmp_path / "longer")) == cohort_hash(cohort)


def test_rows_without_a_date_are_dropped_and_counted(tmp_path: Path):
    table = small_table()
    table.loc[[0, 1, 2], "RE_DATE"] = pd.NaT

    cohort = load_table(table, tmp_path)

    assert "01" not in cohort.cases
    assert cohort.dropped["records_without_date"] == 3
    assert cohort.dropped["patients_without_dated_record"] == 1


def test_negative_values_are_missing_and_counted(tmp_path: Path):
    table = small_table()
    table.loc[0, "hemoglobin"] = -1

    cohort = load_table(table, tmp_path)

    assert np.isnan(cohort.cases["01"].values[0]).all()
    assert cohort.dropped["negative_values"] == 1


def test_a_visit_without_any_value_stays(tmp_path: Path):
    table = small_table()
    table.loc[1, "hemoglobin"] = None

    case = load_table(table, tmp_path).cases["01"]

    assert case.num_visits == 2
    assert np.isnan(case.values[1]).all()


def test_columns_with_blanks_keep_one_name(tmp_path: Path):
    cohort = load_table(small_table(), tmp_path)

    assert cohort.features == TJH_LABS


def test_a_gap_drops_the_records_of_the_last_days(tmp_path: Path):
    cohort = load_table(small_table(), tmp_path, gap_days=2)

    assert {case.visit_labels for case in cohort.cases.values()} == {("2020-02-01",)}
    assert cohort.dropped["records_within_gap"] == NUM_PATIENTS


def test_a_gap_that_leaves_nothing_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"no dated record left \(cohort.gap_days=30\)"):
        load_table(small_table(), tmp_path, gap_days=30)


def test_patients_with_too_few_visits_are_dropped_and_counted(tmp_path: Path):
    table = small_table().drop(index=1)

    cohort = load_table(table, tmp_path, min_visits=2)

    assert "01" not in cohort.cases
    assert cohort.dropped["patients_with_too_few_visits"] == 1


def test_more_visits_than_anybody_has_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"cohort\.min_visits=9"):
        load_table(small_table(), tmp_path, min_visits=9)


def test_the_path_may_name_the_workbook_itself(tmp_path: Path):
    small_table().to_excel(tmp_path / "renamed.xlsx", index=False)

    cohort = build_cohort(CohortSection(source="tjh", path=str(tmp_path / "renamed.xlsx")))

    assert len(cohort.cases) == NUM_PATIENTS


def test_no_path_is_refused_with_the_file_it_should_name():
    with pytest.raises(DataError, match=rf"{FILE_NAME} .* is not set"):
        build_cohort(CohortSection(source="tjh"))


def test_a_missing_path_is_refused_with_the_file_it_should_name(tmp_path: Path):
    with pytest.raises(DataError, match=rf"{FILE_NAME} .* no such file"):
        build_cohort(CohortSection(source="tjh", path=str(tmp_path)))


def test_a_path_the_system_refuses_is_a_data_error():
    with pytest.raises(DataError, match="File name too long"):
        build_cohort(CohortSection(source="tjh", path="x" * 5000))


def test_a_file_that_is_no_workbook_is_refused(tmp_path: Path):
    (tmp_path / FILE_NAME).write_text("PATIENT_ID,RE_DATE\n")

    with pytest.raises(DataError, match="cannot be read"):
        build_cohort(CohortSection(source="tjh", path=str(tmp_path)))


def test_another_workbook_is_refused_by_its_missing_columns(tmp_path: Path):
    table = small_table().drop(columns=["hemoglobin", "RE_DATE"])

    with pytest.raises(DataError, match=r"lacks 2 of its 80 columns: \['RE_DATE', 'hemoglobin'\]"):
        load_table(table, tmp_path)


def test_an_unknown_sex_is_refused_by_its_value(tmp_path: Path):
    table = small_table()
    table.loc[0, "gender"] = 3

    with pytest.raises(DataError, match=r"'gender' .* must hold \[1, 2\] .* also holds \[3\]"):
        load_table(table, tmp_path)


def test_an_outcome_that_cannot_be_read_is_refused(tmp_path: Path):
    table = small_table()
    table["outcome"] = table["outcome"].astype("float64")
    table.loc[4, "outcome"] = None

    with pytest.raises(DataError, match="'outcome'"):
        load_table(table, tmp_path)


def test_a_text_among_numbers_is_refused_by_its_row(tmp_path: Path):
    table = small_table().astype({"hemoglobin": "object"})
    table.loc[2, "hemoglobin"] = "high"

    with pytest.raises(DataError, match=r"'hemoglobin' .* numbers, but rows \[4\] hold \['high'\]"):
        load_table(table, tmp_path)


def test_a_patient_with_two_outcomes_is_refused(tmp_path: Path):
    table = small_table()
    table.loc[1, "outcome"] = 1

    with pytest.raises(DataError, match=r"one gender and one outcome, but patients \[1\]"):
        load_table(table, tmp_path)


def test_a_workbook_with_one_outcome_is_refused_with_the_fix(tmp_path: Path):
    table = small_table()
    table["outcome"] = 0

    with pytest.raises(DataError, match="must hold both classes"):
        load_table(table, tmp_path)


def test_readmission_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"cohort\.task must be 'mortality'"):
        load_table(small_table(), tmp_path, task=Task.READMISSION)


@pytest.fixture(scope="module")
def published() -> Cohort:
    if not PUBLISHED.exists():
        pytest.skip(f"the TJH workbook is not at {PUBLISHED}; set EAG_RL_TJH to its folder")
    return build_cohort(CohortSection(source="tjh", path=str(PUBLISHED)))


def test_counts_of_the_published_workbook_equal_table_3(published: Cohort):
    report = summary(published)

    assert report["splits"] == {
        "train": {"patients": 140, "visits": 641, "positives": 65},
        "val": {"patients": 21, "visits": 96, "positives": 10},
        "test": {"patients": 200, "visits": 967, "positives": 91},
    }
    assert report["features"] == 73
    assert report["dropped"]["records_without_date"] == 14
    assert report["dropped"]["patients_without_dated_record"] == 14


def test_published_patients_have_one_to_thirteen_visits(published: Cohort):
    visits = [case.num_visits for case in published.cases.values()]

    assert (len(visits), sum(visits), min(visits), max(visits)) == (361, 1704, 1, 13)
    assert visits.count(1) == 38


def test_published_visits_without_values_stay(published: Cohort):
    empty = [np.isnan(case.values).all(axis=1) for case in published.cases.values()]

    assert sum(int(visits.sum()) for visits in empty) == 364
    assert sum(bool(visits[-1]) for visits in empty) == 109
