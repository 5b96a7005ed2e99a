"""The Tongji (TJH) COVID-19 workbook, read as the paper's Table 3 reads it."""

# pandas annotates selections and groupings as unions that hold arrays and scalars too; checked
# against those, plain table code would need a cast in every line.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportReturnType=false, reportGeneralTypeIssues=false

import os
from pathlib import Path

import numpy as np
import pandas as pd

from ehr.catalogue import TJH_LABS
from ehr.cohort import Cohort, PatientCase, Sex, make_splits
from ehr.config import CohortSection, Task
from ehr.errors import DataError

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
    visits = records.groupby(by_day, sort=True)[labs].mean()
    background = records.groupby(_PATIENT, sort=True)[list(_BACKGROUND)].first()

    cases: dict[str, PatientCase] = {}
    labels: dict[str, int] = {}
    # Padded, so that sorting the ids as text sorts them as numbers.
    width = len(str(int(background.index.max())))
    for number, days in visits.groupby(level=_PATIENT, sort=True):
        times = days.index.get_level_values(_RECORD)
        if len(times) < section.min_visits:
            dropped["patients_with_too_few_visits"] += 1
            continue
        patient = f"{int(number):0{width}d}"
        row = background.loc[number]
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


def source_files(section: CohortSection) -> list[Path]:
    """The workbook.

    Raises:
        DataError: if it is missing or must not be read.
    """
    return [_workbook(section.path)]


def _workbook(path: str | None) -> Path:
    if path is None:
        raise DataError(
            f"cohort.path must name {FILE_NAME} or the folder that holds it, but is not set. "
            "Add cohort.path=FOLDER to the command."
        )
    given = Path(path).expanduser()
    try:
        found = given / FILE_NAME if given.is_dir() else given
        is_there, reason = found.is_file(), "there is no such file"
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
    try:
        table = pd.read_excel(path)
    # The readers of zip and xml below raise errors of their own for files that are no workbook.
    except Exception as error:
        raise DataError(
            f"{str(path)!r} must be the workbook {FILE_NAME}, but cannot be read: "
            f"{type(error).__name__}: {error}. Download it again from HAIRLAB/Pre_Surv_COVID_19."
        ) from error
    table.columns = [str(column).strip() for column in table.columns]
    labs = [lab.name for lab in TJH_LABS]
    expected = [_PATIENT, *_TIMES, *_BACKGROUND, *labs]
    if missing := [column for column in expected if column not in table.columns]:
        raise DataError(
            f"{str(path)!r} must be the workbook {FILE_NAME}, but lacks {len(missing)} of its "
            f"{len(expected)} columns: {missing[:5]}. Give the published file."
        )
    dropped = {"patients_with_too_few_visits": 0}
    table[_PATIENT] = table[_PATIENT].ffill()
    for column in (*_BACKGROUND, _PATIENT, *labs):
        table[column] = _numbers(path, table[column])
    for column in _TIMES:
        table[column] = _days(path, table[column])
    _check_background(path, table)

    patients = table[_PATIENT].nunique()
    dated = table[table[_RECORD].notna()]
    dropped["records_without_date"] = len(table) - len(dated)
    dropped["patients_without_dated_record"] = patients - dated[_PATIENT].nunique()
    if gap_days:
        early = dated[(dated[_DISCHARGE] - dated[_RECORD]).dt.days >= gap_days]
        dropped["records_within_gap"] = len(dated) - len(early)
        dropped["patients_without_record_before_gap"] = (
            dated[_PATIENT].nunique() - early[_PATIENT].nunique()
        )
        dated = early
    if dated.empty:
        raise DataError(
            f"{str(path)!r} has no dated record left (cohort.gap_days={gap_days}). Use a smaller "
            "gap, or give the published file."
        )
    values = dated[labs]
    # The workbook writes -1 for "not measured".
    dropped["negative_values"] = int((values < 0).to_numpy().sum())
    dropped["constant_columns"] = int(_CONSTANT_COLUMN in table.columns)
    cleaned = values.mask(values < 0)
    return pd.concat([dated[[_PATIENT, _RECORD, *_BACKGROUND]], cleaned], axis=1), dropped


def _numbers(path: Path, column: pd.Series) -> pd.Series:
    numbers = pd.to_numeric(column, errors="coerce").astype("float64")
    _refuse(path, column[numbers.isna() & column.notna()], "numbers")
    return numbers


def _days(path: Path, column: pd.Series) -> pd.Series:
    days = pd.to_datetime(column, errors="coerce").dt.normalize()
    _refuse(path, column[days.isna() & column.notna()], "dates")
    return days


def _refuse(path: Path, wrong: pd.Series, expected: str) -> None:
    if wrong.empty:
        return
    # Row 1 of a sheet is its header.
    rows = [int(index) + 2 for index in wrong.index[:5]]
    raise DataError(
        f"column {str(wrong.name)!r} of {str(path)!r} must hold {expected}, but rows {rows} hold "
        f"{wrong.head(5).tolist()!r}. Correct these cells, or give the published file."
    )


def _check_background(path: Path, table: pd.DataFrame) -> None:
    allowed = {"gender": set(_SEXES), "outcome": {0, 1}}
    for column, codes in allowed.items():
        if wrong := sorted(set(table[column].fillna(-1).astype(int)) - codes):
            raise DataError(
                f"column {column!r} of {str(path)!r} must hold {sorted(codes)} in every row, but "
                f"also holds {wrong[:5]} (-1 = empty). Correct these cells, or give the published "
                "file."
            )
    for column in (_PATIENT, "age"):
        if table[column].isna().any():
            row = int(table.index[table[column].isna()][0]) + 2
            raise DataError(
                f"column {column!r} of {str(path)!r} must not be empty, but row {row} is. Correct "
                "the cell, or give the published file."
            )
    disagreeing = table.groupby(_PATIENT)[["gender", "outcome"]].nunique().gt(1).any(axis=1)
    if disagreeing.any():
        ids = [int(number) for number in disagreeing.index[disagreeing][:5]]
        raise DataError(
            f"every patient of {str(path)!r} must have one gender and one outcome, but patients "
            f"{ids} have several. Correct these rows, or give the published file."
        )
