"""What a finished trajectory is worth to the search: the expert's side of Algorithm 1."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ehr.config import RewardSection
from ehr.names import FeatureMatcher
from ehr.rewards import RewardContext, reward
from ehr.trajectory import ParsedTrajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a finished trajectory is worth."""

    value: float
    """What is backpropagated: R of Eq. 7."""
    cls: float
    """R_cls of Eq. 4."""
    att: float
    """R_att, Eq. 6 or its weighted form."""
    format_failure: str | None
    """Why the format failed; None = readable."""
    correct: bool
    """Whether the probability lies on the label's side of the decision threshold."""
    features: tuple[str, ...]
    """Canonical names of its important features."""


class Judge(Protocol):
    """Values one patient's trajectories; whatever it knows reaches no prompt."""

    def __call__(self, parsed: ParsedTrajectory, usefulness: Sequence[float]) -> Verdict:
        """The verdict on a finished trajectory.

        Args:
            parsed: the trajectory as read.
            usefulness: r of Eq. 3 of the scored steps on its path.
        """
        ...


@dataclass(frozen=True, slots=True)
class RewardJudge:
    """The reward of Eq. 7; the only holder of the label and of C_exp."""

    context: RewardContext
    section: RewardSection
    matcher: FeatureMatcher

    def __call__(self, parsed: ParsedTrajectory, usefulness: Sequence[float]) -> Verdict:
        """The verdict on a trajectory; its usefulness never enters it."""
        predicted = (parsed.probability or 0.0) >= self.section.decision_threshold
        found = reward(parsed, self.context, self.section, self.matcher)
        return Verdict(
            value=found.total,
            cls=found.cls,
            att=found.att,
            format_failure=found.format_failure,
            correct=parsed.probability is not None and predicted == bool(self.context.label),
            features=tuple(sorted(self.matcher.canonical_set(parsed.features))),
        )
