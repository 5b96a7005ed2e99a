"""A vote of salience methods, each weighted by how well it reproduces itself.

The paper leaves a consensus of several experts as future work. Methods differ a lot in how much of
their scores is about the patient and how much is about the half-sample: on TJH the final attention
of two disjoint ConCare ensembles hardly agrees at all, and the contributions of a regression agree
well. A mean of equals is drowned by the noisiest, so each method is weighted as measurements of
unequal precision are: by kappa / (1 - kappa), signal over noise, where kappa is the agreement of
its own members among themselves. No label and no other ensemble enters a weight; what the weights
can know of a training patient's label is what all members together made of it, in one number a
method.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from ehr.errors import DataError
from ehr.expert.ensemble import candidate_tokens, heaviest_tokens
from ehr.expert.opinions import (
    Opinions,
    SalienceEnsemble,
    fair_weights,
    was_seen,
)
from ehr.expert.plans import MemberPlan, all_patients
from ehr.expert.view import ExpertInput, ExpertScaler
from ehr.salience.agreement import agreement

WEIGHING_PATIENTS = 500
"""Training patients, at most, whose salient sets weigh a method: the standard error of a mean
Jaccard is then about .01."""

_HIGHEST_KAPPA = 0.99
"""A method that reproduces itself to the letter must not have infinite weight."""


class Vote:
    """Members that several methods have in common, each the weighted mean of the methods' members.

    A method with more half-samples than another takes part with those that the other has too, so
    that a member of the vote is out of fold wherever all its parts are.
    """

    def __init__(
        self, voters: Sequence[SalienceEnsemble], weights: Sequence[float] | None = None
    ) -> None:
        """A vote.

        Args:
            voters: the methods' ensembles.
            weights: of each, not negative; equal ones if None or if all are 0.

        Raises:
            DataError: if there is no method, or no half-sample that all were fitted on.
        """
        fitted_on = [{plan.train_ids for plan in voter.plans} for voter in voters]
        shared = set.intersection(*fitted_on) if fitted_on else set()
        if not shared:
            raise DataError(
                "A vote needs methods with members fitted on the same half-samples, got "
                f"{[len(voter.plans) for voter in voters]} members and none in common. Fit all "
                "methods on the plans of one `halves`."
            )
        self.voters = tuple(voters)
        self.weights = _normalised(weights or [1.0] * len(voters))
        self.plans = tuple(plan for plan in voters[0].plans if plan.train_ids in shared)
        self._rows = [_rows(voter.plans, self.plans) for voter in voters]

    @property
    def scaler(self) -> ExpertScaler:
        """The first voter's; all have the same."""
        return self.voters[0].scaler

    def risks(self, inputs: Sequence[ExpertInput]) -> Float[np.ndarray, "members patients"]:
        """Mean probability of the voters' members; a network that votes twice counts twice.

        Every voter counts alike: the weights are about scores.
        """
        answers = zip(self.voters, self._rows, strict=True)
        return np.mean([voter.risks(inputs)[rows] for voter, rows in answers], axis=0)

    def predict(self, inputs: Sequence[ExpertInput]) -> Opinions:
        """Mean risk, and the weighted mean of the voters' scores."""
        opinions = [voter.predict(inputs) for voter in self.voters]
        parts = list(zip(opinions, self._rows, self.weights, strict=True))
        ids = tuple(entry.patient_id for entry in inputs)
        return Opinions(
            patient_ids=ids,
            risk=np.mean([opinion.risk[rows] for opinion, rows, _ in parts], axis=0),
            scores=np.sum([weight * opinion.scores[rows] for opinion, rows, weight in parts], 0),
            seen=was_seen(self.plans, ids),
        )


def vote_weights(
    voters: Sequence[SalienceEnsemble],
    inputs: Mapping[str, ExpertInput],
    num_features: int,
    candidates: str,
) -> list[float]:
    """Weight of each method in a vote: kappa / (1 - kappa) of its members among themselves.

    The pairs of an ensemble are dealt into two groups, whose out-of-fold salient sets are compared
    on training patients. Groups are smaller than the ensemble, which lowers every kappa, and leaves
    the ratio of signal-to-noise ratios as it is.

    Args:
        voters: the methods' ensembles, all fitted on the same patients.
        inputs: holds these patients.
        num_features: size of C_exp.
        candidates: `observed` or `paper`, as in the expert section.

    Returns:
        One weight a method, not negative; equal ones if there is but one pair (or member), which
        has nothing to agree with.
    """
    if min(len(voter.plans) for voter in voters) < 4:  # two pairs
        return [1.0] * len(voters)
    ids = all_patients(voters[0].plans)
    chosen = np.random.default_rng(0).permutation(len(ids))[:WEIGHING_PATIENTS]
    asked = [inputs[ids[index]] for index in sorted(chosen)]
    weights: list[float] = []
    for voter in voters:
        opinions = voter.predict(asked)
        in_second = np.array([plan.member // 2 % 2 == 1 for plan in voter.plans])
        first, second = (
            _salient(opinions.scores[group], opinions.seen[group], asked, num_features, candidates)
            for group in (~in_second, in_second)
        )
        kappa = agreement(first, second, num_features).kappa
        kappa = 0.0 if kappa is None else min(max(kappa, 0.0), _HIGHEST_KAPPA)
        weights.append(kappa / (1 - kappa))
    return weights


def _salient(
    scores: np.ndarray,
    seen: np.ndarray,
    asked: Sequence[ExpertInput],
    num_features: int,
    candidates: str,
) -> list[frozenset[str]]:
    means = (scores * fair_weights(seen)[:, :, None]).sum(axis=0)
    return [
        frozenset(
            str(token)
            for token in heaviest_tokens(row, candidate_tokens(entry.observed, candidates))[
                :num_features
            ]
        )
        for row, entry in zip(means, asked, strict=True)
    ]


def _normalised(weights: Sequence[float]) -> tuple[float, ...]:
    total = sum(weights)
    if total == 0:
        return tuple(1 / len(weights) for _ in weights)
    return tuple(weight / total for weight in weights)


def _rows(plans: Sequence[MemberPlan], wanted: Sequence[MemberPlan]) -> list[int]:
    position = {plan.train_ids: row for row, plan in enumerate(plans)}
    return [position[plan.train_ids] for plan in wanted]
