"""Logistic regressions on half-samples; a feature's score is the size of its contribution."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from ehr.expert.opinions import Opinions, shares, was_seen
from ehr.expert.plans import FOLD_SEED, MemberPlan
from ehr.expert.view import ExpertInput, ExpertScaler, last_visits


class LinearEnsemble:
    """Members of the logistic regression on the last visit, age and sex."""

    def __init__(
        self,
        plans: Sequence[MemberPlan],
        scaler: ExpertScaler,
        weights: Float[np.ndarray, "members columns"],
        intercepts: Float[np.ndarray, " members"],
    ) -> None:
        """Fitted members.

        Args:
            plans: which patients each was fitted on.
            scaler: makes the members' inputs.
            weights: of the columns of `last_visits`.
            intercepts: log-odds where every column is 0.
        """
        self.plans = tuple(plans)
        self.scaler = scaler
        self.weights = weights
        self.intercepts = intercepts

    @classmethod
    def fit(
        cls,
        plans: Sequence[MemberPlan],
        inputs: Mapping[str, ExpertInput],
        labels: Mapping[str, int],
        scaler: ExpertScaler,
    ) -> "LinearEnsemble":
        """One member a plan, each with `InversePenalty.stable` of its own patients.

        Nothing of a member, its penalty included, depends on a patient outside its plan.

        Raises:
            DataError: if a plan's patients lack a class, or an input is not finite.
        """
        # scikit-learn's import is slow, and only fitting needs it: a service does not fit.
        from ehr.expert.baseline_settings import choose_inverse_penalty
        from ehr.expert.baselines import fitted_logistic_regression

        models = []
        for plan in plans:
            patients, outcomes = plan.training_set(inputs, labels)
            penalty = choose_inverse_penalty(patients, outcomes, FOLD_SEED)
            models.append(fitted_logistic_regression(patients, outcomes, penalty.stable))
        return cls(
            plans,
            scaler,
            weights=np.concatenate([model.coef_ for model in models]).astype(np.float64),
            intercepts=np.concatenate([model.intercept_ for model in models]).astype(np.float64),
        )

    def risks(self, inputs: Sequence[ExpertInput]) -> Float[np.ndarray, "members patients"]:
        """Every member's probability of the event."""
        return expit(self.weights @ last_visits(inputs).T + self.intercepts[:, None])

    def predict(self, inputs: Sequence[ExpertInput]) -> Opinions:
        """Every member's risk, and its contributions |w x| as shares.

        x is scaled, so a feature's contribution is what it adds for differing from the training
        mean; those of age and sex are added up to the one of `Age & Sex`.
        """
        sizes = np.abs(self.weights[:, None, :] * last_visits(inputs)[None])
        num_features = len(self.scaler.features)
        tokens = [sizes[..., :num_features], sizes[..., num_features:].sum(-1, keepdims=True)]
        ids = tuple(entry.patient_id for entry in inputs)
        return Opinions(
            patient_ids=ids,
            risk=self.risks(inputs),
            scores=shares(np.concatenate(tokens, axis=-1)),
            seen=was_seen(self.plans, ids),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """All that fitting found, for a file."""
        return {"weights": self.weights, "intercepts": self.intercepts}

    @classmethod
    def from_arrays(
        cls, plans: Sequence[MemberPlan], scaler: ExpertScaler, arrays: Mapping[str, np.ndarray]
    ) -> "LinearEnsemble":
        """The ensemble whose `arrays` were written."""
        return cls(plans, scaler, arrays["weights"], arrays["intercepts"])
