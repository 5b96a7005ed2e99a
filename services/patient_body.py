"""What the HTTP endpoint takes: one patient's record, checked field by field.

Only what was measured passes. What is no number, date or text of its kind is refused with the name
of its field; a value that the reader of the run's data would not take as it stands is converted or
made missing as that reader does it, and `adjustments` says so.
"""

import datetime
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from typing import Annotated

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from ehr.catalogue import AGE_AND_SEX, Feature
from ehr.catalogue.plausible import read_age, read_value
from ehr.cohorts.cohort import PatientCase, Sex
from ehr.errors import DataError

MAX_VISITS = 500
MAX_DAYS = 36_525
"""A hundred years: no record is longer, and the expert's float32 holds it exactly."""
_MAX_ID = 200
_AGE = "Age"
"""What an adjustment calls the age, which is no feature of a visit."""
_SHOWN = 60
"""Characters of a refused text that its message repeats."""

_ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


def _number(given: object) -> object:
    """A finite float of a JSON number; null stays, for the field to allow or not."""
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise PydanticCustomError("number", "must be a number, without quotes")
    try:
        number = float(given)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise PydanticCustomError("number", "must be a finite number")
    return number


def _number_or_word(given: object) -> object:
    if isinstance(given, str):
        return given
    if isinstance(given, list | dict):
        raise PydanticCustomError("value", "must be one number, one word or null")
    return _number(given)


def _date(given: object) -> object:
    """A date written YYYY-MM-DD, and in no other of the forms that could be read as one."""
    if given is None:
        return None
    try:
        if isinstance(given, str) and _ISO_DATE.fullmatch(given):
            return datetime.date.fromisoformat(given)
    except ValueError as error:
        raise PydanticCustomError(
            "date", "must be a day of the calendar: {error}", {"error": str(error)}
        ) from error
    raise PydanticCustomError("date", "must be a date written 'YYYY-MM-DD'")


def _name(given: str) -> str:
    if not given.isprintable() or not given.strip():
        raise PydanticCustomError("name", "must be printable text in one line, and not empty")
    return given


_Number = Annotated[float, BeforeValidator(_number)]
_Value = Annotated[float | str | None, BeforeValidator(_number_or_word)]
_Date = Annotated[
    datetime.date, BeforeValidator(_date), WithJsonSchema({"type": "string", "format": "date"})
]
_Name = Annotated[str, Field(min_length=1, max_length=_MAX_ID), AfterValidator(_name)]


class Body(BaseModel):
    """A JSON object of the endpoint: unknown fields are refused, docstrings describe the known."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class VisitBody(Body):
    """One visit: when, and what was measured."""

    day: _Number | None = Field(default=None, ge=0, le=MAX_DAYS)
    """Days since the first visit; or give `date`."""
    date: _Date | None = None
    """Date of the visit, YYYY-MM-DD; or give `day`."""
    values: dict[str, _Value]
    """Raw values by feature name, in the units of the run's cohort; categories by code or word;
    leave out what was not measured."""


class PatientBody(Body):
    """One patient's record."""

    patient_id: _Name = "anonymous"
    """Name of the patient in the cohort, or anything."""
    sex: Sex = Sex.UNKNOWN
    """Sex as recorded."""
    age: _Number | None = Field(default=None, ge=0, le=120)
    """Years at the first visit; readers of records take no higher one for an age."""
    visits: list[VisitBody] = Field(min_length=1, max_length=MAX_VISITS)
    """Visits in time order, one for each time."""
    data_sha256: _Name | None = None
    """Hash of the cohort that this record was taken from; with the expert's own hash, a cohort
    patient whose record is sent as the cohort has it is answered from the stored, out-of-fold
    salience. Any other record is computed."""


class Adjustment(Body):
    """A value that was not taken as it was sent, because the reader of such records does not."""

    feature: str
    """Name of the feature, or `Age`."""
    visit: int
    """Number of the visit, from 1; the age is that at the first."""
    value: float
    """As it was sent."""
    became: float | None
    """What the expert saw; null = missing."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    visit: int
    column: int
    sent: float
    value: float
    reason: str | None


def case_from_body(body: PatientBody, features: Sequence[Feature]) -> PatientCase:
    """The record as the expert reads it.

    Args:
        body: the record.
        features: columns of the expert.

    Raises:
        DataError: if a feature, a category or the times of the visits cannot be understood.
    """
    values = np.full((len(body.visits), len(features)), np.nan)
    for reading in _readings(body.visits, features):
        values[reading.visit, reading.column] = reading.value
    return PatientCase(
        patient_id=body.patient_id,
        sex=body.sex,
        age=_age(body, features),
        visit_labels=tuple(str(index + 1) for index in range(len(body.visits))),
        visit_days=_days(body.visits),
        values=values,
    )


def adjustments(body: PatientBody, features: Sequence[Feature]) -> list[Adjustment]:
    """What `case_from_body` did not take as it was sent, visit by visit.

    Raises:
        DataError: as `case_from_body`.
    """
    adjusted: list[Adjustment] = []
    if body.age is not None and (reason := read_age(features, body.age).reason) is not None:
        adjusted.append(
            Adjustment(feature=_AGE, visit=1, value=body.age, became=None, reason=reason)
        )
    return adjusted + [
        Adjustment(
            feature=features[each.column].name,
            visit=each.visit + 1,
            value=each.sent,
            became=None if math.isnan(each.value) else each.value,
            reason=each.reason,
        )
        for each in _readings(body.visits, features)
        if each.reason is not None
    ]


def _age(body: PatientBody, features: Sequence[Feature]) -> float | None:
    if body.age is None:
        return None
    age = read_age(features, body.age).value
    return None if math.isnan(age) else age


def _readings(visits: Sequence[VisitBody], features: Sequence[Feature]) -> list[_Reading]:
    """Every value that was sent, and what is read of it."""
    columns = {name.casefold(): i for i, f in enumerate(features) for name in (f.name, *f.aliases)}
    readings: list[_Reading] = []
    for row, visit in enumerate(visits):
        written: dict[int, str] = {}
        for name, value in visit.values.items():
            column = columns.get(" ".join(name.split()).casefold())
            if column is None:
                raise DataError(_unknown_feature(name, features))
            if column in written:
                raise DataError(
                    f"visit {row + 1} gives {features[column].name!r} twice, as "
                    f"{written[column]!r} and as {name!r}; give it once"
                )
            written[column] = name
            if value is not None:
                readings.append(_reading(row, column, features[column], value))
    return readings


def _reading(row: int, column: int, feature: Feature, value: float | str) -> _Reading:
    if feature.categories:
        number = _category(row, feature, value)
        return _Reading(visit=row, column=column, sent=number, value=number, reason=None)
    if isinstance(value, str):
        raise DataError(
            f"{feature.name!r} must be a number, got {_shown(value)} at visit {row + 1}"
        )
    read = read_value(feature, value)
    return _Reading(visit=row, column=column, sent=value, value=read.value, reason=read.reason)


def _category(row: int, feature: Feature, value: float | str) -> float:
    codes = {word.casefold(): code for code, word in feature.categories}
    if isinstance(value, str) and value.strip().casefold() in codes:
        return codes[value.strip().casefold()]
    if not isinstance(value, str) and value in codes.values():
        return value
    allowed = ", ".join(f"{code:g} or {word!r}" for code, word in feature.categories)
    raise DataError(f"{feature.name!r} must be {allowed}; got {_shown(value)} at visit {row + 1}")


def _days(visits: Sequence[VisitBody]) -> tuple[float, ...]:
    dates = [visit.date for visit in visits if visit.date is not None]
    days = [visit.day for visit in visits if visit.day is not None]
    if len(dates) == len(visits) and not days:
        found = [float((each - dates[0]).days) for each in dates]
    elif len(days) == len(visits) and not dates:
        found = days
    else:
        raise DataError("every visit must have a `day`, or every visit a `date`; give one of them")
    for number, (earlier, later) in enumerate(pairwise(found), start=2):
        if later <= earlier:
            raise DataError(
                f"the day or date of visit {number} must be later than that of the visit before "
                "it: visits must be in time order, one for each time. Sort them, and put what was "
                "measured at one time into one visit"
            )
    if found[-1] - found[0] > MAX_DAYS:
        raise DataError(
            f"the last date must lie at most {MAX_DAYS} days after the first, but lies "
            f"{found[-1] - found[0]:.0f} after it; check the dates"
        )
    return tuple(each - found[0] for each in found)


def _unknown_feature(name: str, features: Sequence[Feature]) -> str:
    known = [feature.name for feature in features]
    folded = {each.casefold(): each for each in known}
    written = name[:_SHOWN].casefold()
    close = [folded[each] for each in get_close_matches(written, folded, n=3, cutoff=0.3)]
    if written.strip() in ("age", "sex", "gender", AGE_AND_SEX.casefold()):
        return f"{name!r} is not a value of a visit; give `age` and `sex` beside `visits`"
    nearest = ", ".join(repr(each) for each in close or known[:5])
    return f"unknown feature {_shown(name)}; nearest names: {nearest} ({len(known)} in all)"


def _shown(value: float | str) -> str:
    if isinstance(value, str) and len(value) > _SHOWN:
        return f"{value[:_SHOWN]!r}... ({len(value)} characters)"
    return f"{value:g}" if isinstance(value, float) else repr(value)
