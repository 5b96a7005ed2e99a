"""PhysioNet/CinC Challenge 2012, sets a and b: 48 hours of an ICU stay, and death in hospital.

One text file a stay with rows `Time,Parameter,Value`. All stays are parsed in one pass: their rows
become one table of events, and the last event of each bin becomes the bin's value.
"""

import csv
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from ehr.catalogue import PHYSIONET2012, PHYSIONET2012_BENCHMARK, Feature
from ehr.catalogue.plausible import PHYSIONET2012_AGES, plausible_mask, restore_decimal_point
from ehr.cohorts.cohort import (
    Cohort,
    PatientCase,
    Sex,
    make_splits,
)
from ehr.cohorts.physionet2012_files import (
    PUBLISHED,
    StayFile,
    read_stays,
    refuse_uneven_lines,
    stamps,
)
from ehr.cohorts.physionet2012_outcomes import num_listed_without_files, read_outcomes
from ehr.config import CohortSection, Task
from ehr.errors import DataError

TEST_SHARE = 2_000 / 8_000
"""Of the 8,000 stays of both sets 2,000 are the test split, and 750 of the rest validation."""

VISIT_LABELS = ("12 h", "24 h", "36 h", "48 h")
"""A visit is a bin of twelve hours, named by its end."""

_BIN_MINUTES = 12 * 60
_STAY_MINUTES = len(VISIT_LABELS) * _BIN_MINUTES
_VISIT_DAYS = tuple(bin_ * _BIN_MINUTES / (24 * 60) for bin_ in range(len(VISIT_LABELS)))

_MISSING = -1.0
"""How the record writes "not measured", in descriptors and series alike."""

_SEXES = {0.0: Sex.FEMALE, 1.0: Sex.MALE, _MISSING: Sex.UNKNOWN}

# Height and weight at admission are values of the first bin; the ICU type has no place in a case.
_DESCRIPTORS = ("RecordID", "Age", "Gender", "ICUType")
_RECORD_ID = _DESCRIPTORS.index("RecordID")
_TIME = re.compile(r"\d{2,3}:[0-5]\d", re.ASCII)
_FEATURE_OF = {
    "GCS": "Glasgow coma scale total",
    "DiasABP": "Diastolic blood pressure",
    "NIDiasABP": "Diastolic blood pressure",
    "FiO2": "Fraction inspired oxygen",
    "Glucose": "Glucose",
    "HR": "Heart Rate",
    "Height": "Height",
    "MAP": "Mean blood pressure",
    "NIMAP": "Mean blood pressure",
    "SaO2": "Oxygen saturation",
    "RespRate": "Respiratory rate",
    "SysABP": "Systolic blood pressure",
    "NISysABP": "Systolic blood pressure",
    "Temp": "Temperature",
    "Weight": "Weight",
    "pH": "pH",
    "Albumin": "Albumin",
    "ALP": "Alkaline phosphatase",
    "ALT": "Alanine aminotransferase",
    "AST": "Aspartate aminotransferase",
    "HCO3": "Bicarbonate",
    "Bilirubin": "Bilirubin",
    "BUN": "Blood urea nitrogen",
    "Cholesterol": "Cholesterol",
    "Creatinine": "Creatinine",
    "HCT": "Hematocrit",
    "Lactate": "Lactate",
    "Mg": "Magnesium",
    "MechVent": "Mechanical ventilation",
    "PaCO2": "Partial pressure of carbon dioxide",
    "PaO2": "Partial pressure of oxygen",
    "Platelets": "Platelets",
    "K": "Potassium",
    "Na": "Sodium",
    "TroponinI": "Troponin I",
    "TroponinT": "Troponin T",
    "Urine": "Urine output",
    "WBC": "White blood cell count",
}
_PARAMETERS = (*_DESCRIPTORS, *_FEATURE_OF)
_PLACES = {name.casefold(): place for place, name in enumerate(_PARAMETERS)}
"""Other programs write "Hr" and "PH"; no two names differ in case only."""
_VENTILATION = "Mechanical ventilation"
_VENTILATION_CODES = (0.0, 1.0)
_INVASIVE = ("DiasABP", "MAP", "SysABP")
"""Count, at one minute, for more than the cuff's values of the same pressure."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Events:
    """Rows of all stays, in the order of the files."""

    stay: Int[np.ndarray, " rows"]
    minute: Int[np.ndarray, " rows"]
    """Since admission."""
    parameter: Int[np.ndarray, " rows"]
    """Index into `_PARAMETERS`."""
    value: Float[np.ndarray, " rows"]

    def where(self, kept: Bool[np.ndarray, " rows"]) -> "_Events":
        """The rows of a mask."""
        return _Events(
            stay=self.stay[kept],
            minute=self.minute[kept],
            parameter=self.parameter[kept],
            value=self.value[kept],
        )


def load(section: CohortSection) -> Cohort:
    """The challenge's stays: four visits each, twelve hours long, with the last value of each.

    Reads set a, set b or both. Length of stay, survival and the severity scores of the outcome
    files are not read. Every stay has four visits, also one without any series.

    Raises:
        DataError: if the task is not mortality, or a file is missing, unreadable or another.
    """
    _refuse_other_settings(section)
    stays, outcomes = _read(section.path, stamps(section.path))
    release()
    features = PHYSIONET2012_BENCHMARK if section.features == "benchmark" else PHYSIONET2012

    dropped = {
        f"stays_of_set_{name}_which_is_not_there": number
        for name, number in num_listed_without_files(section.path).items()
    }
    events = _observed(_events(stays, dropped), dropped)
    _check_record_ids(events, stays)
    _check_ventilation(events, stays)
    ages, sexes = _background(events, stays, dropped)
    values = _bins(events, len(stays), features, dropped)
    cases = {
        stay.record_id: PatientCase(
            patient_id=stay.record_id,
            sex=sex,
            age=None if np.isnan(age) else float(age),
            visit_labels=VISIT_LABELS,
            visit_days=_VISIT_DAYS,
            values=bins,
        )
        for stay, age, sex, bins in zip(stays, ages, sexes, values, strict=True)
    }
    labels = {stay.record_id: outcomes[stay.record_id] for stay in stays}
    return Cohort(
        name="physionet2012",
        task=Task.MORTALITY,
        horizon_days=section.horizon_days,
        features=features,
        cases=cases,
        labels=labels,
        splits=make_splits(
            labels,
            num_test=max(1, round(len(labels) * TEST_SHARE)),
            validation_fraction=section.validation_fraction,
            seed=section.seed,
            stratified=section.stratified is not False,
        ),
        has_dates=False,
        dropped=dropped,
    )


def _refuse_other_settings(section: CohortSection) -> None:
    if section.task is not Task.MORTALITY:
        raise DataError(
            "PhysioNet 2012 records deaths only: cohort.task must be 'mortality', got "
            f"{str(section.task)!r}"
        )
    if section.min_visits > len(VISIT_LABELS):
        raise DataError(
            f"every stay of PhysioNet 2012 has {len(VISIT_LABELS)} visits, but cohort.min_visits="
            f"{section.min_visits}. Use a smaller value."
        )


def source_hash(section: CohortSection) -> str:
    """Hash of every stay's id, rows and outcome: the same for an archive and its folder.

    What was read stays in memory for `load`, which mostly comes next.

    Raises:
        DataError: if a file is missing, unreadable or another.
    """
    return _content_hash(section.path, stamps(section.path))


def release() -> None:
    """Lets go of the files that `source_hash` read."""
    _read.cache_clear()


_Stamps = tuple[tuple[str, int, int], ...]


@lru_cache(maxsize=4)
def _content_hash(path: str | None, stamps: _Stamps) -> str:
    """Computed again only if a file has changed: an experiment asks for it for every unit."""
    stays, outcomes = _read(path, stamps)
    digest = hashlib.sha256()
    for stay in stays:
        digest.update(f"{stay.record_id} {outcomes[stay.record_id]} {len(stay.rows)}\n".encode())
        digest.update(stay.rows)
    return digest.hexdigest()


@lru_cache(maxsize=2)  # a run's cohort and the other one that it is asked about
def _read(path: str | None, stamps: _Stamps) -> tuple[list[StayFile], dict[str, int]]:
    stays = read_stays(path)
    return stays, read_outcomes(path, stays)


def _events(stays: Sequence[StayFile], dropped: dict[str, int]) -> _Events:
    """All rows of known parameters, as numbers; the others are counted in `dropped`."""
    num_rows = np.array([stay.num_rows for stay in stays])
    if not num_rows.any():
        raise DataError(
            f"the {len(stays)} files of stays must hold rows below their headers, but hold none. "
            f"Download them again from {PUBLISHED}."
        )
    try:
        table = pd.read_csv(
            io.BytesIO(b"".join(stay.rows for stay in stays)),
            names=["time", "parameter", "value"],
            # Few distinct texts in millions of rows: each is converted once.
            dtype="category",
            header=None,
            index_col=False,
            na_filter=False,
            skip_blank_lines=False,
            quoting=csv.QUOTE_NONE,
            lineterminator="\n",
            encoding_errors="replace",
        )
    except pd.errors.ParserError:
        refuse_uneven_lines(stays)
        raise
    stay = np.repeat(np.arange(len(stays)), num_rows)
    if len(table) != len(stay):
        raise DataError(
            f"the stays' files must hold {len(stay)} rows, but {len(table)} were read. Download "
            "them again from PhysioNet."
        )
    names = [str(name).strip() for name in table["parameter"].cat.categories]
    known = np.array([_PLACES.get(name.casefold(), -1) for name in names])
    is_empty = np.array([not name for name in names])
    code = table["parameter"].cat.codes.to_numpy()
    dropped["rows_without_parameter_name"] = int(is_empty[code].sum())
    dropped["rows_of_unknown_parameters"] = int((~is_empty & (known < 0))[code].sum())

    rows = np.flatnonzero(known[code] >= 0)
    minutes = np.array([_minutes(text) for text in table["time"].cat.categories])
    texts = pd.Series(table["value"].cat.categories)
    values = np.asarray(pd.to_numeric(texts, errors="coerce"), dtype=np.float64)
    events = _Events(
        stay=stay[rows],
        minute=minutes[table["time"].cat.codes.to_numpy()[rows]],
        parameter=known[code[rows]],
        value=values[table["value"].cat.codes.to_numpy()[rows]],
    )
    wrong = np.flatnonzero((events.minute < 0) | ~np.isfinite(events.value))
    if wrong.size:
        row = int(rows[wrong[0]])
        # The first row of a file is its header, and rows are counted from one.
        line = row - int(num_rows[: stay[row]].sum()) + 2
        raise DataError(
            f"line {line} of {stays[stay[row]].origin!r} must read 'HH:MM,Parameter,number', but "
            f"is {','.join(map(str, table.iloc[row]))!r}. Correct it, or give the published files."
        )
    return events


def _minutes(text: str) -> int:
    """Minutes since admission of "HH:MM"; -1 if it is none."""
    if not _TIME.fullmatch(str(text)):
        return -1
    hours, _, minutes = text.partition(":")
    return int(hours) * 60 + int(minutes)


def _check_record_ids(events: _Events, stays: Sequence[StayFile]) -> None:
    """A file under another's name would be that patient's record with this one's outcome."""
    rows = events.where(events.parameter == _RECORD_ID)
    written = np.full(len(stays), np.nan)
    written[rows.stay] = rows.value
    number = np.bincount(rows.stay, minlength=len(stays))
    is_same = np.array([f"{id_:.16g}" for id_ in written]) == [stay.record_id for stay in stays]
    if (wrong := np.flatnonzero((number != 1) | ~is_same)).size:
        first = int(wrong[0])
        said = [f"{value:.16g}" for value in rows.value[rows.stay == first][:5]]
        raise DataError(
            f"every file must say once, in a row RecordID, the id in its name, but {len(wrong)} of "
            f"{len(stays)} do not: {stays[first].origin!r} says {said}. Give the published files."
        )


def _check_ventilation(events: _Events, stays: Sequence[StayFile]) -> None:
    """The one parameter that is a code: another number says neither yes nor no."""
    is_unknown = (events.parameter == _PARAMETERS.index("MechVent")) & ~np.isin(
        events.value, _VENTILATION_CODES
    )
    if is_unknown.any():
        first = int(np.argmax(is_unknown))
        raise DataError(
            f"MechVent in {stays[events.stay[first]].origin!r} must be 1 (yes), 0 (no) or -1 "
            f"(unknown), but is {events.value[first]:g}. Correct it, or give the published files."
        )


def _observed(events: _Events, dropped: dict[str, int]) -> _Events:
    """Rows within the 48 hours whose value was measured; descriptors of unknown value stay."""
    is_late = events.minute > _STAY_MINUTES
    is_series = events.parameter >= len(_DESCRIPTORS)
    is_missing = is_series & (events.value == _MISSING)
    dropped["rows_after_48_hours"] = int(is_late.sum())
    dropped["values_written_as_minus_1"] = int((is_missing & ~is_late).sum())
    return events.where(~is_late & ~is_missing)


def _background(
    events: _Events, stays: Sequence[StayFile], dropped: dict[str, int]
) -> tuple[Float[np.ndarray, " stays"], list[Sex]]:
    """Age (NaN = unknown) and sex of every stay; an age of 90 means 90 or older."""
    found = np.full((len(_DESCRIPTORS), len(stays)), _MISSING)
    rows = events.where(events.parameter < len(_DESCRIPTORS))
    found[rows.parameter, rows.stay] = rows.value
    if (other := np.flatnonzero(found[rows.parameter, rows.stay] != rows.value)).size:
        first = int(other[0])
        raise DataError(
            f"{stays[rows.stay[first]].origin!r} must say {_DESCRIPTORS[rows.parameter[first]]} "
            "once, but says several values. Correct it, or give the published files."
        )
    age, gender = found[_DESCRIPTORS.index("Age")], found[_DESCRIPTORS.index("Gender")]
    if (unknown := ~np.isin(gender, list(_SEXES))).any():
        first = int(np.argmax(unknown))
        raise DataError(
            f"Gender in {stays[first].origin!r} must be 0 (female), 1 (male) or -1 (unknown), but "
            f"is {gender[first]:g}. Correct it, or give the published files."
        )
    is_unknown = age == _MISSING
    is_implausible = ~is_unknown & ((age < PHYSIONET2012_AGES[0]) | (age > PHYSIONET2012_AGES[1]))
    if is_implausible.any():
        dropped["implausible Age"] = int(is_implausible.sum())
    ages = np.where(is_unknown | is_implausible, np.nan, age)
    return ages, [_SEXES[code] for code in gender]


def _bins(
    events: _Events, num_stays: int, features: Sequence[Feature], dropped: dict[str, int]
) -> Float[np.ndarray, "stays bins features"]:
    """Last plausible value of each feature in each bin; NaN = none."""
    column = {feature.name: index for index, feature in enumerate(features)}
    columns = np.array([column.get(_FEATURE_OF.get(name, ""), -1) for name in _PARAMETERS])
    events = events.where(columns[events.parameter] >= 0)
    events = replace(events, value=_catalogue_units(events, dropped))
    kept, counts = plausible_mask(events.value, columns[events.parameter], features)
    dropped.update(counts)
    events = events.where(kept)

    # In time order, at one minute the invasive pressure last, otherwise as the file has them.
    is_invasive = np.isin(events.parameter, [_PARAMETERS.index(name) for name in _INVASIVE])
    order = np.argsort((2 * events.minute + is_invasive).astype(np.uint16), kind="stable")
    # What was charted at the 48th hour belongs to the last bin.
    bin_ = np.minimum(events.minute // _BIN_MINUTES, len(VISIT_LABELS) - 1)
    cell = (events.stay * len(VISIT_LABELS) + bin_) * len(features) + columns[events.parameter]
    last = order[~pd.Series(cell[order]).duplicated(keep="last").to_numpy()]
    values = np.full(num_stays * len(VISIT_LABELS) * len(features), np.nan)
    values[cell[last]] = events.value[last]
    values = values.reshape(num_stays, len(VISIT_LABELS), len(features))
    if _VENTILATION in column:
        _say_no_ventilation(values, [feature.name for feature in features])
    return values


def _say_no_ventilation(
    values: Float[np.ndarray, "stays bins features"], names: Sequence[str]
) -> None:
    """Writes 0 where a bin has charted values and no row of mechanical ventilation.

    The challenge defines 0 as "no" and never writes it. Height and weight are no sign of charting:
    every stay has them at admission.
    """
    charted = [name not in (_VENTILATION, "Height", "Weight") for name in names]
    is_charted = ~np.isnan(values[:, :, charted]).all(axis=2)
    ventilation = values[:, :, names.index(_VENTILATION)]
    ventilation[is_charted & np.isnan(ventilation)] = 0.0


def _catalogue_units(events: _Events, dropped: dict[str, int]) -> Float[np.ndarray, " rows"]:
    """Values in the units of the catalogue; only the inspired oxygen and some pH need a change."""
    values = events.value.copy()
    values[events.parameter == _PARAMETERS.index("FiO2")] *= 100
    is_ph = events.parameter == _PARAMETERS.index("pH")
    plausible_ph = next(f.plausible for f in PHYSIONET2012 if f.name == "pH")
    assert plausible_ph is not None
    values[is_ph], restored = restore_decimal_point(values[is_ph], plausible_ph)
    dropped["pH_values_with_decimal_point_restored"] = restored
    return values
