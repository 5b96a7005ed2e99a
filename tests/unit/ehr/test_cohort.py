import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ehr.cohorts.cohort import (
    SPLITS,
    Cohort,
    check_splits,
    choose_patients,
    cohort_hash,
    load_cohort,
    make_splits,
    save_cohort,
    summary,
)
from ehr.cohorts.loaders import build_cohort
from ehr.cohorts.schema import check_table, patients_schema
from ehr.config import CohortSection
from ehr.errors import DataError
from tests.typed import known

COHORT = build_cohort(CohortSection(num_patients=60))


def with_value(cohort: Cohort, patient: str, value: float) -> Cohort:
    case = cohort.cases[patient]
    values = case.values.copy()
    values[0, 0] = value
    return replace(cohort, cases={**cohort.cases, patient: replace(case, values=values)})


def test_summary_has_the_shape_of_the_run_folder_contract():
    report = summary(COHORT)

    assert list(report["splits"]) == list(SPLITS)
    assert report["features"] == 17
    assert report["dropped"] == {}
    for split, ids in COHORT.splits.items():
        assert report["splits"][split] == {
            "patients": len(ids),
            "visits": sum(COHORT.cases[patient].num_visits for patient in ids),
            "positives": sum(COHORT.labels[patient] for patient in ids),
        }


def test_splits_are_sorted_disjoint_and_complete():
    ids = [patient for split in COHORT.splits.values() for patient in split]

    assert sorted(ids) == sorted(COHORT.cases)
    assert all(list(split) == sorted(split) for split in COHORT.splits.values())


def test_a_cohort_without_validation_positives_is_refused_with_the_fix():
    train, val, test = (COHORT.splits[split] for split in SPLITS)
    negatives = tuple(patient for patient in val if COHORT.labels[patient] == 0)
    cohort = replace(COHORT, splits={"train": train, "val": negatives, "test": test})

    with pytest.raises(DataError, match=r"the val split .* 0 are positive\. Use more patients"):
        check_splits(cohort)


def test_a_patient_in_two_splits_is_refused():
    cohort = replace(
        COHORT, splits={"train": COHORT.splits["train"], "val": COHORT.splits["train"]}
    )

    with pytest.raises(DataError, match="are in two splits"):
        check_splits(cohort)


def test_too_few_patients_to_stratify_are_refused_with_the_fix():
    with pytest.raises(DataError, match=r"cannot be split into .*cohort\.num_patients"):
        make_splits(
            {"a": 0, "b": 0, "c": 1},
            num_test=1,
            validation_fraction=0.5,
            seed=0,
            stratified=True,
        )


def test_a_small_synthetic_cohort_with_few_positives_is_refused_before_any_work():
    section = CohortSection(num_patients=20, positive_fraction=0.05)

    with pytest.raises(DataError, match="num_patients"):
        build_cohort(section)


def test_a_saved_cohort_is_read_back_equal(tmp_path: Path):
    save_cohort(COHORT, tmp_path / "cohort")

    restored = load_cohort(tmp_path / "cohort")

    assert cohort_hash(restored) == cohort_hash(COHORT)
    assert (restored.name, restored.task, restored.has_dates) == ("synthetic", COHORT.task, True)
    assert restored.features == COHORT.features
    assert restored.splits == COHORT.splits
    assert restored.labels == COHORT.labels
    assert list(restored.cases) == list(COHORT.cases)
    pd.testing.assert_frame_equal(known(restored.truth), known(COHORT.truth))


def test_a_missing_folder_is_refused_with_the_fix(tmp_path: Path):
    with pytest.raises(DataError, match=r"must hold a cohort .* Remove .* and give the same"):
        load_cohort(tmp_path)


def test_a_table_that_is_no_parquet_is_refused(tmp_path: Path):
    save_cohort(COHORT, tmp_path)
    (tmp_path / "visits.parquet").write_text("not a table")

    with pytest.raises(DataError, match="must hold a cohort"):
        load_cohort(tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda found: [], "format_version 1, but has None"),
        (lambda found: {**found, "format_version": 9}, "format_version 1, but has 9"),
        (lambda found: {**found, "task": "x"}, "'x' is not a valid Task"),
        (lambda found: {**found, "splits": [1]}, "has no attribute 'items'"),
        (lambda found: {**found, "splits": {"train": ["x"]}}, r"without a record, \['x'\]"),
        (lambda found: {k: found[k] for k in found if k != "dropped"}, "KeyError..dropped"),
    ],
)
def test_another_description_is_refused_with_the_fix(tmp_path: Path, change, expected: str):
    save_cohort(COHORT, tmp_path)
    file = tmp_path / "cohort.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))

    with pytest.raises(DataError, match=rf"{expected}.*Remove .* and give the same command again"):
        load_cohort(tmp_path)


def test_an_unknown_sex_is_refused_by_its_value(tmp_path: Path):
    save_cohort(COHORT, tmp_path)
    patients = pd.read_parquet(tmp_path / "patients.parquet")
    patients["sex"] = ["2", *patients["sex"].tolist()[1:]]
    patients.to_parquet(tmp_path / "patients.parquet", index=False)

    with pytest.raises(DataError, match=r"\['female', 'male', 'unknown'\], but also is \['2'\]"):
        load_cohort(tmp_path)


def test_a_patient_without_visits_is_refused(tmp_path: Path):
    save_cohort(COHORT, tmp_path)
    visits = pd.read_parquet(tmp_path / "visits.parquet")
    first = next(iter(COHORT.cases))
    visits[visits["patient_id"] != first].to_parquet(tmp_path / "visits.parquet", index=False)

    with pytest.raises(DataError, match=rf"has no visit of \['{first}'\]"):
        load_cohort(tmp_path)


def test_a_table_with_other_columns_is_refused_by_name():
    table = pd.DataFrame({"patient_id": ["a"], "sex": ["male"], "label": [0], "stay_days": [3.0]})

    with pytest.raises(DataError, match=r"missing: \['age'\], not expected: \['stay_days'\]"):
        check_table(table, patients_schema())


def test_a_column_of_another_kind_is_refused_by_name():
    table = pd.DataFrame({"patient_id": ["a"], "sex": ["male"], "age": ["old"], "label": [0]})

    with pytest.raises(DataError, match=r"age \(str, expected number\)"):
        check_table(table, patients_schema())


def test_the_hash_follows_values_and_labels_and_not_the_order_of_patients():
    first = next(iter(COHORT.cases))
    relabelled = {**COHORT.labels, first: 1 - COHORT.labels[first]}
    turned = dict(reversed(COHORT.cases.items()))

    assert cohort_hash(with_value(COHORT, first, 99.0)) != cohort_hash(COHORT)
    assert cohort_hash(replace(COHORT, labels=relabelled)) != cohort_hash(COHORT)
    assert cohort_hash(replace(COHORT, cases=turned)) == cohort_hash(COHORT)


def test_the_hash_does_not_see_which_bits_a_missing_value_has():
    first = next(iter(COHORT.cases))
    negative_nan = float(np.copysign(np.nan, -1.0))

    assert cohort_hash(with_value(COHORT, first, negative_nan)) == cohort_hash(
        with_value(COHORT, first, float("nan"))
    )


def test_balanced_patients_take_turns():
    chosen = choose_patients(COHORT, "train", 6, True, seed=0)

    assert [COHORT.labels[patient] for patient in chosen] == [1, 0, 1, 0, 1, 0]


def test_the_other_class_fills_up_when_one_runs_out():
    val = COHORT.splits["val"]

    chosen = choose_patients(COHORT, "val", None, True, seed=0)

    assert sorted(chosen) == list(val)


def test_a_smaller_choice_is_the_beginning_of_a_larger_one():
    few = choose_patients(COHORT, "test", 3, False, seed=4)
    many = choose_patients(COHORT, "test", 9, False, seed=4)

    assert many[:3] == few
    assert set(many) <= set(COHORT.splits["test"])


def test_excluded_patients_are_not_chosen_and_fewer_may_come():
    everyone = COHORT.splits["val"]

    chosen = choose_patients(COHORT, "val", 100, False, seed=0, exclude=everyone[:2])

    assert sorted(chosen) == list(everyone[2:])


def test_an_unknown_split_is_refused_with_the_known_ones():
    with pytest.raises(DataError, match=r"no split 'valid' .* \['train', 'val', 'test'\]"):
        choose_patients(COHORT, "valid", 3, False, seed=0)
