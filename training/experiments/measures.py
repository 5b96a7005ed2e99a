"""Measures of an experiment's arms and of their differences, with intervals.

Intervals are over patients and seeds; `ehr.seeds` says how they are made.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ehr.metrics import Bootstrap
from ehr.seeds import FEWEST_SEEDS, SeedMean, of_resamples
from training.experiments.answers import Answered, Values

MEASURES: dict[str, str] = {
    "auroc": "AUROC",
    "auroc_one": "AUROC, one answer",
    "auprc": "AUPRC",
    "brier": "Brier",
    "ece": "ECE",
    "ece_at_rate": "ECE at the cohort's rate",
    "reward": "R",
    "reward_cls": "R_cls",
    "reward_cls_one": "R_cls, one answer",
    "reward_att": "R_att",
    "reward_att_excess": "R_att excess",
    "reward_att_own": "R_att, own minus others'",
    "truth_overlap": "Overlap with truth",
    "grounding_error_rate": "Wrong claims",
    "faithfulness": "Faithfulness",
    "parse_failure_rate": "Unreadable",
}
"""Measures of an arm and their headings, in the order of the tables.

Where patients were asked several times, `one answer` is the mean over the samples of what each
alone would have measured: the mean of many answers ranks well even if each is a toss of a coin, and
what Stage 2 rewards is the single answer. R, R_att and what else is said of names are of one answer
too, and R is the mean of what Stage 2 would have given each. `ECE at the cohort's rate` is of arms
that learned from as many positives as negatives, with odds multiplied by those of a training
patient: nothing is fitted. `R_att, own minus others'` is the names' overlap with the patient's
C_exp minus that with other patients': what the answer says about this one, where R_att and its
excess also grow with what holds for most. `Unreadable` is a share of answers.
"""

OF_MEAN_PROBABILITY = ("auroc", "auprc", "brier", "ece", "ece_at_rate", "reward_cls")
"""Measures of a patient's mean probability, if there are several answers."""

IN_UNIT_INTERVAL = (
    "auroc",
    "auroc_one",
    "auprc",
    "brier",
    "ece",
    "ece_at_rate",
    "reward_att",
    "truth_overlap",
    "grounding_error_rate",
    "parse_failure_rate",
)
"""Measures that lie in [0, 1], and so do their intervals."""

_WITHOUT_LIMIT = ("reward", "reward_cls", "reward_cls_one")
"""All others, and their differences, lie in [-1, 1]."""

DIFFERENCE_MEASURES = (
    "auroc",
    "auroc_one",
    "auprc",
    "reward",
    "reward_cls_one",
    "reward_att",
    "reward_att_own",
    "truth_overlap",
)
"""Measures of which arms are compared. R_att stands for its excess too: the constant set is that
of the patients, the same for all arms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A measured value with its 95 % interval; None where it does not exist."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """First arm minus second arm on the same patients, paired by seed."""

    difference: float | None
    low: float | None
    high: float | None
    standard_error: float | None
    """Over patients and seeds; over patients only with fewer than `ehr.seeds.FEWEST_SEEDS`."""
    degrees_of_freedom: float | None
    """Of the standard error; None = that of many patients, t is normal."""
    minimal_detectable: float | None
    """Smallest true difference that a two-sided 5 % test finds with 80 % power, by t."""
    p: float | None
    """Two-sided, of this difference alone."""
    by_seed: tuple[float | None, ...]
    """The difference at each shared seed, in their order."""


def headings(num_samples: int) -> dict[str, str]:
    """Headings of `MEASURES`; those of the mean of several answers say so."""
    if num_samples == 1:
        return MEASURES
    of_mean = {name: f"{MEASURES[name]}, mean of {num_samples}" for name in OF_MEAN_PROBABILITY}
    return {name: of_mean.get(name, heading) for name, heading in MEASURES.items()}


def estimate(values: Values) -> Estimate:
    """One unit's value with the percentile interval of its resamples, widened to hold the value.

    Resampling adds noise to the calibration error, which only grows by it: without the widening
    the interval of a small one would lie above it.
    """
    value = float(values[0])
    low, high = _bootstrap(values).interval()
    if not math.isfinite(value):
        return Estimate(value=None, low=None, high=None)
    if low is None or high is None:
        return Estimate(value=value, low=None, high=None)
    return Estimate(value=value, low=min(low, value), high=max(high, value))


def estimate_of_arm(name: str, units: Sequence[Answered]) -> Estimate | None:
    """An arm's mean over its seeds; None where a unit lacks the measure."""
    values = [each for unit in units if (each := unit.measure(name)) is not None]
    if len(values) < len(units):
        return None
    return _estimate_of_mean(values, name, is_share=name in IN_UNIT_INTERVAL)


def difference_of(
    name: str,
    first: Mapping[int, Answered],
    second: Mapping[int, Answered],
) -> Difference | None:
    """First arm minus second arm; None where an arm lacks the measure, or no seed is shared.

    Args:
        name: one of `MEASURES`.
        first: units of the first arm by seed.
        second: units of the second arm by the same seeds; others are passed over.
    """
    shared = sorted(first.keys() & second.keys())
    pairs = [
        (a, b)
        for seed in shared
        if (a := first[seed].measure(name)) is not None
        and (b := second[seed].measure(name)) is not None
    ]
    if not pairs or len(pairs) < len(shared):
        return None
    values = [a - b for a, b in pairs]
    mean, found = _mean(values), _estimate_of_mean(values, name)
    return Difference(
        difference=found.value,
        low=found.low,
        high=found.high,
        standard_error=_number(mean.standard_error),
        degrees_of_freedom=_number(mean.degrees),
        minimal_detectable=_number(mean.minimal_detectable()),
        p=_number(mean.p_value()),
        by_seed=tuple(_number(each[0]) for each in values),
    )


def _mean(of_seed: Sequence[Values]) -> SeedMean:
    stacked = np.stack(of_seed, axis=1)
    return of_resamples(stacked[0], stacked[1:])


def _estimate_of_mean(of_seed: Sequence[Values], name: str, *, is_share: bool = False) -> Estimate:
    """Mean over seeds with its interval over patients and seeds.

    With too few seeds for that it is the percentile interval over patients only.
    """
    if len(of_seed) < FEWEST_SEEDS:
        return estimate(np.mean(of_seed, axis=0))
    mean = _mean(of_seed)
    low, high = mean.interval(is_share=is_share)
    limit = math.inf if name in _WITHOUT_LIMIT else 1.0
    return Estimate(
        value=_number(mean.mean),
        low=_number(np.maximum(low, -limit)),
        high=_number(np.minimum(high, limit)),
    )


def _bootstrap(values: Values) -> Bootstrap:
    exists = np.isfinite(values[1:])
    return Bootstrap(values=values[1:][exists], num_skipped=int((~exists).sum()))


def _number(value: np.ndarray) -> float | None:
    return float(value) if math.isfinite(value) else None
