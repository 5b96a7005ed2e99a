"""Plausible ranges of the catalogue: what lies outside is missing, and counted by feature.

Readers of charted data call this before they pick the value of a bin, so that a slip of the pen
never hides the value before it. `read_value` does the same to one value that comes by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from ehr.catalogue import PHYSIONET2012, TJH_LABS, Feature

SHIFTS = (10.0, 100.0)
"""Factors by which a value is too large when its decimal point was left out or misplaced."""

AGES = (0, 120)
"""Years that readers take for an age."""

PHYSIONET2012_AGES = (15, 120)
"""The youngest stay of the challenge's sets is 15; 90 means 90 or older."""
_NAMES_OF_PHYSIONET2012 = frozenset(feature.name for feature in PHYSIONET2012)

_RESTORED = "pH"
_FRACTION = "Fraction inspired oxygen"
"""Records write it as a fraction of 1 or in percent; the catalogue's unit is percent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadValue:
    """What is read of one written value."""

    value: float
    """In the feature's unit; NaN = missing."""
    reason: str | None
    """Why it is not the written number; None = it is."""


def plausible_mask(
    values: Float[np.ndarray, " values"],
    columns: Int[np.ndarray, " values"],
    features: Sequence[Feature],
) -> tuple[Bool[np.ndarray, " values"], dict[str, int]]:
    """Which values lie in the plausible range of their feature, and how many of each do not.

    Args:
        values: in the feature's unit.
        columns: index into `features` of each value.
        features: of the cohort; every value of one without a range is plausible.

    Returns:
        The mask, and "implausible NAME" with the count of each feature that has such values. NaN is
        neither: outside the mask and not counted.
    """
    lows = np.array([-np.inf if f.plausible is None else f.plausible[0] for f in features])
    highs = np.array([np.inf if f.plausible is None else f.plausible[1] for f in features])
    inside = (values >= lows[columns]) & (values <= highs[columns])
    outside = np.bincount(columns[~inside & ~np.isnan(values)], minlength=len(features))
    counts = {
        f"implausible {feature.name}": int(count)
        for feature, count in zip(features, outside, strict=True)
        if count
    }
    return inside, counts


def restore_decimal_point(
    values: Float[np.ndarray, " values"], plausible: tuple[float, float]
) -> tuple[Float[np.ndarray, " values"], int]:
    """Values with a lost decimal point put right (a pH of 735 is 7.35), and how many those were.

    Only a value outside the range that lies inside after division by one of `SHIFTS` changes, so
    the range must be too narrow for two to fit: its upper end below ten times its lower one.

    Args:
        values: of one feature; NaN stays.
        plausible: range of that feature.
    """
    low, high = plausible
    assert 0 < high < 10 * low
    restored, count = values, 0
    for shift in SHIFTS:
        shifted = (values >= low * shift) & (values <= high * shift)
        restored = np.where(shifted, values / shift, restored)
        count += int(shifted.sum())
    return restored, count


def read_value(feature: Feature, written: float) -> ReadValue:
    """A number as the reader of the feature's source reads it: as it is, converted, or missing.

    Inspired oxygen up to 1 is a fraction; a pH that lost its decimal point gets it back; what lies
    outside the plausible range is missing; and so is a negative lab of the Tongji workbook, which
    writes "not measured" that way and has no ranges. A feature of the generated cohort is read as
    the same feature of a charted one.

    Args:
        feature: numeric; its unit is that of `written`.
        written: finite.
    """
    if feature.plausible is None:
        if feature in TJH_LABS and written < 0:
            return ReadValue(value=np.nan, reason="negative: such records mean not measured")
        return ReadValue(value=written, reason=None)
    low, high = feature.plausible
    if low <= written <= high:
        return ReadValue(value=written, reason=None)
    if feature.name == _FRACTION and low <= 100 * written <= high:
        return ReadValue(value=100 * written, reason="a fraction of 1: read in percent")
    if feature.name == _RESTORED:
        restored, count = restore_decimal_point(np.array([written]), feature.plausible)
        if count:
            return ReadValue(value=float(restored[0]), reason="its decimal point was left out")
    unit = f" {feature.unit}" if feature.unit else ""
    reason = f"outside the plausible range, {low:g} to {high:g}{unit}: taken as not measured"
    return ReadValue(value=np.nan, reason=reason)


def read_age(features: Sequence[Feature], written: float) -> ReadValue:
    """An age as the reader of the features' source reads it: as it is, or missing.

    Args:
        features: of the cohort.
        written: years, finite.
    """
    is_physionet2012 = _NAMES_OF_PHYSIONET2012.issuperset(feature.name for feature in features)
    low, high = PHYSIONET2012_AGES if is_physionet2012 else AGES
    if low <= written <= high:
        return ReadValue(value=written, reason=None)
    reason = f"outside the plausible ages, {low} to {high} years: taken as unknown"
    return ReadValue(value=np.nan, reason=reason)
