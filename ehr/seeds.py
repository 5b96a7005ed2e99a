"""The mean over a few seeds: standard error over patients and seeds, t interval, p-value.

All seeds are asked about the same patients. What other patients would change at all seeds alike is
the covariance between seeds in resamples of the patients. What each seed has for itself, by its own
training or by how it meets the patients, is in the spread between the seeds:

    variance of the mean = mean covariance of two seeds + (variance between k seeds) / k

and never less than the resamples of the mean alone say. The first part is known from many patients,
the second has k - 1 degrees of freedom; their sum has Satterthwaite's (F. E. Satterthwaite, An
approximate distribution of estimates of variance components, Biometrics Bulletin 2(6), 1946). So a
95 % interval covers 93 % or more, however much seeds matter (a test simulates it). Percentiles of
resampled seeds, in their place, are too narrow: of three seeds resampling sees two thirds of the
variance, and takes what it sees for known.

One or two seeds say nothing of use about seeds: with them everything is over patients only, for the
policies that were trained, and `seeds_note` says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import expit, logit, stdtr, stdtrit

from ehr.metrics import TEST_LEVEL, TEST_POWER

FEWEST_SEEDS = 3
"""Fewest seeds with an interval over seeds: of two the deviation has one degree of freedom, and t
is 12.7."""

_NOTES = {
    1: "one seed: over patients only",
    2: "two seeds: too few for an interval over seeds, it is over patients only",
    3: "three seeds: too few for an interval over seeds that is not wide",
}
_KNOWN = 1e12
"""Degrees of freedom that stand for a known variance: t is normal."""
_ROUNDING = 1e-24
"""Variances below this are those of rounding."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeedMean:
    """A mean over seeds, or many of them (all arrays have the same shape)."""

    mean: Float[np.ndarray, "..."]
    standard_error: Float[np.ndarray, "..."]
    """Over patients and seeds; over patients with fewer than `FEWEST_SEEDS`."""
    degrees: Float[np.ndarray, "..."]
    """Degrees of freedom of the standard error; infinite where it is over patients only."""

    def interval(
        self, *, is_share: bool = False
    ) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
        """95 % t interval.

        Args:
            is_share: the value lies in [0, 1]: the interval is made on its log-odds, so that it
                stays inside. A value of exactly 0 or 1 has no log-odds; its interval is cut off.
        """
        half = _quantile(self.degrees, 1 - TEST_LEVEL / 2) * self.standard_error
        low, high = self.mean - half, self.mean + half
        if not is_share:
            return low, high
        is_inside = (self.mean > 0) & (self.mean < 1)
        value = np.where(is_inside, self.mean, 0.5)
        odds, spread = logit(value), half / (value * (1 - value))
        return (
            np.where(is_inside, expit(odds - spread), np.clip(low, 0, 1)),
            np.where(is_inside, expit(odds + spread), np.clip(high, 0, 1)),
        )

    def p_value(self) -> Float[np.ndarray, "..."]:
        """Two-sided, against a mean of 0; NaN for another mean that does not vary."""
        is_known = self.standard_error > 0
        t = np.abs(self.mean) / np.where(is_known, self.standard_error, 1)
        p = 2 * stdtr(np.minimum(self.degrees, _KNOWN), -t)
        return np.where(is_known, p, np.where(self.mean == 0, 1.0, np.nan))

    def minimal_detectable(self) -> Float[np.ndarray, "..."]:
        """Smallest true value that a two-sided 5 % test against 0 finds with 80 % power.

        (t(1 - level / 2) + t(power)) * SE, which is 2.80 SE over patients only: H. S. Bloom,
        Minimum detectable effects, Evaluation Review 19(5), 1995. NaN where nothing varies.
        """
        multiple = _quantile(self.degrees, 1 - TEST_LEVEL / 2) + _quantile(self.degrees, TEST_POWER)
        return np.where(self.standard_error > 0, multiple * self.standard_error, np.nan)


def mean_over_seeds(
    by_seed: Float[np.ndarray, "... seeds"], covariance: Float[np.ndarray, "... seeds seeds"]
) -> SeedMean:
    """The mean with its standard error and degrees of freedom.

    Args:
        by_seed: the value at each seed, on the same patients.
        covariance: of these values over resamples of the patients.
    """
    num = by_seed.shape[-1]
    mean = by_seed.mean(axis=-1)
    over_patients = covariance.mean(axis=(-2, -1))
    if num < FEWEST_SEEDS:
        return SeedMean(
            mean=mean,
            standard_error=np.sqrt(over_patients),
            degrees=np.full(mean.shape, np.inf),
        )
    own = np.trace(covariance, axis1=-2, axis2=-1)
    shared = np.maximum((num**2 * over_patients - own) / (num * (num - 1)), 0)
    between = _cleaned(by_seed.var(axis=-1, ddof=1) / num)
    variance = _cleaned(np.maximum(over_patients, shared + between))
    degrees = np.divide(
        (num - 1) * variance**2, between**2, out=np.full(mean.shape, np.inf), where=between > 0
    )
    return SeedMean(mean=mean, standard_error=np.sqrt(variance), degrees=degrees)


def of_resamples(
    by_seed: Float[np.ndarray, " seeds"], resampled: Float[np.ndarray, "resamples seeds"]
) -> SeedMean:
    """The mean of values that were measured on resampled patients too.

    Args:
        by_seed: the value at each seed.
        resampled: the same on each resample of the patients; rows with a NaN are passed over, and
            with fewer than two others there is no standard error (NaN).
    """
    kept = resampled[np.isfinite(resampled).all(axis=1)]
    num = len(by_seed)
    covariance = np.full((num, num), np.nan)
    if len(kept) > 1:
        covariance = np.cov(kept, rowvar=False).reshape(num, num)
    return mean_over_seeds(by_seed, covariance)


def seeds_note(num: int) -> str | None:
    """What must stand beside an interval of so few seeds; None where they are enough."""
    return _NOTES.get(num)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values adjusted for all that stand together (S. Holm, 1979); None stays and counts not.

    The chance that any true zero among them falls below .05 is then at most .05, whatever hangs
    together with what.
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    reached = 0.0
    for rank, (p, place) in enumerate(known):
        reached = max(reached, min(1.0, (len(known) - rank) * p))
        adjusted[place] = reached
    return adjusted


def _cleaned(variance: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.where(variance < _ROUNDING, 0.0, variance)


def _quantile(degrees: Float[np.ndarray, "..."], probability: float) -> Float[np.ndarray, "..."]:
    return stdtrit(np.minimum(degrees, _KNOWN), probability)
