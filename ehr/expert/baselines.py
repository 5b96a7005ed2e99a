"""What a hospital would use instead: classical models on the last visit, age and sex.

Their settings are chosen by cross-validation on the training patients
(`ehr.expert.baseline_settings`).
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from jaxtyping import Float
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from ehr.expert.baseline_settings import (
    boosted_trees,
    both_classes,
    choose_inverse_penalty,
    choose_num_trees,
    linear_model,
)
from ehr.expert.view import ExpertInput, last_visits


def logistic_regression(
    training: Sequence[ExpertInput], labels: Sequence[int], asked: Sequence[ExpertInput], seed: int
) -> Float[np.ndarray, " patients"]:
    """Probabilities for the patients `asked`, by a penalised logistic regression.

    Args:
        training: patients to fit on.
        labels: 0 or 1 for each of `training`.
        asked: patients to answer for.
        seed: of the folds that choose the penalty.

    Raises:
        DataError: if the training patients lack a class, or an input is not finite.
    """
    penalty = choose_inverse_penalty(training, labels, seed)
    model = fitted_logistic_regression(training, labels, penalty.best)
    return model.predict_proba(last_visits(asked))[:, 1]


def gradient_boosting(
    training: Sequence[ExpertInput], labels: Sequence[int], asked: Sequence[ExpertInput], seed: int
) -> Float[np.ndarray, " patients"]:
    """Probabilities for the patients `asked`, by stochastic gradient-boosted trees.

    Args:
        training: patients to fit on.
        labels: 0 or 1 for each of `training`.
        asked: patients to answer for.
        seed: of the folds that choose the number of trees, and of the rows and columns each sees.

    Raises:
        DataError: if the training patients lack a class, or an input is not finite.
    """
    num_trees = choose_num_trees(training, labels, seed)
    model = fitted_gradient_boosting(training, labels, num_trees, seed)
    return model.predict_proba(last_visits(asked))[:, 1]


BASELINES: Mapping[str, Callable[..., Float[np.ndarray, " patients"]]] = MappingProxyType(
    {"logistic_regression": logistic_regression, "gradient_boosting": gradient_boosting}
)
"""Every baseline by its name in result files."""


def fitted_logistic_regression(
    training: Sequence[ExpertInput], labels: Sequence[int], inverse_penalty: float
) -> LogisticRegression:
    """The penalised logistic regression behind the baseline, on the columns of `last_visits`.

    Raises:
        DataError: if the patients lack a class, or an input is not finite.
    """
    with threadpool_limits(1):  # as in choosing the penalty
        return linear_model(inverse_penalty).fit(last_visits(training), both_classes(labels))


def fitted_gradient_boosting(
    training: Sequence[ExpertInput], labels: Sequence[int], num_trees: int, seed: int
) -> GradientBoostingClassifier:
    """The boosted trees behind the baseline, on the columns of `last_visits`.

    Raises:
        DataError: if the patients lack a class, or an input is not finite.
    """
    return boosted_trees(num_trees, seed).fit(last_visits(training), both_classes(labels))
