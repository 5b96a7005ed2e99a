"""Measures of an experiment's arms on resampled patients and seeds.

Every measure is a function of times each patient counts, so that one code gives the value itself
(every patient once) and its resamples.
"""
# pandas annotates results of indexing too widely for the checker.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Float

from ehr.agreement import best_constant_set, jaccard, jaccard_above_others
from ehr.calibration import at_rate
from ehr.config import RewardSection
from ehr.metrics import Bootstrap, Metric, draw_patients, metric_of_resamples
from ehr.rewards import MAX_FEATURE_NAMES, MIN_PROBABILITY, classification_reward
from training.learn_units import Truth

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
what Stage 2 rewards is the single answer. `ECE at the cohort's rate` is of arms that learned from
as many positives as negatives, with odds multiplied by those of a training patient: nothing is
fitted. `R_att, own minus others'` is the names' overlap with the patient's C_exp minus that with
other patients': what the answer says about this one, where R_att and its excess also grow with
what holds for most.
"""

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

Values = Float[np.ndarray, " rows"]
"""A measure's values: the first is that of the patients as they are, then one a resample."""


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
    minimal_detectable: float | None
    """Smallest true difference that a two-sided 5 % test finds with 80 % power, 2.80 SE.

    The standard error is that over patients and seeds. Two or three seeds show only part of their
    variance (`training.learn_rows`), so with them this is too small."""
    by_seed: tuple[float | None, ...]
    """The difference at each shared seed, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Resamples:
    """Patients and seeds drawn with replacement, the same draws for all arms."""

    patients: Float[np.ndarray, "rows patients"]
    """Times each patient counts; the first row is all ones."""
    seed: int

    @classmethod
    def draw(cls, num_patients: int, num_resamples: int, seed: int) -> "Resamples":
        """Resamples of so many patients."""
        drawn = draw_patients(num_patients, num_resamples, seed)
        return cls(patients=np.concatenate([np.ones((1, num_patients)), *drawn]), seed=seed)

    def over_seeds(self, of_seed: Sequence[Values]) -> Values:
        """Mean over seeds, which are drawn with replacement in every resample of patients.

        Args:
            of_seed: a measure, or a difference of two, of each seed; in the order of the seeds.
        """
        num_rows, num = len(self.patients), len(of_seed)
        if num == 1:
            return of_seed[0]
        # by number of seeds only: arms with the same seeds meet the same draws
        rng = np.random.default_rng((self.seed, num))
        counts = rng.multinomial(num, [1 / num] * num, size=num_rows)
        counts[0] = 1
        return (counts * np.stack(of_seed, axis=1)).sum(axis=1) / num


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantSet:
    """The one set of names for everybody that overlaps most with the patients' own sets."""

    names: frozenset[str]
    overlap: float
    """Mean Jaccard."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answered:
    """One unit's answers about the patients that all units answered, in the same order.

    Arrays are float [patients]; NaN where a patient has no value.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    resamples: Resamples
    """Of these patients."""
    per_patient: Mapping[str, np.ndarray]
    """Measures that are means over patients; a measure that the arm lacks is not there."""
    samples: Float[np.ndarray, "patients samples"] | None = None
    """Probability of each answer; None where patients were asked once."""
    claims: tuple[np.ndarray, np.ndarray] | None = None
    """Wrong and checked claims of each answer; None where the answers have no prose."""
    rate: float | None = None
    """Share of positives in the cohort; None where the model learned from no balanced draws of it,
    or the rate is not known."""
    _cache: dict[str, Values | None] = field(default_factory=dict, init=False)

    def measure(self, name: str) -> Values | None:
        """The measure's value and its resamples; None where the arm lacks it."""
        if name not in self._cache:
            self._cache[name] = self._measured(name, self.resamples.patients)
        return self._cache[name]

    def _measured(self, name: str, weights: np.ndarray) -> Values | None:
        if name in tuple(Metric):
            return metric_of_resamples(self.labels, self.probabilities, name, weights)
        if name == "ece_at_rate":
            return None if self.rate is None else self._ece_at_rate(self.rate, weights)
        if name == "auroc_one":
            return None if self.samples is None else self._auroc_of_one(self.samples, weights)
        if name == "grounding_error_rate":
            return None if self.claims is None else _share(weights, *self.claims)
        values = self.per_patient.get(name)
        if values is None:
            return None
        exists = np.isfinite(values)
        return _share(weights, np.where(exists, values, 0.0), exists.astype(float))

    def _ece_at_rate(self, rate: float, weights: np.ndarray) -> Values:
        risks = at_rate(self.probabilities, rate)
        return metric_of_resamples(self.labels, risks, Metric.ECE, weights)

    def _auroc_of_one(self, samples: np.ndarray, weights: np.ndarray) -> Values:
        each = [
            metric_of_resamples(self.labels, sample, Metric.AUROC, weights) for sample in samples.T
        ]
        return np.mean(each, axis=0)


def answered(
    predictions: pd.DataFrame,
    patients: Sequence[str],
    section: RewardSection,
    resamples: Resamples,
    constant: ConstantSet | None = None,
    truth: Truth | None = None,
    faithfulness: pd.DataFrame | None = None,
    rate: float | None = None,
) -> Answered:
    """A unit's answers as measured values.

    R weighs R_cls and R_att by `section.accuracy_weight` for every arm, whatever the arm was
    trained on; R_att is the plain Jaccard of Eq. 6. An unreadable answer has the floor of both.

    Args:
        predictions: the unit's, with the columns of `training.evaluation`.
        patients: ids in the order of the arrays, each once.
        section: weight of the two rewards, threshold and margin bonus.
        resamples: of the patients.
        constant: the best constant set for these patients' C_exp.
        truth: what is known of the patients.
        faithfulness: answers with a feature deleted.
        rate: share of positives in the cohort, where the unit's model learned from balanced draws.
    """
    table = predictions.set_index("patient_id").loc[list(patients)]
    failed = table["parse_failed"].to_numpy(bool)
    labels = table["label"].to_numpy(int)
    probabilities = table["probability"].to_numpy(float)
    cls = np.array(
        [
            math.log(MIN_PROBABILITY) if is_failed else classification_reward(p, int(y), section)
            for p, y, is_failed in zip(probabilities, labels, failed, strict=True)
        ]
    )
    measured = {"reward_cls": cls, "parse_failure_rate": failed.astype(float)}
    samples = _samples(table)
    if samples is not None:
        measured["reward_cls_one"] = _reward_of_one(table, samples, section)
    att = table["reward_att"].to_numpy(float)  # None becomes NaN
    if np.isfinite(att).all():
        weight = section.accuracy_weight
        named, salient = [frozenset(names) for names in table["features"]], salient_sets(table)
        measured |= {
            "reward_att": att,
            "reward_att_own": jaccard_above_others(named, salient),
            "reward": weight * cls + (1 - weight) * att,
        }
        if constant is not None:
            measured["reward_att_excess"] = att - overlaps([constant.names] * len(att), salient)
        if truth is not None:
            measured["truth_overlap"] = overlaps(
                named, [truth.salient[patient] for patient in patients]
            )
    if faithfulness is not None:
        known = _moved(faithfulness)
        moved = np.array([known.get(patient, np.nan) for patient in patients])
        if np.isfinite(moved).any():
            measured["faithfulness"] = moved
    claims = table["num_claims"].to_numpy(float)
    has_prose = np.isfinite(claims).all()
    wrong = np.array([len(w) if w is not None else 0 for w in table["wrong_claims"]], dtype=float)
    return Answered(
        labels=labels,
        probabilities=probabilities,
        resamples=resamples,
        per_patient=measured,
        samples=samples,
        claims=(wrong, claims) if has_prose else None,
        rate=rate,
    )


def _samples(table: pd.DataFrame) -> np.ndarray | None:
    """Probability of each answer [patients, samples]; None unless all were asked as often, > 1."""
    if "sample_probabilities" not in table:
        return None
    probabilities = list(table["sample_probabilities"])
    numbers = {0 if each is None else len(each) for each in probabilities}
    return np.stack(probabilities).astype(float) if len(numbers) == 1 and max(numbers) > 1 else None


def _reward_of_one(
    table: pd.DataFrame, samples: np.ndarray, section: RewardSection
) -> Float[np.ndarray, " patients"]:
    """Mean over a patient's answers of R_cls."""
    rewards = [
        [
            math.log(MIN_PROBABILITY)
            if is_failed
            else classification_reward(float(probability), int(label), section)
            for probability, is_failed in zip(probabilities, failed, strict=True)
        ]
        for label, probabilities, failed in zip(
            table["label"], samples, table["sample_failed"], strict=True
        )
    ]
    return np.array(rewards).mean(axis=1)


def salient_sets(table: pd.DataFrame) -> list[frozenset[str]]:
    """C_exp of each row."""
    return [frozenset(names) for names in table["salient"]]


def constant_set(sets: Sequence[Collection[str]], most: int) -> ConstantSet:
    """The best constant set of at most `most` names, or of `MAX_FEATURE_NAMES` if that is fewer.

    An answer with more names is a format failure. As in `ehr.agreement.excess_jaccard`.
    """
    found = [best_constant_set(sets, num) for num in range(1, min(most, MAX_FEATURE_NAMES) + 1)]
    names, overlap = max(found, key=lambda each: each[1])
    return ConstantSet(names=names, overlap=overlap)


def overlaps(
    first: Sequence[Collection[str]], second: Sequence[Collection[str]]
) -> Float[np.ndarray, " patients"]:
    """Jaccard of the two sets of each patient."""
    return np.array([jaccard(a, b) for a, b in zip(first, second, strict=True)])


def estimate(values: Values) -> Estimate:
    """The value with the percentile interval of its resamples, widened to hold the value.

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
    resamples = next(iter(first.values())).resamples
    values = resamples.over_seeds([a - b for a, b in pairs])
    found = estimate(values)
    return Difference(
        difference=found.value,
        low=found.low,
        high=found.high,
        minimal_detectable=_bootstrap(values).minimal_detectable(),
        by_seed=tuple(estimate(a - b).value for a, b in pairs),
    )


def _bootstrap(values: Values) -> Bootstrap:
    exists = np.isfinite(values[1:])
    return Bootstrap(values=values[1:][exists], num_skipped=int((~exists).sum()))


def _share(weights: np.ndarray, part: np.ndarray, whole: np.ndarray) -> Values:
    """Weighted sum of the part by that of the whole; NaN where there is no whole."""
    total = weights @ whole
    return np.divide(weights @ part, total, out=np.full(len(total), np.nan), where=total > 0)


def _moved(faithfulness: pd.DataFrame) -> dict[str, float]:
    """How much more each judged answer moves without a named feature than without another one."""
    judged = faithfulness[faithfulness["unjudged"].isna()]
    original = judged["original"].to_numpy(float)
    named = np.abs(judged["without_named"].to_numpy(float) - original)
    unnamed = np.abs(judged["without_unnamed"].to_numpy(float) - original)
    # written probabilities have two digits: .2 - .1 is not to be more than .3 - .2
    moved = (named - unnamed).round(9)
    return dict(zip(judged["patient_id"].astype(str), moved.tolist(), strict=True))
