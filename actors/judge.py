"""What a finished trajectory is worth to the search: the expert's side of Algorithm 1."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, Protocol

from actors.reading import NEUTRAL_SCORE, usefulness_of
from ehr.catalogue.names import FeatureMatcher
from ehr.config import RewardSection
from ehr.language.trajectory import ParsedTrajectory
from ehr.rewards import RewardContext, Salience, attention_reward, format_failure, reward

ValueKind = Literal["reward", "label_free"]
"""What a search maximised: R of Eq. 7, or the value that knows no label."""

LABEL_FREE_FLOOR = 0.0
"""Label-free value of a format failure: the least that a readable trajectory can have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a finished trajectory is worth."""

    kind: ValueKind
    value: float
    """What is backpropagated."""
    cls: float | None
    """R_cls of Eq. 4; None without a label."""
    att: float
    """R_att, Eq. 6 or its weighted form."""
    format_failure: str | None
    """Why the format failed; None = readable."""
    correct: bool | None
    """Whether the probability lies on the label's side of the threshold; None without a label."""
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
            kind="reward",
            value=found.total,
            cls=found.cls,
            att=found.att,
            format_failure=found.format_failure,
            correct=parsed.probability is not None and predicted == bool(self.context.label),
            features=tuple(sorted(self.matcher.canonical_set(parsed.features))),
        )


@dataclass(frozen=True, slots=True)
class LabelFreeJudge:
    """Usefulness and agreement with the expert: a value for patients whose outcome is unknown.

    V = w * U + (1 - w) * A in [0, 1], where U is the mean usefulness r (Eq. 3) of the scored steps
    on the path, the neutral one if none was scored, and A the agreement with the expert: the mean
    of the plain Jaccard overlap of named features and C_exp (Eq. 6) and, where the expert's risk is
    known, of 1 - |p - p_expert|. A format failure gets `LABEL_FREE_FLOOR`.

    Not in the paper. There is no label in it: no field could hold one.
    """

    salience: Salience
    usefulness_weight: float
    """w."""
    matcher: FeatureMatcher

    def __call__(self, parsed: ParsedTrajectory, usefulness: Sequence[float]) -> Verdict:
        """The verdict on a trajectory; it claims nothing about what is correct."""
        failure = format_failure(parsed, self.matcher)
        features = self.matcher.canonical_set(parsed.features)
        overlap = attention_reward(features, self.salience.features)
        value = LABEL_FREE_FLOOR
        if failure is None and parsed.probability is not None:
            agreement = [overlap]
            if self.salience.risk is not None:
                agreement.append(1 - abs(parsed.probability - self.salience.risk))
            useful = fmean(usefulness) if usefulness else usefulness_of(NEUTRAL_SCORE)
            weight = self.usefulness_weight
            value = weight * useful + (1 - weight) * fmean(agreement)
        return Verdict(
            kind="label_free",
            value=value,
            cls=None,
            att=overlap if failure is None else 0.0,
            format_failure=failure,
            correct=None,
            features=tuple(sorted(features)),
        )
