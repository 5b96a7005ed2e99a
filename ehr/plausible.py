"""Plausible ranges of the catalogue: what lies outside is missing, and counted by feature.

Readers of charted data call this before they pick the value of a bin, so that a slip of the pen
never hides the value before it.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from ehr.catalogue import Feature

SHIFTS = (10.0, 100.0)
"""Factors by which a value is too large when its decimal point was left out or misplaced."""


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
