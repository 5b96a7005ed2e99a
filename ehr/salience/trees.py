"""Boosted trees on half-samples; a feature's score is the size of its Shapley value.

The values are those of TreeSHAP with path-dependent expectations (Lundberg and others, 2020), of
the log-odds. A leaf is a box: its share in a prediction is a product of one factor per feature on
its path, so a sum over the few subsets of those features gives the Shapley values exactly. With
trees of depth 3 this is eight products a leaf, and needs no package but numpy.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import factorial
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import expit

from ehr.expert.opinions import Opinions, shares, was_seen
from ehr.expert.plans import FOLD_SEED, MemberPlan
from ehr.expert.view import ExpertInput, ExpertScaler, last_visits

_PATIENTS = 512
"""Patients held at once: a block of 1200 leaves with three sides takes 15 MB."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Boxes:
    """The leaves of a sum of trees. A leaf with fewer features has sides that are always met."""

    base: float
    """Log-odds before any leaf."""
    value: Float[np.ndarray, " leaves"]
    """What a leaf adds to the log-odds of those in its box."""
    column: Int[np.ndarray, "leaves sides"]
    """Column each side is about, each at most once a leaf; 0 on sides that are always met."""
    low: Float[np.ndarray, "leaves sides"]
    high: Float[np.ndarray, "leaves sides"]
    """A side is met if low < x <= high."""
    share: Float[np.ndarray, "leaves sides"]
    """Share of the fitted patients that met the side's splits, among those that reached them."""

    @classmethod
    def of(cls, model: Any) -> "Boxes":
        """The leaves of a fitted scikit-learn `GradientBoostingClassifier` of two classes."""
        leaves = [
            (value * model.learning_rate, sides)
            for (tree,) in model.estimators_
            for value, sides in _leaves(tree.tree_)
        ]
        num_sides = max([1, *(len(sides) for _, sides in leaves)])
        shape = (len(leaves), num_sides)
        column = np.zeros(shape, dtype=np.int64)
        low, high, share = np.full(shape, -np.inf), np.full(shape, np.inf), np.ones(shape)
        for row, (_, sides) in enumerate(leaves):
            for side, (about, (below, above, part)) in enumerate(sides.items()):
                column[row, side] = about
                low[row, side], high[row, side], share[row, side] = below, above, part
        prior = float(model.init_.class_prior_[1])
        return cls(
            base=float(np.log(prior / (1 - prior))),
            value=np.array([value for value, _ in leaves], dtype=np.float64),
            column=column,
            low=low,
            high=high,
            share=share,
        )

    def log_odds(self, x: Float[np.ndarray, "patients columns"]) -> Float[np.ndarray, " patients"]:
        """The model's prediction."""
        parts = [self._met(block).all(axis=-1) @ self.value for block in _blocks(x)]
        return self.base + np.concatenate(parts)

    def expected(self) -> float:
        """Log-odds when nothing is known: what the Shapley values of a patient start from."""
        return self.base + float(self.value @ self.share.prod(axis=-1))

    def shapley(
        self, x: Float[np.ndarray, "patients columns"]
    ) -> Float[np.ndarray, "patients columns"]:
        """Exact Shapley value of every column; over columns they sum to log-odds - expected."""
        return np.concatenate([self._shapley(block) for block in _blocks(x)])

    def _shapley(
        self, x: Float[np.ndarray, "patients columns"]
    ) -> Float[np.ndarray, "patients columns"]:
        met = self._met(x)
        num_sides = self.column.shape[1]
        # With side j known a leaf's factor is 0 or 1, without it is the share.
        gain = met - self.share
        result = np.zeros((len(x), x.shape[1]))
        for side in range(num_sides):
            others = [other for other in range(num_sides) if other != side]
            total = np.zeros(met.shape[:2])
            for known in product((False, True), repeat=len(others)):
                size = sum(known)
                weight = factorial(size) * factorial(num_sides - size - 1) / factorial(num_sides)
                term = np.full(met.shape[:2], weight)
                for other, is_known in zip(others, known, strict=True):
                    term *= met[:, :, other] if is_known else self.share[:, other]
                total += term
            change = total * gain[:, :, side] * self.value
            for column in np.unique(self.column[:, side]):
                result[:, column] += change[:, self.column[:, side] == column].sum(axis=1)
        return result

    def _met(
        self, x: Float[np.ndarray, "patients columns"]
    ) -> Bool[np.ndarray, "patients leaves sides"]:
        asked = x.astype(np.float32)[:, self.column]  # the precision that scikit-learn splits in
        return (asked > self.low) & (asked <= self.high)


class TreeEnsemble:
    """Members of the gradient boosting on the last visit, age and sex."""

    def __init__(
        self, plans: Sequence[MemberPlan], scaler: ExpertScaler, members: Sequence[Boxes]
    ) -> None:
        """Fitted members, one a plan."""
        self.plans = tuple(plans)
        self.scaler = scaler
        self.members = tuple(members)

    @classmethod
    def fit(
        cls,
        plans: Sequence[MemberPlan],
        inputs: Mapping[str, ExpertInput],
        labels: Mapping[str, int],
        scaler: ExpertScaler,
    ) -> "TreeEnsemble":
        """One member a plan, each with as many trees as its own patients choose (`MEMBER_TREES`).

        Nothing of a member, that number included, depends on a patient outside its plan.

        Raises:
            DataError: if a plan's patients lack a class, or an input is not finite.
        """
        # scikit-learn's import is slow, and only fitting needs it: a service does not fit.
        from ehr.expert.baseline_settings import MEMBER_TREES, choose_num_trees
        from ehr.expert.baselines import fitted_gradient_boosting

        members = []
        for plan in plans:
            patients, outcomes = plan.training_set(inputs, labels)
            num_trees = choose_num_trees(patients, outcomes, FOLD_SEED, MEMBER_TREES)
            model = fitted_gradient_boosting(patients, outcomes, num_trees, plan.seed)
            members.append(Boxes.of(model))
        return cls(plans, scaler, members)

    def risks(self, inputs: Sequence[ExpertInput]) -> Float[np.ndarray, "members patients"]:
        """Every member's probability of the event."""
        x = last_visits(inputs)
        return expit(np.stack([member.log_odds(x) for member in self.members]))

    def predict(self, inputs: Sequence[ExpertInput]) -> Opinions:
        """Every member's risk, and its absolute Shapley values as shares.

        Age's value and sex's are added up, signs kept, to that of `Age & Sex`.
        """
        x = last_visits(inputs)
        values = np.stack([member.shapley(x) for member in self.members])
        num_features = len(self.scaler.features)
        tokens = [values[..., :num_features], values[..., num_features:].sum(-1, keepdims=True)]
        ids = tuple(entry.patient_id for entry in inputs)
        return Opinions(
            patient_ids=ids,
            risk=self.risks(inputs),
            scores=shares(np.abs(np.concatenate(tokens, axis=-1))),
            seen=was_seen(self.plans, ids),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """All that fitting found, for a file."""
        return {
            f"{index}/{name}": np.atleast_1d(getattr(member, name))
            for index, member in enumerate(self.members)
            for name in Boxes.__slots__
        }

    @classmethod
    def from_arrays(
        cls, plans: Sequence[MemberPlan], scaler: ExpertScaler, arrays: Mapping[str, np.ndarray]
    ) -> "TreeEnsemble":
        """The ensemble whose `arrays` were written."""
        members = [
            Boxes(
                base=float(arrays[f"{index}/base"][0]),
                **{name: arrays[f"{index}/{name}"] for name in Boxes.__slots__ if name != "base"},
            )
            for index in range(len(plans))
        ]
        return cls(plans, scaler, members)


_Sides = dict[int, tuple[float, float, float]]
"""Of one leaf: low, high and share by column."""


def _leaves(
    tree: Any, node: int = 0, sides: _Sides | None = None
) -> Iterator[tuple[float, _Sides]]:
    """Value and sides of every leaf below a node of a scikit-learn tree."""
    sides = sides or {}
    left, right = int(tree.children_left[node]), int(tree.children_right[node])
    if left == right:  # both -1: a leaf
        yield float(tree.value[node, 0, 0]), sides
        return
    column, threshold = int(tree.feature[node]), float(tree.threshold[node])
    low, high, share = sides.get(column, (-np.inf, np.inf, 1.0))
    for child, bounds in (
        (left, (low, min(high, threshold))),
        (right, (max(low, threshold), high)),
    ):
        part = tree.weighted_n_node_samples[child] / tree.weighted_n_node_samples[node]
        yield from _leaves(tree, child, sides | {column: (*bounds, share * float(part))})


def _blocks(x: Float[np.ndarray, "patients columns"]) -> Iterator[np.ndarray]:
    for start in range(0, len(x), _PATIENTS):
        yield x[start : start + _PATIENTS]
