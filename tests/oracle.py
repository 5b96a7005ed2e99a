"""An expert that knows a synthetic cohort's truth: what every metric of the expert is held to."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.special import logit

from ehr.cohorts.cohort import Cohort
from ehr.cohorts.truth import true_contributions, true_risks
from ehr.expert.opinions import Opinions, shares, was_seen
from ehr.expert.plans import MemberPlan
from ehr.expert.view import ExpertInput, ExpertScaler


class Oracle:
    """A `SalienceEnsemble` whose risks are the true ones and whose scores are true contributions.

    Args:
        cohort: a generated one.
        plans: which patients each member counts as having seen.
        noise: standard deviation of what each member adds to a contribution, in log-odds.
        seed: of the noise.
        cases: whose truth is told about each patient; their own by default.
    """

    def __init__(
        self,
        cohort: Cohort,
        plans: Sequence[MemberPlan],
        noise: float = 0.0,
        seed: int = 0,
        cases: Mapping[str, str] | None = None,
    ) -> None:
        self.scaler = ExpertScaler.fit(cohort, cohort.splits["train"])
        self.plans = tuple(plans)
        self._cohort = cohort
        self._noise = noise
        self._seed = seed
        self._cases = cases or {}

    def risks(self, inputs: Sequence[ExpertInput]) -> np.ndarray:
        return self.predict(inputs).risk

    def predict(self, inputs: Sequence[ExpertInput]) -> Opinions:
        ids = [entry.patient_id for entry in inputs]
        told = [self._cases.get(patient, patient) for patient in ids]
        sizes = np.abs(true_contributions(self._cohort, told))
        noise = np.random.default_rng(self._seed).normal(size=(len(self.plans), *sizes.shape))
        return Opinions(
            patient_ids=tuple(ids),
            risk=np.tile(true_risks(self._cohort, told), (len(self.plans), 1)),
            scores=shares(np.abs(sizes + self._noise * noise)),
            seen=was_seen(self.plans, ids),
        )


class MarkingScaler(ExpertScaler):
    """Masks values as NaN: the true model must tell a deleted feature from a normal one."""

    def mask(self, entry: ExpertInput, tokens: Collection[int]) -> ExpertInput:
        features = [token for token in tokens if token < len(self.features)]
        values = entry.values.copy()
        values[:, features] = np.nan
        is_nobody = len(features) < len(tokens)
        demographics = np.full(2, np.nan, dtype=np.float32) if is_nobody else entry.demographics
        return replace(entry, values=values, demographics=demographics)


class TrueModel:
    """A judge: the true log-odds, without the contributions of what was masked."""

    def __init__(self, cohort: Cohort) -> None:
        self._cohort = cohort

    def __call__(self, inputs: Sequence[ExpertInput]) -> np.ndarray:
        ids = [entry.patient_id for entry in inputs]
        masked = np.array(
            [
                np.append(np.isnan(each.values).all(axis=0), np.isnan(each.demographics).all())
                for each in inputs
            ]
        )
        lost = (true_contributions(self._cohort, ids) * masked).sum(axis=1)
        return logit(true_risks(self._cohort, ids)) - lost
