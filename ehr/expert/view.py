"""The expert view of a patient: scaled, carried forward, complete.

The prompt view keeps what was recorded; both have the same visits in the same order.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ehr.cohorts.cohort import Cohort, PatientCase, Sex
from ehr.cohorts.imputation import carry_forward
from ehr.errors import DataError

QUANTILES = (0.05, 0.95)
"""Training values outside do not enter mean, deviation and median: charts hold slips of the pen."""

CLIP = 10.0
"""Largest scaled value: one slip (a white cell count of 1726) must not decide a prediction."""

_NO_SCALE = 1e12
"""Deviation of a column that is empty or constant in training: no model can have learnt from it, so
that all its values become 0. A deviation of 1 would show other patients' values in raw units."""

# An unknown sex lies between the two known ones.
_SEX_CODES = {Sex.FEMALE: 0.0, Sex.MALE: 1.0, Sex.UNKNOWN: 0.5}

_NOBODY = np.array([0.0, _SEX_CODES[Sex.UNKNOWN]], dtype=np.float32)
"""Demographics of a patient whose age (the mean then) and sex are not known."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExpertInput:
    """One patient as the expert model sees it, without any outcome."""

    patient_id: str
    values: np.ndarray
    """float32 [visits, features]: z-scores, last value carried forward, then training median."""
    days: np.ndarray
    """float32 [visits]: days since the first visit."""
    demographics: np.ndarray
    """float32 [2]: scaled age, and sex (0 female, 1 male, .5 unknown)."""
    observed: np.ndarray
    """bool [features]: recorded at least once for this patient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertScaler:
    """Statistics of the training rows, and the expert view they define."""

    features: tuple[str, ...]
    """Names of the columns the statistics belong to."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    median: tuple[float, ...]
    """Raw units; fills what a patient never had recorded."""
    age_mean: float
    age_std: float

    @classmethod
    def fit(cls, cohort: Cohort, ids: Collection[str]) -> "ExpertScaler":
        """Statistics of the visits of these patients, which must be training patients.

        Raises:
            DataError: if there is no patient to fit on.
        """
        if not ids:
            raise DataError("the expert's scaler needs at least one training patient, got none")
        rows = np.concatenate([cohort.cases[patient].values for patient in ids])
        statistics = [_trimmed(rows[:, column]) for column in range(rows.shape[1])]
        mean, std, median = zip(*statistics, strict=True)
        known = [cohort.cases[patient].age for patient in ids]
        ages = np.array([age for age in known if age is not None], dtype=np.float64)
        return cls(
            features=tuple(feature.name for feature in cohort.features),
            mean=mean,
            std=std,
            median=median,
            age_mean=float(ages.mean()) if ages.size else 0.0,
            age_std=_NO_SCALE if not ages.size or _is_constant(ages) else float(ages.std()),
        )

    def transform(self, case: PatientCase) -> ExpertInput:
        """The expert view of a case whose columns are `features`.

        Raises:
            DataError: if the case has another number of features.
        """
        if case.values.ndim != 2 or case.values.shape[1] != len(self.features):
            raise DataError(
                f"patient {case.patient_id!r} must have {len(self.features)} features a visit, as "
                f"the expert was trained on, but the values have shape {case.values.shape}. Use "
                "the cohort the expert was trained on."
            )
        missing = np.isnan(case.values)
        carried = carry_forward(case.values)
        filled = np.where(np.isnan(carried), np.array(self.median), carried)
        scaled = np.clip((filled - np.array(self.mean)) / np.array(self.std), -CLIP, CLIP)
        age = self.age_mean if case.age is None else case.age
        scaled_age = float(np.clip((age - self.age_mean) / self.age_std, -CLIP, CLIP))
        return ExpertInput(
            patient_id=case.patient_id,
            values=scaled.astype(np.float32),
            days=np.array(case.visit_days, dtype=np.float32),
            demographics=np.array([scaled_age, _SEX_CODES[case.sex]], dtype=np.float32),
            observed=np.logical_not(missing.all(axis=0)),
        )

    @property
    def never_seen(self) -> np.ndarray:
        """float32 [features]: scaled value of a feature that was never recorded, its median."""
        scaled = (np.array(self.median) - np.array(self.mean)) / np.array(self.std)
        return np.clip(scaled, -CLIP, CLIP).astype(np.float32)

    def mask(self, entry: ExpertInput, tokens: Collection[int]) -> ExpertInput:
        """The patient as if some tokens had never been recorded; visits and their days stay.

        Args:
            entry: a patient.
            tokens: columns of `features`; the number after the last one is age and sex.
        """
        features = [token for token in tokens if token < len(self.features)]
        values = entry.values.copy()
        values[:, features] = self.never_seen[features]
        is_nobody = len(features) < len(tokens)
        return replace(
            entry, values=values, demographics=_NOBODY.copy() if is_nobody else entry.demographics
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> "ExpertScaler":
        """The scaler that `to_dict` described."""
        return cls(
            features=tuple(entry["features"]),
            mean=tuple(entry["mean"]),
            std=tuple(entry["std"]),
            median=tuple(entry["median"]),
            age_mean=entry["age_mean"],
            age_std=entry["age_std"],
        )


def last_visits(inputs: Sequence[ExpertInput]) -> np.ndarray:
    """float32 [patients, features + 2]: last visit (carried forward, scaled), age and sex.

    Raises:
        DataError: if there is no patient, or one has no visit or values that are not finite.
    """
    rows: list[np.ndarray] = []
    for entry in inputs:
        if not len(entry.values):
            raise DataError(
                f"Patient {entry.patient_id!r} must have at least one visit, got none. Drop "
                "patients without visits from the cohort."
            )
        row = np.concatenate([entry.values[-1], entry.demographics])
        if not np.isfinite(row).all():
            raise DataError(
                f"The last visit of patient {entry.patient_id!r} must be finite after imputation, "
                "got NaN or infinity. Build the input with the cohort's ExpertScaler."
            )
        rows.append(row)
    if not rows:
        raise DataError("A model of the last visit needs at least one patient, got none.")
    return np.stack(rows)


def _trimmed(column: np.ndarray) -> tuple[float, float, float]:
    known = column[~np.isnan(column)]
    if not known.size or _is_constant(known):
        constant = float(known[0]) if known.size else 0.0
        return constant, _NO_SCALE, constant
    low, high = np.quantile(known, QUANTILES)
    inside = known[(known >= low) & (known <= high)]
    if not inside.size or _is_constant(inside):  # of three values one is inside
        inside = known
    return float(inside.mean()), float(inside.std()), float(np.median(inside))


def _is_constant(values: np.ndarray) -> bool:
    return float(np.ptp(values)) <= 1e-8  # means of equal values differ by rounding noise
