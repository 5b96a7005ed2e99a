"""What a hospital would use instead: classical models on the last visit, age and sex."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from jaxtyping import Float
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from ehr.errors import DataError
from ehr.imputation import ExpertInput, last_visits

_INVERSE_PENALTY = 0.1
"""Of the logistic regression: TJH has half as many features as training patients."""

_NUM_TREES = 150
_TREE_LEARNING_RATE = 0.05

_ROW_SHARE = 0.5
"""Patients each tree sees: stochastic boosting, since small cohorts overfit without it."""


def logistic_regression(
    training: Sequence[ExpertInput], labels: Sequence[int], asked: Sequence[ExpertInput], seed: int
) -> Float[np.ndarray, " patients"]:
    """Probabilities for the patients `asked`, by a penalised logistic regression.

    Args:
        training: patients to fit on.
        labels: 0 or 1 for each of `training`.
        asked: patients to answer for.
        seed: not used by this model; all baselines are called alike.

    Raises:
        DataError: if the training patients lack a class, or an input is not finite.
    """
    model = fitted_logistic_regression(training, labels)
    return model.predict_proba(last_visits(asked))[:, 1]


def gradient_boosting(
    training: Sequence[ExpertInput], labels: Sequence[int], asked: Sequence[ExpertInput], seed: int
) -> Float[np.ndarray, " patients"]:
    """Probabilities for the patients `asked`, by stochastic gradient-boosted trees.

    Args:
        training: patients to fit on.
        labels: 0 or 1 for each of `training`.
        asked: patients to answer for.
        seed: of the rows and columns each tree sees.

    Raises:
        DataError: if the training patients lack a class, or an input is not finite.
    """
    model = fitted_gradient_boosting(training, labels, seed)
    return model.predict_proba(last_visits(asked))[:, 1]


BASELINES: Mapping[str, Callable[..., Float[np.ndarray, " patients"]]] = MappingProxyType(
    {"logistic_regression": logistic_regression, "gradient_boosting": gradient_boosting}
)
"""Every baseline by its name in result files."""


def fitted_logistic_regression(
    training: Sequence[ExpertInput], labels: Sequence[int]
) -> LogisticRegression:
    """The penalised logistic regression behind the baseline, on the columns of `last_visits`.

    Raises:
        DataError: if the patients lack a class, or an input is not finite.
    """
    x, y = last_visits(training), _both_classes(labels)
    return LogisticRegression(C=_INVERSE_PENALTY, max_iter=2000).fit(x, y)


def fitted_gradient_boosting(
    training: Sequence[ExpertInput], labels: Sequence[int], seed: int
) -> GradientBoostingClassifier:
    """The boosted trees behind the baseline, on the columns of `last_visits`.

    Raises:
        DataError: if the patients lack a class, or an input is not finite.
    """
    x, y = last_visits(training), _both_classes(labels)
    model = GradientBoostingClassifier(
        n_estimators=_NUM_TREES,
        learning_rate=_TREE_LEARNING_RATE,
        subsample=_ROW_SHARE,
        max_features="sqrt",
        random_state=seed,
    )
    return model.fit(x, y)


def _both_classes(labels: Sequence[int]) -> np.ndarray:
    y = np.asarray(labels)
    if set(np.unique(y)) != {0, 1}:
        raise DataError(
            f"A baseline needs training patients of both classes, got labels "
            f"{sorted(set(y.tolist()))[:5]}. Use a larger or stratified cohort."
        )
    return y
