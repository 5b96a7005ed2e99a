"""Deletion and insertion curves: does a prediction hang on the features that a method names first?

The k first features of each patient are masked, as if they had never been recorded, and a judge is
asked again; insertion masks all features and gives the first k back. Only recorded features (and
age and sex) are ordered: masking another one changes nothing.

Two kinds of judge answer different questions. A method's own out-of-fold ensemble says whether the
scores explain the model they come from (faithfulness), but is another yardstick for each method.
Common judges are the same for all and say whether the features matter for the outcome. No model is
neutral, so there are two, cross-fitted on the same half-samples, of which no method takes scores: a
random forest, a relative of the boosted trees, and a Gaussian process, whose smooth risk is nearer
to a regression. On TJH each prefers its relative. A method is better than another only where both
say so. They read the last visit, as regression and trees do and ConCare does not.

An area is the mean height of a curve over k = 1..K, in log-odds, and is compared with random orders
and with the best constant order: features by the mean effect of masking each alone, measured by the
judge itself on the same patients. That flatters the constant order, never the method.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import expit, logit

from ehr.errors import DataError
from ehr.expert.opinions import SalienceEnsemble, fair_weights, was_seen
from ehr.expert.plans import MemberPlan
from ehr.expert.view import ExpertInput, ExpertScaler, last_visits
from ehr.metrics import auroc, bootstrap_mean

NUM_STEPS = 10
"""K: twice the size of C_exp. Later features decide no salient set."""

NUM_RANDOM_ORDERS = 5
"""Random orders of each patient, averaged."""

_RISK_MARGIN = 1e-3
"""Risks are kept this far from 0 and 1: a forest that is certain must not make an infinite step."""

_PATIENTS = 4096
"""Masked patients held at once: bounds memory, changes no result."""

_FOREST_TREES = 100
_FOREST_LEAF = 3
"""Patients in a leaf at least: smoother risks, so that a masked feature can move them."""

_PROCESS_VARIANCE = 4.0
"""Prior variance of the process's log-odds: risks from .02 to .98 are nothing unusual."""

Judge = Callable[[Sequence[ExpertInput]], Float[np.ndarray, " patients"]]
"""Log-odds of patients, each by members that were not fitted on it."""

Orders = Sequence[Sequence[int]]
"""Tokens of each patient in the order of masking; patients may have different numbers."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """A judge's answers after k = 0..K steps, for deletion or insertion."""

    log_odds: Float[np.ndarray, "steps patients"]

    def change(self) -> Float[np.ndarray, "steps patients"]:
        """|Change of the log-odds| since k = 0."""
        return np.abs(self.log_odds - self.log_odds[0])

    def area(self) -> Float[np.ndarray, " patients"]:
        """Mean height of each patient's change over k = 1..K."""
        return self.change()[1:].mean(axis=0)

    def auroc(self, labels: Sequence[int]) -> list[float | None]:
        """AUROC after each number of steps; None with one class."""
        return [auroc(labels, expit(row)) for row in self.log_odds]


@dataclass(frozen=True, slots=True, kw_only=True)
class AreaBetween:
    """Mean area between a method's curve and another one, with a 95 % interval over patients."""

    area: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bench:
    """Patients, a judge, and the curves that every method is compared with under that judge."""

    judge: Judge
    scaler: ExpertScaler
    inputs: tuple[ExpertInput, ...]
    num_steps: int
    seed: int
    random: Mapping[str, tuple[Curve, ...]]
    """One curve a random order; by kind, `deletion` or `insertion`, as below."""
    constant: Mapping[str, Curve]
    """Curve of the best constant order."""

    def curves(self, orders: Orders) -> dict[str, Curve]:
        """Curves of these orders, `deletion` and `insertion`."""
        return _curves(self.judge, self.scaler, self.inputs, orders, self.num_steps)

    def versus_random(self, curve: Curve, kind: str) -> AreaBetween:
        """Area between a curve and the mean of the random ones."""
        mean = np.mean([other.area() for other in self.random[kind]], axis=0)
        return area_between(curve.area(), mean, self.seed)

    def versus_constant(self, curve: Curve, kind: str) -> AreaBetween:
        """Area between a curve and that of the best constant order."""
        return area_between(curve.area(), self.constant[kind].area(), self.seed)


def bench(
    judge: Judge,
    scaler: ExpertScaler,
    inputs: Sequence[ExpertInput],
    num_steps: int = NUM_STEPS,
    num_random: int = NUM_RANDOM_ORDERS,
    seed: int = 0,
) -> Bench:
    """The random and constant curves of a judge, to measure methods against.

    Args:
        judge: gives log-odds.
        scaler: made the inputs, and masks them.
        inputs: patients to judge.
        num_steps: K, at least 1; no more than there are tokens are taken.
        num_random: random orders of each patient.
        seed: of the random orders and of the bootstrap.

    Raises:
        DataError: if there is no patient, or no step.
    """
    num_tokens = len(scaler.features) + 1
    if not inputs or num_steps < 1:
        raise DataError(
            f"Deletion curves need patients and at least one step, got {len(inputs)} patients and "
            f"{num_steps} steps. Choose a split with patients and 1 to {num_tokens} steps."
        )
    inputs, num_steps = tuple(inputs), min(num_steps, num_tokens)
    candidates = _candidates(inputs)
    randoms = [
        _curves(judge, scaler, inputs, random_orders(candidates, seed + index), num_steps)
        for index in range(num_random)
    ]
    effects = single_effects(judge, scaler, inputs)
    constant = orders_of(np.broadcast_to(effects, candidates.shape), candidates)
    return Bench(
        judge=judge,
        scaler=scaler,
        inputs=inputs,
        num_steps=num_steps,
        seed=seed,
        random={kind: tuple(curves[kind] for curves in randoms) for kind in _KINDS},
        constant=_curves(judge, scaler, inputs, constant, num_steps),
    )


def own_judge(ensemble: SalienceEnsemble) -> Judge:
    """The out-of-fold mean risk of a method's own ensemble, as log-odds."""
    return _judge(ensemble.plans, ensemble.risks)


def common_judges(
    plans: Sequence[MemberPlan], inputs: Mapping[str, ExpertInput], labels: Mapping[str, int]
) -> dict[str, Judge]:
    """The judges that are the same for all methods, `forest` and `gaussian_process`.

    Both read the last visit, age and sex; one member a half-sample.

    Args:
        plans: half-samples, as the methods have.
        inputs: holds the patients of all plans.
        labels: holds theirs.
    """
    # scikit-learn's import is slow, and only fitting needs it.
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.gaussian_process import GaussianProcessClassifier
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel

    def forest(plan: MemberPlan, num_columns: int) -> RandomForestClassifier:
        return RandomForestClassifier(
            n_estimators=_FOREST_TREES, min_samples_leaf=_FOREST_LEAF, random_state=plan.seed
        )

    def process(plan: MemberPlan, num_columns: int) -> GaussianProcessClassifier:
        # Two scaled patients differ by about the square root of twice the number of columns.
        kernel = ConstantKernel(_PROCESS_VARIANCE) * RBF(num_columns**0.5)
        # None is a documented choice that the stubs lack: the kernel stays as it is.
        return GaussianProcessClassifier(kernel, optimizer=None)  # pyright: ignore[reportArgumentType]

    return {
        name: _fitted_judge(kind, plans, inputs, labels)
        for name, kind in (("forest", forest), ("gaussian_process", process))
    }


def _fitted_judge(
    kind: Callable[[MemberPlan, int], Any],
    plans: Sequence[MemberPlan],
    inputs: Mapping[str, ExpertInput],
    labels: Mapping[str, int],
) -> Judge:
    members: list[Any] = []
    for plan in plans:
        patients, outcomes = plan.training_set(inputs, labels)
        x = last_visits(patients)
        members.append(kind(plan, x.shape[1]).fit(x, outcomes))

    def risks(asked: Sequence[ExpertInput]) -> Float[np.ndarray, "members patients"]:
        x = last_visits(asked)
        return np.stack([member.predict_proba(x)[:, 1] for member in members])

    return _judge(plans, risks)


def method_orders(
    scores: Float[np.ndarray, "patients tokens"], inputs: Sequence[ExpertInput]
) -> list[list[int]]:
    """Recorded tokens of each patient by falling score; equal scores stay in schema order."""
    return orders_of(scores, _candidates(inputs))


def orders_of(
    scores: Float[np.ndarray, "patients tokens"], candidates: Bool[np.ndarray, "patients tokens"]
) -> list[list[int]]:
    """Candidate tokens of each patient by falling score; equal scores stay in schema order."""
    order = np.argsort(-scores, axis=1, kind="stable")
    return [
        [int(token) for token in row if allowed[token]]
        for row, allowed in zip(order, candidates, strict=True)
    ]


def random_orders(candidates: Bool[np.ndarray, "patients tokens"], seed: int) -> list[list[int]]:
    """Candidate tokens of each patient in an order that only chance decides."""
    rng = np.random.default_rng(seed)
    return orders_of(rng.random(candidates.shape), candidates)


def single_effects(
    judge: Judge, scaler: ExpertScaler, inputs: Sequence[ExpertInput]
) -> Float[np.ndarray, " tokens"]:
    """Mean |change of the log-odds| of masking each token alone."""
    before = judge(inputs)
    return np.array(
        [
            np.abs(judge([scaler.mask(entry, [token]) for entry in inputs]) - before).mean()
            for token in range(len(scaler.features) + 1)
        ]
    )


def area_between(
    method: Float[np.ndarray, " patients"],
    other: Float[np.ndarray, " patients"],
    seed: int = 0,
    num_resamples: int = 1000,
) -> AreaBetween:
    """Mean of the patients' area minus another one, and its patient-level bootstrap interval."""
    difference = method - other
    low, high = bootstrap_mean(difference, num_resamples, seed).interval()
    return AreaBetween(area=float(difference.mean()), low=low, high=high)


_KINDS = ("deletion", "insertion")


def _curves(
    judge: Judge,
    scaler: ExpertScaler,
    inputs: Sequence[ExpertInput],
    orders: Orders,
    num_steps: int,
) -> dict[str, Curve]:
    everything = range(len(scaler.features) + 1)

    def curve(masked: Callable[[Sequence[int], int], Sequence[int]]) -> Curve:
        asked = [
            scaler.mask(entry, masked(order, step))
            for step in range(num_steps + 1)
            for entry, order in zip(inputs, orders, strict=True)
        ]
        parts = [
            judge(asked[start : start + _PATIENTS]) for start in range(0, len(asked), _PATIENTS)
        ]
        return Curve(log_odds=np.concatenate(parts).reshape(num_steps + 1, len(inputs)))

    def left_out(order: Sequence[int], step: int) -> Sequence[int]:
        return sorted(set(everything) - set(order[:step]))

    return {"deletion": curve(lambda order, step: order[:step]), "insertion": curve(left_out)}


def _candidates(inputs: Sequence[ExpertInput]) -> Bool[np.ndarray, "patients tokens"]:
    return np.array([[*entry.observed, True] for entry in inputs], dtype=bool)


def _judge(
    plans: Sequence[MemberPlan],
    risks: Callable[[Sequence[ExpertInput]], Float[np.ndarray, "members patients"]],
) -> Judge:
    def answer(inputs: Sequence[ExpertInput]) -> Float[np.ndarray, " patients"]:
        weights = fair_weights(was_seen(plans, [entry.patient_id for entry in inputs]))
        risk = (risks(inputs) * weights).sum(axis=0)
        return logit(np.clip(risk, _RISK_MARGIN, 1 - _RISK_MARGIN))

    return answer
