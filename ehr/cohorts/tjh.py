"""The Tongji (TJH) COVID-19 workbook, read as the paper's Table 3 reads it."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pandas as pd

from ehr.catalogue import TJH_LABS
from ehr.catalogue.plausible import AGES
from ehr.cohorts.cells import CellParser
from ehr.cohorts.cohort import (
    Cohort,
    PatientCase,
    Sex,
    make_splits,
)
from ehr.config import CohortSection, Task
from ehr.errors import DataError
from ehr.tables import cells, column, columns, groups, labels_where, rows
from ehr.whole_files import in_home

FILE_NAME = "time_series_375_prerpocess_en.xlsx"
"""Name of the workbook as published (HAIRLAB/Pre_Surv_COVID_19), its misspelling included."""

TEST_SHARE = 200 / 361
"""200 of the 361 patients with dated records are the test split of Table 3."""

_CONSTANT_COLUMN = "2019-nCoV nucleic acid detection"
_PATIENT, _RECORD, _ADMISSION, _DISCHARGE = (
    "PATIENT_ID",
    "RE_DATE",
    "Admission time",
    "Discharge time",
)
_BACKGROUND = ("age", "gender", "outcome")
_TIMES = (_RECORD, _ADMISSION, _DISCHARGE)
_SEXES = {1: Sex.MALE, 2: Sex.FEMALE}
_LATE_DAYS = 7
"""The published workbook has results up to two days behind the discharge."""

_ADVICE = f"Give the published workbook {FILE_NAME} of HAIRLAB/Pre_Surv_COVID_19."


def load(section: CohortSection) -> Cohort:
    """The TJH cohort: one visit per patient and day with the mean of that day's values.

    Discharge time serves `gap_days` only and stays out of the cohort, as does every length of stay.

    Raises:
        DataError: if the task is not mortality, or the workbook is missing, unreadable or another.
    """
    if section.task is not Task.MORTALITY:
        raise DataError(
            f"TJH records deaths only: cohort.task must be 'mortality', got {str(section.task)!r}"
        )
    path = _workbook(section.path)
    records, dropped = _records(path, section.gap_days)
    labs = [lab.name for lab in TJH_LABS]
    by_day = [_PATIENT, _RECORD]
    # A day whose records hold background only stays a visit without values: Table 3 counts it.
    visits = pd.DataFrame(records.groupby(by_day, sort=True)[labs].mean())
    background = records.groupby(_PATIENT, sort=True)[list(_BACKGROUND)].first()

    cases: dict[str, PatientCase] = {}
    labels: dict[str, int] = {}
    for patient, days in groups(visits, _PATIENT):
        times = days.index.get_level_values(_RECORD)
        if len(times) < section.min_visits:
            dropped["patients_with_too_few_visits"] += 1
            continue
        row = background.loc[patient]
        cases[patient] = PatientCase(
            patient_id=patient,
            sex=_SEXES[int(row["gender"])],
            age=float(row["age"]),
            visit_labels=tuple(time.date().isoformat() for time in times),
            visit_days=tuple(float((time - times[0]).days) for time in times),
            values=days.to_numpy(dtype=np.float64),
        )
        labels[patient] = int(row["outcome"])
    if not cases:
        raise DataError(
            f"no patient of {path} is left with cohort.min_visits={section.min_visits} and "
            f"cohort.gap_days={section.gap_days}. Use smaller values."
        )
    return Cohort(
        name="tjh",
        task=Task.MORTALITY,
        horizon_days=section.horizon_days,
        features=TJH_LABS,
        cases=cases,
        labels=labels,
        splits=make_splits(
            labels,
            num_test=max(1, round(len(labels) * TEST_SHARE)),
            validation_fraction=section.validation_fraction,
            seed=section.seed,
            stratified=bool(section.stratified),
        ),
        has_dates=True,
        dropped=dropped,
    )


def source_hash(section: CohortSection) -> str:
    """Hash of the workbook's bytes, whatever its name.

    Raises:
        DataError: if it is missing or must not be read.
    """
    with _workbook(section.path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _workbook(path: str | None) -> Path:
    if path is None:
        raise DataError(
            f"cohort.path must name {FILE_NAME} or the folder that holds it, but is not set. "
            "Add cohort.path=FOLDER to the command."
        )
    given = in_home(path)
    try:
        found = given / FILE_NAME if given.is_dir() else given
        is_there, reason = found.is_file(), "there is no such file"
        others = sorted(each.name for each in given.glob("[!.~]*.xlsx"))
        if not is_there and others:
            reason += f", but {others[:3]} (if that is it, give cohort.path with its name)"
        if is_there and not os.access(found, os.R_OK):
            is_there, reason = False, "it must not be read"
    except OSError as error:
        found, is_there, reason = given, False, error.strerror
    if not is_there:
        raise DataError(
            f"cohort.path must name {FILE_NAME} or the folder that holds it, but came as "
            f"{str(found)!r}: {reason}. Check the path (relative ones start at "
            f"{str(Path.cwd())!r}) and its permissions."
        )
    return found


def _records(path: Path, gap_days: int) -> tuple[pd.DataFrame, dict[str, int]]:
    """Dated records of the workbook with clean columns, and what was dropped."""
    table = _read(path)
    labs = [lab.name for lab in TJH_LABS]
    dropped = {"patients_with_too_few_visits": 0}
    patients = column(table, _PATIENT).nunique()
    dated = rows(table, table[_RECORD].notna())
    dropped["records_without_date"] = len(table) - len(dated)
    dropped["patients_without_dated_record"] = patients - column(dated, _PATIENT).nunique()
    if gap_days:
        if (unknown := labels_where(column(dated, _DISCHARGE).isna())).size:
            raise DataError(
                f"cohort.gap_days={gap_days} needs column {_DISCHARGE!r} of {str(path)!r} in every "
                f"row, but row {int(unknown[0])} has none. Correct the cell, or use no gap."
            )
        stays = column(dated, _DISCHARGE) - column(dated, _RECORD)
        early = rows(dated, stays.dt.days >= gap_days)
        dropped["records_within_gap"] = len(dated) - len(early)
        dropped["patients_without_record_before_gap"] = (
            column(dated, _PATIENT).nunique() - column(early, _PATIENT).nunique()
        )
        dated = early
    if dated.empty:
        raise DataError(
            f"{str(path)!r} has no dated record left (cohort.gap_days={gap_days}). Use a smaller "
            "gap, or give the published file."
        )
    values = columns(dated, labs)
    # The workbook writes -1 for "not measured".
    dropped["negative_values"] = int((values < 0).to_numpy().sum())
    dropped["constant_columns"] = int(_CONSTANT_COLUMN in table.columns)
    cleaned = values.mask(values < 0)
    described = columns(dated, [_PATIENT, _RECORD, *_BACKGROUND])
    return pd.concat([described, cleaned], axis=1), dropped


def _read(path: Path) -> pd.DataFrame:
    """All records of the workbook: each column of one kind, each patient of one background."""
    labs = [lab.name for lab in TJH_LABS]
    columns = (_PATIENT, *_TIMES, *_BACKGROUND, *labs)
    # Every command imports the loaders, and openpyxl takes a tenth of a second.
    from ehr.cohorts.workbook import read_table

    table = read_table(path, columns, _ADVICE, carried=(_PATIENT,))
    reader = CellParser(path)
    read = {_PATIENT: _patients(path, reader, column(table, _PATIENT))}
    read |= {time: reader.days(column(table, time)) for time in _TIMES}
    read["age"] = reader.numbers(column(table, "age"))
    low, high = AGES
    reader.refuse(
        cells(column(table, "age"), ~read["age"].between(low, high)),
        f"{low} to {high} years in every row",
    )
    read["gender"] = reader.codes(column(table, "gender"), _SEXES)
    read["outcome"] = reader.codes(column(table, "outcome"), (0, 1))
    read |= {lab: reader.numbers(column(table, lab)) for lab in labs}
    found = pd.DataFrame(read)
    if _CONSTANT_COLUMN in table.columns:
        found[_CONSTANT_COLUMN] = -1.0  # that it was there is all that counts
    _refuse_several_patients_of_one_id(path, found)
    _refuse_impossible_stays(path, found)
    return found


def _patients(path: Path, reader: CellParser, column: pd.Series) -> pd.Series:
    """Every row's patient: the workbook writes an id into the first row of each."""
    ids = reader.ids(column)
    if len(ids) and pd.isna(ids.iloc[0]):
        raise DataError(
            f"column {_PATIENT!r} of {str(path)!r} must hold an id in the first row of each "
            f"patient, but row {int(ids.index[0])}, the first of all, has none. Correct the cell, "
            "or give the published file."
        )
    return ids.ffill()


def _refuse_several_patients_of_one_id(path: Path, table: pd.DataFrame) -> None:
    """A row whose id was left out belongs to the patient above: then their backgrounds differ."""
    same = [*_BACKGROUND, _ADMISSION, _DISCHARGE]
    disagreeing = table.groupby(_PATIENT)[same].nunique().gt(1)
    is_several = np.asarray(disagreeing, dtype=bool)
    if is_several.any():
        patients = list(disagreeing.index[np.flatnonzero(is_several.any(axis=1))][:5])
        several = list(disagreeing.columns[np.flatnonzero(is_several.any(axis=0))])
        first = is_several[np.flatnonzero(is_several.any(axis=1))[0]]
        of_first = disagreeing.columns[np.flatnonzero(first)[0]]
        values = column(rows(table, table[_PATIENT] == patients[0]), of_first).dropna()
        row = int(labels_where(values != values.iloc[0])[0])
        raise DataError(
            f"every patient of {str(path)!r} must have one {', one '.join(same)}, but patients "
            f"{patients} have several of {several}; row {row} differs from the rows above it. "
            "Correct these rows (is a patient's id missing?), or give the published file."
        )


def _refuse_impossible_stays(path: Path, table: pd.DataFrame) -> None:
    """A day on the wrong side of another was mistyped, or read with day and month swapped."""
    orders = (
        (_ADMISSION, _DISCHARGE, 0),
        (_ADMISSION, _RECORD, 0),
        (_RECORD, _DISCHARGE, _LATE_DAYS),
    )
    for first, last, slack in orders:
        late_by = (column(table, first) - column(table, last)).dt.days
        if (wrong := labels_where(late_by > slack)).size:
            row = int(wrong[0])
            raise DataError(
                f"{first!r} must not lie behind {last!r}{f' by over {slack} days' if slack else ''}"
                f" in {str(path)!r}, but in row {row} they are {table.at[row, first].date()} and "
                f"{table.at[row, last].date()}. Correct these cells, or give the published file."
            )
