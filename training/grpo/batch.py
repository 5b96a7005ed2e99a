"""A rollout batch of Stage-2 as data: which patients, what their rollouts earn, what is trained."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from actors.rollouts import PatternSpan, Rollout
from ehr.catalogue.names import FeatureMatcher
from ehr.config import RewardSection
from ehr.language.guided_format import PROBABILITY_REGEX
from ehr.language.pieces import TextTokenizer
from ehr.language.trajectory import ParsedTrajectory, parse_trajectory
from ehr.rewards import Reward, attention_gains, classification_reward, reward
from training.config.grpo import GrpoSection
from training.grpo.advantages import RolloutAdvantage, rollout_advantages, token_advantages
from training.grpo.patients import GrpoPatient
from training.learner.packing import TokenGroup
from training.objective.advantage import is_dead
from training.objective.entropy import salient_token_mask


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRollout:
    """A rollout with its reward."""

    rollout: Rollout
    parsed: ParsedTrajectory
    reward: Reward
    name_gains: tuple[float, ...] = ()
    """What each name adds to R_att, where `grpo.credit` asks."""
    number_rewards: tuple[float, ...] = ()
    """R_cls of 0.00 to 0.99, where `grpo.credit` asks and the written one can be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """The rollouts of one patient."""

    patient: GrpoPatient
    rollouts: tuple[ScoredRollout, ...]
    accuracy_weight: float
    """lambda."""

    @property
    def rewards(self) -> torch.Tensor:
        """R of each rollout, float64."""
        return torch.tensor([each.reward.total for each in self.rollouts], dtype=torch.float64)

    @property
    def rollout_names(self) -> list[str]:
        """Names of the rollouts for messages."""
        return [f"patient {self.patient.patient_id} rollout {i}" for i in range(len(self.rollouts))]

    @property
    def is_dead(self) -> bool:
        """All rewards are equal: there is nothing to learn from it."""
        return is_dead(self.rewards)

    @property
    def oldest_version(self) -> int:
        """Version of the oldest policy that wrote a token of it."""
        return min(each.rollout.oldest_policy.version for each in self.rollouts)

    @property
    def num_written_tokens(self) -> int:
        """Tokens that the model wrote."""
        return sum(sum(each.rollout.model_written) for each in self.rollouts)


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskCredit:
    """What a response's written risk could have earned, with `grpo.credit: exact_risk`."""

    start: int
    """Place of the number's first token in the response."""
    rewards: tuple[float, ...]
    """R_cls of each of 0.00 to 0.99."""
    scale: float
    """What a difference of R_cls is divided by to become an advantage, above 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedSequence:
    """What the loss needs to know of one response, per trained (model-written) token."""

    patient_id: str
    advantages: tuple[float, ...]
    """One number for all tokens, or what `grpo.credit` says."""
    salient: tuple[bool, ...]
    generator_logprobs: tuple[float, ...]
    constrained: tuple[bool, ...]
    """Sampled under a pattern or a list of allowed tokens (`Rollout.constrained`)."""
    patterns: tuple[PatternSpan, ...] = ()
    """Which tokens of the response under which pattern."""
    risk: RiskCredit | None = None
    """The number's tokens have advantage 0 and this in its place; None = they are trained as they
    were sampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBatch:
    """What the learner receives for one step."""

    step: int
    groups: tuple[TokenGroup, ...]
    sequences: tuple[tuple[TrainedSequence, ...], ...]
    """Per group, the same order as its responses."""
    updates: tuple[tuple[int, ...], ...]
    """Groups of each optimizer update, every class spread over them."""


def score_group(
    patient: GrpoPatient,
    rollouts: Sequence[Rollout],
    section: RewardSection,
    matcher: FeatureMatcher,
    grpo: GrpoSection,
) -> ScoredGroup:
    """Reward every rollout of a patient; a truncated one is a format failure.

    Args:
        patient: whose label and C_exp.
        rollouts: at least two.
        section: the reward.
        matcher: of the cohort's features.
        grpo: overrides lambda, and says whether names are credited one by one and numbers exactly.
    """
    weight = section.accuracy_weight if grpo.accuracy_weight is None else grpo.accuracy_weight
    scored = []
    for rollout in rollouts:
        parsed = parse_trajectory(rollout.text)
        if rollout.truncated and parsed.failure is None:
            parsed = replace(parsed, failure="truncated")
        earned = reward(parsed, patient.context, section, matcher, weight)
        is_exact = grpo.credit == "exact_risk" and earned.format_failure is None
        scored.append(
            ScoredRollout(
                rollout=rollout,
                parsed=parsed,
                reward=earned,
                name_gains=attention_gains(parsed, patient.context, section, matcher)
                if grpo.credit == "by_name"
                else (),
                number_rewards=_number_rewards(patient.context.label, section) if is_exact else (),
            )
        )
    return ScoredGroup(
        patient=patient,
        rollouts=tuple(scored),
        accuracy_weight=weight,
    )


def _number_rewards(label: int, section: RewardSection) -> tuple[float, ...]:
    return tuple(classification_reward(number / 100, label, section) for number in range(100))


def training_batch(
    step: int,
    groups: Sequence[ScoredGroup],
    section: GrpoSection,
    tokenizer: TextTokenizer,
    matcher: FeatureMatcher,
) -> TrainingBatch:
    """Advantages, salient tokens and mini-batches of a step.

    Raises:
        TrainingError: if a reward is not finite; names the patient.
    """
    advantages = rollout_advantages(
        [[each.reward for each in group.rollouts] for group in groups],
        [group.accuracy_weight for group in groups],
        section,
        [group.rollout_names for group in groups],
        [[each.name_gains for each in group.rollouts] for group in groups],
    )
    return TrainingBatch(
        step=step,
        groups=tuple(
            TokenGroup(
                patient_id=group.patient.patient_id,
                prompt=group.patient.prompt_token_ids,
                responses=tuple(each.rollout.token_ids for each in group.rollouts),
                trained=tuple(each.rollout.model_written for each in group.rollouts),
            )
            for group in groups
        ),
        sequences=tuple(
            _sequences(group, of_group, section, tokenizer, matcher)
            for group, of_group in zip(groups, advantages, strict=True)
        ),
        updates=_updates(step, [group.patient.context.label for group in groups], section),
    )


def _updates(step: int, labels: Sequence[int], section: GrpoSection) -> tuple[tuple[int, ...], ...]:
    """Groups of each update, shuffled, with as equal a share of positives as can be.

    R_cls of four patients, three of them positive, is raised fastest by higher probabilities for
    everybody: chance in a small update's shares would move the mean prediction to and fro.
    """
    draw = random.Random(f"{section.seed} updates {step}")
    order = list(range(len(labels)))
    draw.shuffle(order)
    order.sort(key=lambda number: labels[number])  # stable: random within a class
    num = section.updates_per_step
    updates = [tuple(order[i::num]) for i in range(num)]
    draw.shuffle(updates)
    return tuple(updates)


def _sequences(
    group: ScoredGroup,
    advantages: Sequence[RolloutAdvantage],
    section: GrpoSection,
    tokenizer: TextTokenizer,
    matcher: FeatureMatcher,
) -> tuple[TrainedSequence, ...]:
    sequences = []
    for each, advantage in zip(group.rollouts, advantages, strict=True):
        rollout = each.rollout
        written = rollout.model_written
        salient = salient_token_mask(rollout.token_ids, tokenizer, section.salient_tokens, matcher)
        of_tokens = token_advantages(rollout.token_ids, tokenizer, advantage)
        number = _written_number(rollout) if each.number_rewards and advantage.risk_scale else None
        risk = None
        if number is not None:
            of_tokens[number.start : number.stop] = [0.0] * (number.stop - number.start)
            risk = RiskCredit(
                start=number.start, rewards=each.number_rewards, scale=advantage.risk_scale
            )
        sequences.append(
            TrainedSequence(
                patient_id=group.patient.patient_id,
                advantages=tuple(itertools.compress(of_tokens, written)),
                salient=tuple(itertools.compress(salient, written)),
                generator_logprobs=tuple(itertools.compress(rollout.generator_logprobs, written)),
                constrained=tuple(itertools.compress(rollout.constrained, written)),
                patterns=rollout.patterns,
                risk=risk,
            )
        )
    return tuple(sequences)


def _written_number(rollout: Rollout) -> PatternSpan | None:
    """The tokens of the answer's risk: the last ones that were sampled under its pattern."""
    found = [each for each in rollout.patterns if each.regex == PROBABILITY_REGEX]
    return found[-1] if found else None
