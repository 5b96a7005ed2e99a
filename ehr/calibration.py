"""Reliability curves: does the event happen as often as predicted? And risks at another rate.

The numbers beside a curve (Brier score, expected calibration error, slope and intercept) are in
`ehr.metrics`.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

from ehr.errors import DataError
from ehr.metrics import Labels, Probabilities, checked

MOST_BINS = 10

MIN_BIN_PATIENTS = 15
"""A share of fewer patients has an interval of half the axis, and says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """Patients with similar predictions, and how often the event happened to them."""

    predicted: float
    """Mean predicted probability."""
    observed: float
    """Share of events."""
    low: float
    """Lower end of the share's 95 % interval."""
    high: float
    """Upper end of it."""
    num_patients: int
    num_events: int


def reliability_curve(labels: Labels, probabilities: Probabilities) -> tuple[ReliabilityBin, ...]:
    """Bins of about equally many patients, by rising prediction.

    As many bins as give each at least `MIN_BIN_PATIENTS` patients, at most `MOST_BINS`. Patients
    with one and the same prediction stay in one bin, so a method that answers few different numbers
    has fewer bins, and the order of patients decides nothing.

    Raises:
        DataError: if there is no patient, or a label or probability is none.
    """
    y, p = checked(labels, probabilities)
    num_bins = min(MOST_BINS, max(1, len(y) // MIN_BIN_PATIENTS))
    _, level, sizes = np.unique(p, return_inverse=True, return_counts=True)
    # A level of predictions falls into the bin that holds its middle patient.
    middle = np.cumsum(sizes) - (sizes + 1) / 2
    bin_of_patient = (middle * num_bins / len(y)).astype(int)[level]
    bins: list[ReliabilityBin] = []
    for number in np.unique(bin_of_patient):
        inside = bin_of_patient == number
        num_patients, num_events = int(inside.sum()), int(y[inside].sum())
        low, high = wilson_interval(num_events, num_patients)
        bins.append(
            ReliabilityBin(
                predicted=float(p[inside].mean()),
                observed=num_events / num_patients,
                low=low,
                high=high,
                num_patients=num_patients,
                num_events=num_events,
            )
        )
    return tuple(bins)


def at_rate(
    probabilities: Float[np.ndarray, " patients"], rate: float, drawn_rate: float = 0.5
) -> Float[np.ndarray, " patients"]:
    """Risks learned where positives were drawn at one rate, for patients who have another.

    The odds are multiplied by the ratio of the two rates' odds; nothing is fitted and the order of
    the patients stays. Exact where the drawn patients differ in how many are positive only: M.
    Saerens, P. Latinne and C. Decaestecker, Adjusting the outputs of a classifier to new a priori
    probabilities, Neural Computation 14(1), 2002, Eq. 2.4.

    Args:
        probabilities: float [patients], of the positive class.
        rate: share of positives among the patients that they are for, inside (0, 1).
        drawn_rate: share of positives among those that they were learned from, inside (0, 1).

    Raises:
        DataError: if a rate is 0 or 1 or none.
    """
    for each in (rate, drawn_rate):
        if not 0 < each < 1:
            raise DataError(f"a rate of positives must be inside (0, 1), not {each}")
    positive = probabilities * rate / drawn_rate
    negative = (1 - probabilities) * (1 - rate) / (1 - drawn_rate)
    return positive / (positive + negative)


def wilson_interval(num_events: int, num_patients: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share, which stays inside [0, 1] and has a width even at 0 and at 1.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, Journal of
    the American Statistical Association 22(158), 1927.

    Args:
        num_events: patients with the event, at most `num_patients`.
        num_patients: at least 1.
        level: of confidence.
    """
    assert 0 <= num_events <= num_patients, "events are counted among the patients"
    assert num_patients > 0, "a share of nobody does not exist"
    z = float(ndtri((1 + level) / 2))
    share = num_events / num_patients
    centre = share + z**2 / (2 * num_patients)
    reach = z * float(np.sqrt(share * (1 - share) / num_patients + (z / (2 * num_patients)) ** 2))
    scale = 1 + z**2 / num_patients
    # At a share of 0 or 1 the end is the share itself, but for rounding.
    return max(0.0, min(share, (centre - reach) / scale)), min(
        1.0, max(share, (centre + reach) / scale)
    )
