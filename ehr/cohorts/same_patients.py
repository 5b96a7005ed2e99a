"""Patients that two cohorts share, or that one has twice, by their records.

Ids alone do not tell: other hospitals count from 1 as well, and a copied file may have ids of its
own. A record does: no two patients have the same age, sex and many equal values in one visit.
"""

from collections.abc import Collection

import numpy as np

from ehr.cohorts.cohort import Cohort
from ehr.errors import DataError

NUM_EQUAL_VALUES = 6
"""Equal observed values of a visit that make two records one patient's under other ids. A common
count of ordinary values (15, 37.0, "no ventilation") may meet by chance; six with the same age and
sex did not, among the 8,000 stays of PhysioNet 2012."""

NUM_TELLING_VALUES = 10
"""Equal values of a visit that make two records one patient's whatever age and sex say: a copy may
have lost them, or have them changed."""

_Visit = tuple[str, float | None, bytes]


def require_each_once(cohort: Cohort) -> None:
    """Refuses a cohort with one record under two ids.

    One copy among the training patients would tell the outcome of the other among the test
    patients.

    Raises:
        DataError: naming the first two ids.
    """
    first: dict[tuple[bytes, tuple[float, ...], float | None, str], str] = {}
    for patient, case in cohort.cases.items():
        # One reader writes equal values in equal bytes.
        record = (case.values.tobytes(), case.visit_days, case.age, str(case.sex))
        other = first.setdefault(record, patient)
        if other == patient:
            continue
        num_values = int((~np.isnan(case.values)).sum())
        if num_values >= NUM_EQUAL_VALUES:
            raise DataError(
                f"every patient of cohort {cohort.name!r} must be there once, but {other!r} and "
                f"{patient!r} have the same age, sex, days and {num_values} values: one file or "
                "record was copied under another id. Remove one of them, or give the published "
                "files."
            )


def same_patients(
    cohort: Cohort, patients: Collection[str], other: Cohort, asked: Collection[str]
) -> list[str]:
    """Patients of another cohort who are patients of this one, in the order of `asked`.

    Two records are one patient's if age, sex and all values of a visit agree, as far as both
    cohorts have the feature: at least `NUM_EQUAL_VALUES` observed ones, or any where the source and
    the id are the same too. With `NUM_TELLING_VALUES` equal ones age and sex may differ. Records of
    the same source, id, age and sex without any value are one.

    Args:
        cohort: whose patients may be met again.
        patients: those of them that count.
        other: the other cohort; its settings may differ, such as its features or its split.
        asked: those of its patients that are looked for.
    """
    names = [feature.name for feature in cohort.features]
    of_other = {feature.name: at for at, feature in enumerate(other.features)}
    shared = [name for name in names if name in of_other]
    columns = [names.index(name) for name in shared]
    other_columns = [of_other[name] for name in shared]
    known: set[_Visit] = set()
    of_patient: dict[str, set[_Visit]] = {}
    for patient in patients:
        visits = _visits(cohort, patient, columns)
        known |= _telling(visits)
        of_patient[patient] = set(visits)
    is_same_source = cohort.name == other.name
    found: list[str] = []
    for patient in asked:
        visits = _visits(other, patient, other_columns)
        has_id = is_same_source and patient in of_patient
        if not known.isdisjoint(_telling(visits)) or (
            has_id and (of_patient[patient] & set(visits) or _are_empty(cohort, other, patient))
        ):
            found.append(patient)
    return found


def _visits(cohort: Cohort, patient: str, columns: list[int]) -> dict[_Visit, int]:
    """Each visit that has values, and how many: age, sex and values as one key."""
    case = cohort.cases[patient]
    # Single precision: a file that was saved again may differ in the last digits.
    values = case.values[:, columns].astype("<f4") + 0.0  # -0.0 is 0.0
    num_observed = (~np.isnan(values)).sum(axis=1)
    values[np.isnan(values)] = np.nan  # of its many bit patterns one
    return {
        (str(case.sex), case.age, row.tobytes()): int(num)
        for row, num in zip(values, num_observed, strict=True)
        if num
    }


def _telling(visits: dict[_Visit, int]) -> set[_Visit]:
    """What of these visits tells a patient, with and without age and sex."""
    telling = {visit for visit, num in visits.items() if num >= NUM_EQUAL_VALUES}
    return telling | {
        ("", None, values) for (_, _, values), num in visits.items() if num >= NUM_TELLING_VALUES
    }


def _are_empty(cohort: Cohort, other: Cohort, patient: str) -> bool:
    cases = [each.cases[patient] for each in (cohort, other)]
    return all(np.isnan(case.values).all() for case in cases) and (
        (cases[0].sex, cases[0].age) == (cases[1].sex, cases[1].age)
    )
