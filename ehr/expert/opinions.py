"""What every salience method answers: risks and feature scores of each member, and their means.

A method is an ensemble whose members were fitted on complementary half-samples (the plans of
`ehr.expert.member.halves`). `ehr.salience` and `ehr.salience.deletion` know no more of a method
than this.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from ehr.catalogue import AGE_AND_SEX
from ehr.expert.plans import MemberPlan
from ehr.expert.view import ExpertInput, ExpertScaler


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Opinions:
    """What every member of an ensemble thinks of some patients."""

    patient_ids: tuple[str, ...]
    risk: Float[np.ndarray, "members patients"]
    scores: Float[np.ndarray, "members patients tokens"]
    """How much each feature matters to the member: in schema order, the demographic token last;
    not negative, sums to 1 over tokens."""
    seen: Bool[np.ndarray, "members patients"]
    """Whether the member was trained on the patient."""

    def mean_risk(self) -> Float[np.ndarray, " patients"]:
        """Risk averaged over the members that did not see the patient; over all if all did."""
        return (self.risk * fair_weights(self.seen)).sum(axis=0)

    def mean_scores(self) -> Float[np.ndarray, "patients tokens"]:
        """Scores averaged in the same way."""
        return (self.scores * fair_weights(self.seen)[:, :, None]).sum(axis=0)


@runtime_checkable
class SalienceEnsemble(Protocol):
    """Fitted members of one salience method, and what it takes to ask them about a patient."""

    @property
    def scaler(self) -> ExpertScaler:
        """Makes the members' inputs, and names their features."""
        ...

    @property
    def plans(self) -> tuple[MemberPlan, ...]:
        """Which patients each member was fitted on, in the order of `Opinions.risk`."""
        ...

    def risks(self, inputs: Sequence[ExpertInput]) -> Float[np.ndarray, "members patients"]:
        """Every member's probability of the event, without the price of the scores."""
        ...

    def predict(self, inputs: Sequence[ExpertInput]) -> Opinions:
        """Every member's risk and scores."""
        ...


def token_names(scaler: ExpertScaler) -> tuple[str, ...]:
    """Names of the scores' columns: features in schema order, then `Age & Sex`."""
    return (*scaler.features, AGE_AND_SEX)


def was_seen(
    plans: Sequence[MemberPlan], patient_ids: Sequence[str]
) -> Bool[np.ndarray, "members patients"]:
    """Whether each member was fitted on each patient."""
    fitted_on = [frozenset(plan.train_ids) for plan in plans]
    return np.array([[patient in ids for patient in patient_ids] for ids in fitted_on], dtype=bool)


def fair_weights(
    seen: Bool[np.ndarray, "members patients"],
) -> Float[np.ndarray, "members patients"]:
    """Weight of each member in a patient's mean: only those that did not see it, all if all did."""
    counts = ~seen | seen.all(axis=0)
    return counts / counts.sum(axis=0)


def shares(
    sizes: Float[np.ndarray, "*rows tokens"],
) -> Float[np.ndarray, "*rows tokens"]:
    """Sizes (not negative) divided by their sum over tokens; equal shares where all are 0.

    So members with large coefficients do not outvote others in a mean, and every method's scores
    read like attention.
    """
    total = sizes.sum(axis=-1, keepdims=True)
    equal = np.full_like(sizes, 1 / sizes.shape[-1])
    return np.divide(sizes, total, out=equal, where=total > 0)
