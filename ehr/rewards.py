"""Rewards of a trajectory, Eq. 4-7: classification, attention alignment, and their mix."""

import itertools
import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from ehr.catalogue.names import FeatureMatcher
from ehr.config import RewardSection
from ehr.errors import DataError
from ehr.language.trajectory import ParsedTrajectory

MIN_PROBABILITY = 0.01
"""Probabilities are clipped to [this, 1 - this]: two written digits cannot claim more."""

MAX_FEATURE_NAMES = 10
"""More names than this, duplicates counted, is a format failure: listing all must not pay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Salience:
    """What the expert attends to in a patient, and how surely."""

    features: frozenset[str]
    """C_exp: canonical names of the features that the expert attended to most."""
    stability: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Weight of each of `features` in [0, 1], from `ehr.salience.table.stability_weights` or
    `weighed_by_rarity`; empty where the members behind C_exp are not known."""
    risk: float | None = None
    """The expert's risk of the patient; None where only its features were asked for. Of a training
    patient it comes from members that did not see the patient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardContext:
    """What a reward may see of a patient and no prompt ever does."""

    patient_id: str
    label: int
    """1 = the event of the task happened."""
    salient_features: frozenset[str]
    """C_exp: canonical names of the features that the expert attended to most."""
    stability: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Weight of each salient feature; read with `reward.attention_weighting=stability` only, which
    Stage 2 sets itself for `grpo.rare_features`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """Reward of one trajectory and its parts."""

    total: float
    """R of Eq. 7."""
    cls: float
    """R_cls of Eq. 4; that of the worst prediction after a format failure."""
    att: float
    """R_att: Eq. 6, or its weighted form (`reward.attention_weighting`)."""
    format_failure: str | None
    """Why the format failed; None = readable."""


def classification_reward(probability: float, label: int, section: RewardSection) -> float:
    """Score of the prediction plus the margin bonus, R_cls in Eq. 4-5.

    The score is the log-likelihood of the label (Eq. 4, [-4.605, -.010]), or with `score: brier`
    one minus Brier's own sum over both outcomes, 1 - 2 (p - y)^2 ([-.9602, .9998]). Both are
    proper: without the bonus, a true risk pays best when it is written. Source of the second:
    Brier 1950, "Verification of Forecasts Expressed in Terms of Probability".

    Args:
        probability: predicted probability of the event; clipped to [0.01, 0.99].
        label: 1 = the event happened.
        section: score, decision threshold and margin bonus.
    """
    p = min(max(probability, MIN_PROBABILITY), 1 - MIN_PROBABILITY)
    margin = p - section.decision_threshold if label == 1 else section.decision_threshold - p
    return _score(p if label == 1 else 1 - p, section) + section.margin_bonus * max(margin, 0.0)


def worst_classification_reward(section: RewardSection) -> float:
    """R_cls of the worst prediction there is, which is that of a format failure.

    Args:
        section: which score.

    Returns:
        log .01, or -.9602 with `score: brier`; no R_cls is below it.
    """
    return _score(MIN_PROBABILITY, section)


def _score(of_label: float, section: RewardSection) -> float:
    """What the probability of the label that turned out true is worth."""
    if section.score == "brier":
        return 1 - 2 * (1 - of_label) ** 2
    return math.log(of_label)


def attention_reward(features: AbstractSet[str], salient: AbstractSet[str]) -> float:
    """Jaccard similarity of the model's and the expert's features, R_att in Eq. 6.

    Two empty sets leave 0/0; they score 0, since nothing was named.
    """
    union = features | salient
    return len(features & salient) / len(union) if union else 0.0


def weighted_attention_reward(
    features: AbstractSet[str], salient: AbstractSet[str], stability: Mapping[str, float]
) -> float:
    """R_att of Eq. 6 with every salient feature counted by its weight.

    A named feature outside C_exp costs as much as a salient one is worth on average:
    sum of w over named and salient / (sum of w over C_exp + named outside C_exp * mean w).
    Equal weights give the plain Jaccard, and so do weights that are all 0; with weights above 0
    it is 1 only where the sets are equal.

    Args:
        features: canonical names in the answer.
        salient: C_exp.
        stability: weight of every feature of C_exp, not negative.

    Raises:
        DataError: if a salient feature has no weight.
    """
    missing = sorted(salient - stability.keys())
    if missing:
        raise DataError(
            "a reward that counts by weight (reward.attention_weighting=stability, "
            "grpo.rare_features) needs the weight of every salient feature; there is none for "
            f"{missing[:5]}. Train the expert again (--redo expert), export the run again, or "
            "switch the setting off."
        )
    total = math.fsum(stability[name] for name in salient)  # the same in any order of a set
    if total <= 0:
        return attention_reward(features, salient)
    shared = math.fsum(stability[name] for name in features & salient)
    return shared / (total + len(features - salient) * total / len(salient))


def format_failure(parsed: ParsedTrajectory, matcher: FeatureMatcher) -> str | None:
    """Why a trajectory gets the floor, in a few words; None = it is readable."""
    if parsed.failure is not None:
        return parsed.failure
    if _num_names(parsed.features, matcher) > MAX_FEATURE_NAMES:
        return "too many features"
    return "no probability" if parsed.probability is None else None


def reward(
    parsed: ParsedTrajectory,
    context: RewardContext,
    section: RewardSection,
    matcher: FeatureMatcher,
    accuracy_weight: float | None = None,
) -> Reward:
    """Composite reward of a trajectory, R in Eq. 7.

    A format failure (no readable probability, or more than `MAX_FEATURE_NAMES` names) scores as
    the worst prediction without any feature. A readable answer without features loses R_att only.

    Args:
        parsed: the trajectory as read.
        context: label and C_exp of its patient.
        section: weights and threshold.
        matcher: maps written names to canonical ones; unknown names enlarge the union.
        accuracy_weight: overrides `section.accuracy_weight`.
    """
    weight = section.accuracy_weight if accuracy_weight is None else accuracy_weight
    failure = format_failure(parsed, matcher)
    if failure is not None or parsed.probability is None:
        worst = worst_classification_reward(section)
        return Reward(total=weight * worst, cls=worst, att=0.0, format_failure=failure)
    cls = classification_reward(parsed.probability, context.label, section)
    att = _attention(parsed.features, context, section, matcher)
    return Reward(total=weight * cls + (1 - weight) * att, cls=cls, att=att, format_failure=None)


def attention_gains(
    parsed: ParsedTrajectory,
    context: RewardContext,
    section: RewardSection,
    matcher: FeatureMatcher,
) -> tuple[float, ...]:
    """What each written name adds to R_att, in their order; the sum is R_att of `reward`.

    A name outside C_exp takes something away; one that came before adds nothing, or counts as
    outside (`reward.repeated_names`).

    Args:
        parsed: the trajectory as read.
        context: C_exp of its patient.
        section: how R_att counts.
        matcher: maps written names to canonical ones.

    Returns:
        One number a name; none after a format failure, which has no R_att.
    """
    if format_failure(parsed, matcher) is not None:
        return ()
    written = parsed.features
    reached = [
        _attention(written[:count], context, section, matcher) for count in range(len(written) + 1)
    ]
    return tuple(after - before for before, after in itertools.pairwise(reached))


def _attention(
    written: Sequence[str], context: RewardContext, section: RewardSection, matcher: FeatureMatcher
) -> float:
    named: AbstractSet[str] = matcher.canonical_set(written)
    if section.repeated_names == "wrong":
        # Each is a member of its own outside C_exp; no name that can be written is a number.
        repeats = _num_names(written, matcher) - len(named)
        named = named | {str(number) for number in range(repeats)}
    if section.attention_weighting == "stability":
        return weighted_attention_reward(named, context.salient_features, context.stability)
    return attention_reward(named, context.salient_features)


def _num_names(written: Sequence[str], matcher: FeatureMatcher) -> int:
    """Names in a list, duplicates counted; "pH and glucose" are two."""
    if len(written) > MAX_FEATURE_NAMES:
        return len(written)
    return sum(len(matcher.members(each)) for each in written)
