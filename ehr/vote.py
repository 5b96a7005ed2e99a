"""A vote of salience methods by mean rank, which the paper leaves as future work."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from ehr.errors import DataError
from ehr.expert_member import MemberPlan
from ehr.imputation import ExpertInput, ExpertScaler
from ehr.opinions import Opinions, SalienceEnsemble, was_seen


class Vote:
    """Members that several methods have in common, each the mean of the methods' members.

    A method with more half-samples than another takes part with those that the other has too, so
    that a member of the vote is out of fold wherever all its parts are.
    """

    def __init__(self, voters: Sequence[SalienceEnsemble]) -> None:
        """A vote of equal weights.

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
        self.plans = tuple(plan for plan in voters[0].plans if plan.train_ids in shared)
        self._rows = [_rows(voter.plans, self.plans) for voter in voters]

    @property
    def scaler(self) -> ExpertScaler:
        """The first voter's; all have the same."""
        return self.voters[0].scaler

    def risks(self, inputs: Sequence[ExpertInput]) -> Float[np.ndarray, "members patients"]:
        """Mean probability of the voters' members; a network that votes twice counts twice."""
        answers = zip(self.voters, self._rows, strict=True)
        return np.mean([voter.risks(inputs)[rows] for voter, rows in answers], axis=0)

    def predict(self, inputs: Sequence[ExpertInput]) -> Opinions:
        """Mean risk; scores fall with the mean rank, from the first of T tokens to the last.

        A token ranked r gets T + 1 - r points, over the sum of all points; ties share a rank.
        """
        opinions = [voter.predict(inputs) for voter in self.voters]
        answers = list(zip(opinions, self._rows, strict=True))
        points = [rankdata(opinion.scores[rows], axis=-1) for opinion, rows in answers]
        num_tokens = points[0].shape[-1]
        ids = tuple(entry.patient_id for entry in inputs)
        return Opinions(
            patient_ids=ids,
            risk=np.mean([opinion.risk[rows] for opinion, rows in answers], axis=0),
            scores=np.mean(points, axis=0) / (num_tokens * (num_tokens + 1) / 2),
            seen=was_seen(self.plans, ids),
        )


def _rows(plans: Sequence[MemberPlan], wanted: Sequence[MemberPlan]) -> list[int]:
    position = {plan.train_ids: row for row, plan in enumerate(plans)}
    return [position[plan.train_ids] for plan in wanted]
