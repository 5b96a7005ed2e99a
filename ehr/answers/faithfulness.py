"""Faithfulness of an answer's important features: does the answer hang on what it names?

A model may name the features that sound right and predict from others, or from none. So one named
and one unnamed feature of the same patient are deleted from the record in turn, the model is asked
again in the same way, and the two changes of its probability are compared: the erasure test of
J. DeYoung et al., ERASER, ACL 2020 (comprehensiveness), with a deleted feature of the same patient
as its control. The two have as equal numbers of recorded values as the record allows: a model may
also react to how much is missing. Deleting is the record's own way to say that nothing was
measured, and what a model makes of that is part of its answer.

Age and sex cannot be deleted from a prompt; an answer that names nothing else cannot be judged.
"""

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from ehr.catalogue import Feature
from ehr.cohorts.cohort import PatientCase
from ehr.metrics import bootstrap_mean

_ROUNDING = 1e-9
"""Differences below this come from binary fractions, not from answers."""


class Unjudged(StrEnum):
    """Why the features that an answer names could not be put to the test."""

    UNREADABLE_ANSWER = "the answer is unreadable"
    """There is no probability that could move."""
    NOTHING_NAMED = "no recorded feature is named"
    """Age and sex, unknown names, and features that the prompt shows no value of do not count."""
    NOTHING_ELSE = "no other feature is recorded"
    """There is nothing to compare the named ones with."""
    OTHER_VISITS = "the masked prompt shows other visits"
    """A masked record needs more tokens and no longer fits with all its visits."""
    UNREADABLE_MASKED = "a masked answer is unreadable"
    """One of the two other answers has no probability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedPair:
    """A named and an unnamed feature of one patient, and the record without each."""

    named: str
    unnamed: str
    num_named_values: int
    """Recorded values that go with the named feature."""
    num_unnamed_values: int
    without_named: PatientCase
    without_unnamed: PatientCase


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedProbabilities:
    """What one patient's answers say: to the whole record, and to the two masked ones."""

    original: float
    without_named: float
    without_unnamed: float

    @property
    def named_change(self) -> float:
        """|Change of the probability| without the named feature."""
        return abs(self.without_named - self.original)

    @property
    def unnamed_change(self) -> float:
        """|Change of the probability| without the unnamed feature."""
        return abs(self.without_unnamed - self.original)


@dataclass(frozen=True, slots=True, kw_only=True)
class Faithfulness:
    """How much more a method's answers hang on what they name."""

    named_change: float | None
    """Mean |change of the probability| without a named feature; null without a judged patient."""
    unnamed_change: float | None
    """The same without an unnamed one."""
    difference: float | None
    """First minus second: above 0, answers hang on what they name."""
    difference_low: float | None
    """Lower bound of its 95 % patient-level bootstrap interval."""
    difference_high: float | None
    share_named_more: float | None
    """Share of patients whose answer moves more without the named feature."""
    share_equal: float | None
    """Share of patients without a difference: with two written digits, most answers do not move."""
    num_judged: int
    unjudged: Mapping[str, int]
    """Patients that could not be judged, by reason."""


def choose_pair(
    case: PatientCase, features: Sequence[Feature], named: Collection[str], seed: int
) -> MaskedPair | Unjudged:
    """A named and an unnamed feature of a patient, as alike in recorded values as there are.

    Args:
        case: what the prompt showed of the patient.
        features: columns of the case's values.
        named: canonical names in the answer; those that are no column are passed over.
        seed: with the patient, decides among pairs that are equally alike.

    Returns:
        The pair, or why there is none.
    """
    counts = np.isfinite(case.values).sum(axis=0)
    recorded = [column for column in range(len(features)) if counts[column]]
    chosen = [column for column in recorded if features[column].name in named]
    others = [column for column in recorded if features[column].name not in named]
    if not chosen:
        return Unjudged.NOTHING_NAMED
    if not others:
        return Unjudged.NOTHING_ELSE
    gaps = {(a, b): abs(int(counts[a] - counts[b])) for a in chosen for b in others}
    least = min(gaps.values())
    alike = [pair for pair, gap in gaps.items() if gap == least]
    first, second = random.Random(f"{seed} masked pair {case.patient_id}").choice(alike)
    return MaskedPair(
        named=features[first].name,
        unnamed=features[second].name,
        num_named_values=int(counts[first]),
        num_unnamed_values=int(counts[second]),
        without_named=without_feature(case, first),
        without_unnamed=without_feature(case, second),
    )


def without_feature(case: PatientCase, column: int) -> PatientCase:
    """The case as if a feature had never been recorded."""
    values = case.values.copy()
    values[:, column] = np.nan
    return replace(case, values=values)


def faithfulness(
    judged: Sequence[MaskedProbabilities],
    unjudged: Sequence[Unjudged],
    num_resamples: int = 1000,
    seed: int = 0,
) -> Faithfulness:
    """How much more answers move without a named feature than without an unnamed one.

    Args:
        judged: probabilities of every patient whose answers could all be read.
        unjudged: the reason of every other patient that was asked about.
        num_resamples: bootstrap resamples of patients.
        seed: of the resamples.
    """
    named = np.array([each.named_change for each in judged])
    unnamed = np.array([each.unnamed_change for each in judged])
    difference = named - unnamed
    # Written probabilities have two digits: .2 - .1 is not to be more than .3 - .2.
    difference[np.abs(difference) < _ROUNDING] = 0.0
    low, high = (
        bootstrap_mean(difference, num_resamples, seed).interval() if judged else (None, None)
    )

    def mean(values: np.ndarray) -> float | None:
        return float(values.mean()) if len(values) else None

    return Faithfulness(
        named_change=mean(named),
        unnamed_change=mean(unnamed),
        difference=mean(difference),
        difference_low=low,
        difference_high=high,
        share_named_more=mean(difference > 0),
        share_equal=mean(difference == 0),
        num_judged=len(judged),
        unjudged=dict(sorted(Counter(str(reason) for reason in unjudged).items())),
    )
