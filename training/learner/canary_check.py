"""Whether generators serve the policy that a learner has, by the canary's log-probabilities."""

import logging
import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from ehr.errors import TrainingError
from training.config.grpo import GrpoSection
from training.learner.canary import CanaryRecord
from training.learner.served_change import ServedChange, served_change, worst

logger = logging.getLogger(__name__)

_CANARY_GROWTH = 3.0
"""Times the mean difference measured at version 0."""


def check_canary(
    learner: tuple[float, ...],
    served: Sequence[tuple[float, ...]],
    before: CanaryRecord | None,
    limits: GrpoSection,
    policy: str,
    least_change: float = 0.0,
) -> dict[str, Any]:
    """How learner and generators agree on a policy, as `metrics.jsonl` has it.

    Args:
        learner: its log-probability of each token of the canary, in nats.
        served: each replica's.
        before: of the same canary before the change that is looked at; None = nothing is known.
        limits: `canary_tolerance`, `served_share_warning` and `served_share_tolerance`.
        policy: names it in messages.
        least_change: see `served_change`.

    Raises:
        TrainingError: if a limit is passed: the generators do not serve this policy.
    """
    differences = [
        ours - theirs for each in served for ours, theirs in zip(learner, each, strict=True)
    ]
    found = fmean(map(abs, differences))
    baseline = 0.0 if before is None else before.mean_abs_before
    limit = max(limits.canary_tolerance, _CANARY_GROWTH * baseline)
    if not found <= limit:
        raise TrainingError(
            f"expected learner and generator to agree on the canary prompt after the sync of "
            f"{policy}: mean |difference| at most {limit:.3f}, got {found:.3f} ({baseline:.3f} "
            "before training); the generators do not serve what was trained; look at their logs, "
            "or raise grpo.canary_tolerance"
        )
    metrics: dict[str, Any] = {
        "canary/mean_abs": found,
        "canary/max_abs": max(map(abs, differences)),
        # k3 of http://joschu.net/blog/kl-approx.html: at least 0, and 0 for equal policies.
        "canary/k3": fmean(math.expm1(each) - each for each in differences),
        "canary/limit": limit,
    }
    if before is None:
        return metrics
    change = worst(
        [
            served_change(
                learner, each, before.learner_before, before.served_mean_before, least_change
            )
            for each in served
        ]
    )
    _require_served(change, policy, limits)
    return metrics | change.metrics()


def _require_served(change: ServedChange, policy: str, limits: GrpoSection) -> None:
    """Warns of a share that is off 1, and stops at one that is far off."""
    if change.is_off(limits.served_share_tolerance):
        raise TrainingError(
            "expected the generators to serve what was trained: a share of the change of the "
            f"canary's log-probabilities within {limits.served_share_tolerance:g} of 1, got "
            f"{change.share:.2f} for {policy} (trained change {change.trained:.3f} nats, the "
            f"served one is off by {change.difference:.3f}); set model.dtype=float32 or "
            "generator.sync=adapter, or raise grpo.served_share_tolerance"
        )
    if change.is_off(limits.served_share_warning):
        logger.warning(
            "served share of the trained change is %.2f policy=%s trained_change=%.3f "
            "difference=%.3f",
            change.share,
            policy,
            change.trained,
            change.difference,
        )
