"""How much of what was trained is served: the learner's change of a text against the generator's.

Agreement after a sync (`canary/mean_abs`) does not tell a small update that is lost from one that
arrives: both leave the two close to each other. So the changes are compared, each since the policy
that both were first seen with.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

_NOISE_FACTOR = 4.0
"""Times the disagreement at the start that a change must be for a share to mean anything. Rounding
in the learner's own two passes then lowers the share by 1 / (1 + 4^2), 6 %, at most."""

_LEAST_CHANGE = 1e-3
"""Nats; below it nothing was trained that matters, whatever the arithmetic resolves."""

_STANDARD_ERRORS = 2.0
"""Standard errors by which a share must be outside its limits to count as outside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedChange:
    """The change of one text's log-probabilities, in nats a token."""

    trained: float
    """Root mean square of the learner's change."""
    difference: float
    """Mean |served - trained| change."""
    share: float | None
    """Served over trained; None where the trained change is not above the noise."""
    standard_error: float | None
    """Of the share, from how tokens scatter about it."""

    def is_off(self, tolerance: float) -> bool:
        """Whether the share is clearly further from 1 than `tolerance`."""
        if self.share is None or self.standard_error is None:
            return False
        # a share that is no number is off: `not <=`, which NaN fails
        return not abs(self.share - 1) - _STANDARD_ERRORS * self.standard_error <= tolerance

    def metrics(self) -> dict[str, Any]:
        """As `metrics.jsonl` has them; a share that is not known is left out."""
        known = {} if self.share is None else {"sync/served_share": self.share}
        return {
            **known,
            "sync/trained_change": self.trained,
            "sync/change_mean_abs": self.difference,
        }


def served_change(
    learner: Sequence[float],
    served: Sequence[float],
    learner_before: Sequence[float],
    served_before: Sequence[float] | None,
    least: float = 0.0,
) -> ServedChange:
    """The served share of the trained change of one text.

    The share is the slope, through the origin, of the served change of each token on its trained
    change: sum(x y) / sum(x^2). A ratio of means would be anything where some tokens become
    likelier and others less likely, and a mean of ratios is ruled by tokens that hardly changed;
    here a token counts by the square of its change. Through the origin, since no change must be
    served as none.

    A bfloat16 learner and its engine disagree by some hundredths of a nat on the same weights. Both
    changes carry that noise, so a slope on a change of its size says nothing. The noise is the root
    mean square of their disagreement before training, and the share is reported where the trained
    change is several times that. In float32 the noise is some millionths, and the share is known
    from the first update on.

    Args:
        learner: the learner's log-probability of each token, now.
        served: one replica's, now.
        learner_before: the learner's, before training.
        served_before: the same replica's, or another's of the same policy; None = never asked, the
            learner's own stands in for it.
        least: change in nats below which no share is reported, besides the two floors above; for
            callers that have not measured the noise.
    """
    reference = learner_before if served_before is None else served_before
    x = [now - then for now, then in zip(learner, learner_before, strict=True)]
    y = [now - then for now, then in zip(served, reference, strict=True)]
    noise = _rms([a - b for a, b in zip(learner_before, reference, strict=True)])
    trained = _rms(x)
    difference = fmean(abs(b - a) for a, b in zip(x, y, strict=True))
    if trained < max(_NOISE_FACTOR * noise, _LEAST_CHANGE, least):
        return ServedChange(trained=trained, difference=difference, share=None, standard_error=None)
    squares = sum(a * a for a in x)
    share = sum(a * b for a, b in zip(x, y, strict=True)) / squares
    scatter = sum((b - share * a) ** 2 for a, b in zip(x, y, strict=True))
    return ServedChange(
        trained=trained,
        difference=difference,
        share=share,
        standard_error=math.sqrt(scatter / max(1, len(x) - 1) / squares),
    )


def worst(changes: Sequence[ServedChange]) -> ServedChange:
    """Of several replicas the one whose share is furthest from 1, else that which differs most.

    A mean over replicas would hide one that serves something else.
    """
    return max(
        changes,
        key=lambda each: (
            -1.0 if each.share is None else abs(each.share - 1),
            each.difference,
        ),
    )


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(fmean(value * value for value in values))
