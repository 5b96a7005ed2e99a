"""One unit's answers as measures on resampled patients.

Every measure is a function of times each patient counts, so that one code gives the value itself
(every patient once) and its resamples.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from ehr.calibration import at_rate
from ehr.config import RewardSection
from ehr.errors import DataError
from ehr.metrics import Metric, draw_patients, metric_of_resamples
from ehr.rewards import (
    MAX_FEATURE_NAMES,
    classification_reward,
    worst_classification_reward,
)
from ehr.salience.agreement import best_constant_set, jaccard, jaccard_above_others
from ehr.tables import rows
from training.experiments.records import Truth

Values = Float[np.ndarray, " rows"]
"""A measure's values: the first is that of the patients as they are, then one a resample."""


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
    named: Sequence[Sequence[frozenset[str]]] = ()
    """Names in each answer: a set per patient for every answer; empty where arms name nothing."""
    salient: Sequence[frozenset[str]] = ()
    """C_exp of the patients, where `named` is to be compared with it."""
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
        if name == "reward_att_own":
            named = self.named
            return jaccard_above_others(named, self.salient, weights) if named else None
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Known:
    """What a unit's answers are compared with, beside labels and C_exp."""

    constant: ConstantSet | None = None
    """The best constant set for these patients' C_exp."""
    truth: Truth | None = None
    """What is known of the patients."""
    faithfulness: pd.DataFrame | None = None
    """The unit's answers with a feature deleted."""
    rate: float | None = None
    """Share of positives in the cohort, where the unit's model learned from balanced draws."""


def answered(
    predictions: pd.DataFrame,
    patients: Sequence[str],
    section: RewardSection,
    resamples: Resamples,
    known: Known | None = None,
    *,
    has_every_name: bool = True,
) -> Answered:
    """A unit's answers as measured values.

    R is that of Stage 2: of each answer alone, then the mean over a patient's answers. It weighs
    R_cls and R_att by `section.accuracy_weight` for every arm, whatever the arm was trained on;
    R_att is the plain Jaccard of Eq. 6. An unreadable answer has the floor of both. `reward_cls` is
    that of the mean probability, in which an unreadable answer stands at the base rate.

    Args:
        predictions: the unit's, with the columns of `training.evaluation`.
        patients: ids in the order of the arrays, each once.
        section: weight of the two rewards, threshold and margin bonus.
        resamples: of the patients.
        known: what they are compared with; measures of what is not known are left out.
        has_every_name: what is said of names is the mean over all answers, where the table has
            their names; else it is of the first answer, and there is no R of several.
    """
    known = known or Known()
    table = predictions.set_index("patient_id").loc[list(patients)]
    labels = table["label"].to_numpy(int)
    probabilities = table["probability"].to_numpy(float)
    samples, failed = every_answer(table)
    cls = _classification_rewards(samples, failed, labels, section)
    none_read = np.asarray(failed.all(axis=1, keepdims=True))
    num_answers = samples.shape[1]
    of_mean = _classification_rewards(probabilities[:, None], none_read, labels, section)
    measured = {"reward_cls": of_mean[:, 0], "parse_failure_rate": failed.mean(axis=1)}
    if num_answers > 1:
        measured["reward_cls_one"] = cls.mean(axis=1)
    names: list[list[frozenset[str]]] = []
    salient: list[frozenset[str]] = []
    if np.isfinite(table["reward_att"].to_numpy(float)).all():  # None becomes NaN
        names, salient = named_sets(table, has_every_name=has_every_name), salient_sets(table)
        measured |= _measures_of_names(names, salient, patients, known)
        if len(names) == num_answers:
            weight = section.accuracy_weight
            measured["reward"] = weight * cls.mean(axis=1) + (1 - weight) * measured["reward_att"]
    if known.faithfulness is not None:
        moved = _moved(known.faithfulness, patients)
        if np.isfinite(moved).any():
            measured["faithfulness"] = moved
    return Answered(
        labels=labels,
        probabilities=probabilities,
        resamples=resamples,
        per_patient=measured,
        samples=samples if num_answers > 1 else None,
        named=names,
        salient=salient,
        claims=_claims(table),
        rate=known.rate,
    )


def _measures_of_names(
    names: Sequence[Sequence[frozenset[str]]],
    salient: Sequence[frozenset[str]],
    patients: Sequence[str],
    known: Known,
) -> dict[str, np.ndarray]:
    """R_att, and the overlap beyond the constant set and with the truth where they are known."""
    att = _mean_overlap(names, salient)
    measured = {"reward_att": att}
    if known.constant is not None:
        constant = [known.constant.names] * len(att)
        measured["reward_att_excess"] = att - overlaps(constant, salient)
    if known.truth is not None:
        true_sets = [known.truth.salient[patient] for patient in patients]
        measured["truth_overlap"] = _mean_overlap(names, true_sets)
    return measured


def every_answer(
    table: pd.DataFrame,
) -> tuple[Float[np.ndarray, "patients answers"], Bool[np.ndarray, "patients answers"]]:
    """Probability of each answer, and whether it could not be read.

    One answer a patient where they were asked once.

    Raises:
        DataError: if patients were not all asked as often.
    """
    if not _has(table, "sample_probabilities"):
        probabilities = table["probability"].to_numpy(float)[:, None]
        return probabilities, table["parse_failed"].to_numpy(bool)[:, None]
    numbers = sorted({len(each) for each in table["sample_probabilities"]})
    if len(numbers) > 1:
        raise DataError(
            "expected as many answers about every patient of a unit, got between "
            f"{numbers[0]} and {numbers[-1]}; evaluate it again with --redo evaluate"
        )
    probabilities = np.stack(list(table["sample_probabilities"])).astype(float)
    return probabilities, np.stack(list(table["sample_failed"])).astype(bool)


def named_sets(table: pd.DataFrame, *, has_every_name: bool = True) -> list[list[frozenset[str]]]:
    """Names in each answer, a set per patient for every answer.

    Of the first answer alone where the names of the others are not kept, or not asked for.
    """
    if not (has_every_name and _has(table, "sample_features")):
        return [[frozenset(names) for names in table["features"]]]
    by_answer = zip(*table["sample_features"], strict=True)
    return [[frozenset(names) for names in answer] for answer in by_answer]


def lacks_names(table: pd.DataFrame) -> bool:
    """Whether patients were asked several times and only the first answer's names are kept."""
    is_several = (
        _has(table, "sample_probabilities") and len(table["sample_probabilities"].iloc[0]) > 1
    )
    return is_several and not _has(table, "sample_features")


def _has(table: pd.DataFrame, column: str) -> bool:
    """Whether a table has something in every row of a column that older ones lack."""
    return column in table and not np.any(table[column].isna())


def _classification_rewards(
    probabilities: Float[np.ndarray, "patients answers"],
    failed: Bool[np.ndarray, "patients answers"],
    labels: np.ndarray,
    section: RewardSection,
) -> Float[np.ndarray, "patients answers"]:
    """R_cls of each answer; the floor of one that could not be read."""
    floor = worst_classification_reward(section)
    return np.array(
        [
            [
                floor if is_failed else classification_reward(float(p), int(label), section)
                for p, is_failed in zip(of_patient, failed_of_patient, strict=True)
            ]
            for of_patient, failed_of_patient, label in zip(
                probabilities, failed, labels, strict=True
            )
        ]
    )


def _mean_overlap(
    names: Sequence[Sequence[frozenset[str]]], sets: Sequence[frozenset[str]]
) -> Float[np.ndarray, " patients"]:
    """Mean over the answers of the Jaccard of each patient's names and set."""
    return np.mean([overlaps(answer, sets) for answer in names], axis=0)


def _claims(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray] | None:
    """Wrong and checked claims of each (first) answer; None where answers have no prose."""
    claims = table["num_claims"].to_numpy(float)
    if not np.isfinite(claims).all():
        return None
    wrong = [len(found) if found is not None else 0 for found in table["wrong_claims"]]
    return np.array(wrong, dtype=float), claims


def salient_sets(table: pd.DataFrame) -> list[frozenset[str]]:
    """C_exp of each row."""
    return [frozenset(names) for names in table["salient"]]


def constant_set(sets: Sequence[Collection[str]], most: int) -> ConstantSet:
    """The best constant set of at most `most` names, or of `MAX_FEATURE_NAMES` if that is fewer.

    An answer with more names is a format failure. As in `ehr.salience.agreement.excess_jaccard`.
    """
    found = [best_constant_set(sets, num) for num in range(1, min(most, MAX_FEATURE_NAMES) + 1)]
    names, overlap = max(found, key=lambda each: each[1])
    return ConstantSet(names=names, overlap=overlap)


def overlaps(
    first: Sequence[Collection[str]], second: Sequence[Collection[str]]
) -> Float[np.ndarray, " patients"]:
    """Jaccard of the two sets of each patient."""
    return np.array([jaccard(a, b) for a, b in zip(first, second, strict=True)])


def _share(weights: np.ndarray, part: np.ndarray, whole: np.ndarray) -> Values:
    """Weighted sum of the part by that of the whole; NaN where there is no whole."""
    total = weights @ whole
    return np.divide(weights @ part, total, out=np.full(len(total), np.nan), where=total > 0)


def _moved(faithfulness: pd.DataFrame, patients: Sequence[str]) -> Float[np.ndarray, " patients"]:
    """How much more each answer moves without a named feature than without another one.

    NaN where that was not judged.
    """
    judged = rows(faithfulness, faithfulness["unjudged"].isna())
    original = judged["original"].to_numpy(float)
    named = np.abs(judged["without_named"].to_numpy(float) - original)
    unnamed = np.abs(judged["without_unnamed"].to_numpy(float) - original)
    # written probabilities have two digits: .2 - .1 is not to be more than .3 - .2
    moved = (named - unnamed).round(9)
    of_judged = dict(zip(judged["patient_id"].astype(str), moved.tolist(), strict=True))
    return np.array([of_judged.get(patient, np.nan) for patient in patients])
