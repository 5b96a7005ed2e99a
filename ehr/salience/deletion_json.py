"""Deletion and insertion curves as an object for a JSON file.

`benchmarks.salience` compares methods under several judges; the expert stage keeps the curves of
the run's own method, by that method's own out-of-fold ensemble.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ehr.expert.opinions import SalienceEnsemble
from ehr.expert.view import ExpertInput
from ehr.salience.deletion import (
    AreaBetween,
    Bench,
    Curve,
    bench,
    method_orders,
    own_judge,
)


def own_deletion(
    scorer: SalienceEnsemble,
    inputs: Mapping[str, ExpertInput],
    labels: Mapping[str, int],
    ids: Sequence[str],
    max_patients: int,
    seed: int,
) -> dict[str, Any]:
    """Curves of a method's orders by its own out-of-fold ensemble, and who was asked.

    Keys: `judge`, `num_patients`, `num_steps`, `num_random_orders`, `seed`, then `deletion` and
    `insertion` as in `deletion_curves`.

    Args:
        scorer: scores features and judges.
        inputs: holds all of `ids`.
        labels: holds them too.
        ids: patients to draw from, in an order that can be repeated.
        max_patients: at least 1.
        seed: of the draw, the random orders and the bootstrap.

    Raises:
        DataError: if there is no patient.
    """
    asked = [inputs[patient] for patient in judged_patients(ids, max_patients, seed)]
    against = bench(own_judge(scorer), scorer.scaler, asked, seed=seed)
    scores = scorer.predict(asked).mean_scores()
    return {
        "judge": "own",
        "num_patients": len(asked),
        "num_steps": against.num_steps,
        "num_random_orders": len(against.random["deletion"]),
        "seed": seed,
        **deletion_curves(against, scores, [labels[entry.patient_id] for entry in asked]),
    }


def judged_patients(ids: Sequence[str], most: int, seed: int) -> list[str]:
    """At most `most` of the patients, drawn with the seed, in the order of `ids`."""
    chosen = np.random.default_rng(seed).permutation(len(ids))[:most]
    return [ids[int(index)] for index in sorted(chosen)]


def deletion_curves(
    against: Bench, scores: Float[np.ndarray, "patients tokens"], labels: Sequence[int]
) -> dict[str, Any]:
    """A method's curves beside random and best constant orders, for `deletion` and `insertion`.

    Each has `vs_random` and `vs_constant` (`area` between the curves, with the `low` and `high` of
    its 95 % interval over patients), and the curves `method`, `random` (mean of the orders) and
    `constant`, each with `mean_change_of_log_odds` and `auroc` after k = 0..K steps.

    Args:
        against: patients, judge, and the curves to compare with.
        scores: the method's, of the same patients.
        labels: 0 or 1 of the same patients.
    """
    result: dict[str, Any] = {}
    for kind, curve in against.curves(method_orders(scores, against.inputs)).items():
        result[kind] = {
            "vs_random": _area(against.versus_random(curve, kind)),
            "vs_constant": _area(against.versus_constant(curve, kind)),
            "method": _curve(curve, labels),
            "random": _mean_curve([_curve(each, labels) for each in against.random[kind]]),
            "constant": _curve(against.constant[kind], labels),
        }
    return result


def _area(between: AreaBetween) -> dict[str, float | None]:
    return {"area": between.area, "low": between.low, "high": between.high}


def _curve(curve: Curve, labels: Sequence[int]) -> dict[str, list[Any]]:
    return {
        "mean_change_of_log_odds": curve.change().mean(axis=1).tolist(),
        "auroc": curve.auroc(labels),
    }


def _mean_curve(curves: Sequence[Mapping[str, list[Any]]]) -> dict[str, list[Any]]:
    # An AUROC that does not exist, for lack of a class, exists in no curve of these patients.
    return {
        name: [
            None if steps[0] is None else float(np.mean(steps))
            for steps in zip(*(curve[name] for curve in curves), strict=True)
        ]
        for name in curves[0]
    }
