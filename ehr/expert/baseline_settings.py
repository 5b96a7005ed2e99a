"""Settings of the classical models, chosen by cross-validation on the patients they are fitted on.

No other patient is looked at: neither the validation split nor the test split. Where the models
are members of a salience ensemble, each one chooses on its own half of the training patients, by
folds within it, so that nothing of a member has seen the label of a patient outside its half.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from threadpoolctl import threadpool_limits

from ehr.errors import DataError
from ehr.expert.view import ExpertInput, last_visits

INVERSE_PENALTIES = tuple(10.0 ** (half / 2) for half in range(-8, 3))
"""C of the logistic regression, two a decade; the ends are never best on the cohorts at hand."""

NUM_FOLDS = 5
"""Fewer where a class has fewer patients."""

TREE_STEP = 25
MOST_TREES = 500
"""Numbers of trees tried: steps of `TREE_STEP`, since the loss is flat around its lowest value."""

_UNCHOSEN_INVERSE_PENALTY = 1.0
_UNCHOSEN_NUM_TREES = 100
"""scikit-learn's own, where a class has one patient and no fold could hold it out."""

_TREE_LEARNING_RATE = 0.05
"""Not chosen: with the number of trees chosen for it, half or twice the rate gives the same loss
within its error on TJH and PhysioNet 2012."""

_ROW_SHARE = 0.5
"""Patients each tree sees, as Friedman (2002) advises; each split sees the root of the number of
columns."""

_LEAST_RISK = 1e-6
"""Risks are kept this far from 0 and 1 in a loss: one certain error must not be infinite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeRule:
    """How a number of trees is chosen."""

    num_folds: int
    """Fewer where a class has fewer patients."""
    least_gain: float
    """A step is better if it lowers the mean log loss by more than this."""
    patience: int
    """Steps that are not better before no more trees are tried."""


PREDICTING_TREES = TreeRule(num_folds=NUM_FOLDS, least_gain=0.0, patience=2)
"""For predictions: the number with the lowest loss."""

MEMBER_TREES = TreeRule(num_folds=2, least_gain=0.002, patience=1)
"""For members of a salience ensemble, some twenty of which choose, each on its own patients. With
the other rule that took some four times as long, and trees agreed no better: kappa .14 on TJH
and .55 on PhysioNet 2012, with this one .17 and .54."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InversePenalty:
    """C of a logistic regression, by two rules."""

    best: float
    """With the lowest mean loss over the folds: for predictions."""
    stable: float
    """The smallest whose mean loss is within one standard error of the lowest (Breiman and others,
    1984): no worse as far as the folds can tell, and its weights vary less between samples. For
    salience, which is read from the weights."""


def choose_inverse_penalty(
    training: Sequence[ExpertInput], labels: Sequence[int], seed: int
) -> InversePenalty:
    """C of the logistic regression, by the log loss in stratified folds.

    Args:
        training: patients to fit on.
        labels: 0 or 1 for each of `training`.
        seed: of the folds.

    Raises:
        DataError: if the patients lack a class, or an input is not finite.
    """
    x, y = last_visits(training), both_classes(labels)
    folds = _folds(y, seed)
    if not folds:
        return InversePenalty(best=_UNCHOSEN_INVERSE_PENALTY, stable=_UNCHOSEN_INVERSE_PENALTY)
    # The products are small: threads of the linear algebra would wait for each other for most of
    # the time, where cores are busy for nearly all of it.
    with threadpool_limits(1):
        losses = np.array(
            [
                [
                    _log_loss(
                        y[held_out],
                        linear_model(value).fit(x[kept], y[kept]).predict_proba(x[held_out])[:, 1],
                    )
                    for value in INVERSE_PENALTIES
                ]
                for kept, held_out in folds
            ]
        )
    mean = losses.mean(axis=0)
    lowest = int(mean.argmin())
    error = losses[:, lowest].std(ddof=1) / len(folds) ** 0.5
    stable = int(np.flatnonzero(mean <= mean[lowest] + error)[0])
    return InversePenalty(best=INVERSE_PENALTIES[lowest], stable=INVERSE_PENALTIES[stable])


def choose_num_trees(
    training: Sequence[ExpertInput],
    labels: Sequence[int],
    seed: int,
    rule: TreeRule = PREDICTING_TREES,
) -> int:
    """Number of boosted trees, by the log loss in stratified folds.

    All folds grow by `TREE_STEP` trees at a time, until the mean loss no longer falls enough.

    Args:
        training: patients to fit on.
        labels: 0 or 1 for each of `training`.
        seed: of the folds, and of the rows and columns each tree sees.
        rule: number of folds, and when to stop.

    Raises:
        DataError: if the patients lack a class, or an input is not finite.
    """
    x, y = last_visits(training), both_classes(labels)
    folds = _folds(y, seed, rule.num_folds)
    if not folds:
        return _UNCHOSEN_NUM_TREES
    models = [boosted_trees(0, seed).set_params(warm_start=True) for _ in folds]
    best, best_loss = TREE_STEP, np.inf
    for num_trees in range(TREE_STEP, MOST_TREES + 1, TREE_STEP):
        losses: list[float] = []
        for model, (kept, held_out) in zip(models, folds, strict=True):
            model.set_params(n_estimators=num_trees).fit(x[kept], y[kept])
            losses.append(_log_loss(y[held_out], model.predict_proba(x[held_out])[:, 1]))
        if np.mean(losses) < best_loss - rule.least_gain:
            best, best_loss = num_trees, float(np.mean(losses))
        elif num_trees - best >= rule.patience * TREE_STEP:
            break
    return best


def linear_model(inverse_penalty: float) -> LogisticRegression:
    """The baseline's logistic regression, to be fitted."""
    return LogisticRegression(C=inverse_penalty, max_iter=2000)


def boosted_trees(num_trees: int, seed: int) -> GradientBoostingClassifier:
    """The baseline's stochastic gradient boosting, to be fitted."""
    return GradientBoostingClassifier(
        n_estimators=num_trees,
        learning_rate=_TREE_LEARNING_RATE,
        subsample=_ROW_SHARE,
        max_features="sqrt",
        random_state=seed,
    )


def both_classes(labels: Sequence[int]) -> Int[np.ndarray, " patients"]:
    """The labels as an array.

    Raises:
        DataError: if a class is missing.
    """
    y = np.asarray(labels)
    if set(np.unique(y)) != {0, 1}:
        raise DataError(
            f"A baseline needs training patients of both classes, got labels "
            f"{sorted(set(y.tolist()))[:5]}. Use a larger or stratified cohort."
        )
    return y


def _folds(
    y: Int[np.ndarray, " patients"], seed: int, most: int = NUM_FOLDS
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Patients to fit on and to judge by, each class dealt out; none if a class has one patient."""
    num_folds = min(most, int(np.bincount(y).min()))
    if num_folds < 2:
        return []
    return list(StratifiedKFold(num_folds, shuffle=True, random_state=seed).split(y, y))


def _log_loss(y: Int[np.ndarray, " patients"], risk: Float[np.ndarray, " patients"]) -> float:
    risk = np.clip(risk, _LEAST_RISK, 1 - _LEAST_RISK)
    return float(-np.log(np.where(y == 1, risk, 1 - risk)).mean())
