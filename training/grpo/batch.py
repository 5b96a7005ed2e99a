"""A rollout batch of Stage-2 as data: which patients, what their rollouts earn, what is trained."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev
from typing import Any

import torch

from actors.rollouts import PatternSpan, Rollout
from ehr.catalogue.names import FeatureMatcher
from ehr.config import RewardSection
from ehr.errors import DataError
from ehr.language.pieces import TextTokenizer
from ehr.language.trajectory import ParsedTrajectory, parse_trajectory
from ehr.rewards import Reward, RewardContext, attention_gains, reward
from ehr.salience.agreement import excess_jaccard
from training.config.run import GrpoSection
from training.grpo.advantages import RolloutAdvantage, rollout_advantages, token_advantages
from training.learner.packing import TokenGroup
from training.objective.advantage import is_dead
from training.objective.entropy import salient_token_mask

_NUM_SAMPLES = 4
"""Rollouts of a step that are kept for a person to read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoPatient:
    """A training patient of Stage-2."""

    prompt_token_ids: tuple[int, ...]
    context: RewardContext
    """Label and C_exp; they reach the reward and nothing else."""
    in_stage1: bool
    """Stage-1 trained on this patient: others come first."""

    @property
    def patient_id(self) -> str:
        """The patient."""
        return self.context.patient_id


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRollout:
    """A rollout with its reward."""

    rollout: Rollout
    parsed: ParsedTrajectory
    reward: Reward
    name_gains: tuple[float, ...] = ()
    """What each name adds to R_att, where `grpo.credit` asks."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBatch:
    """What the learner receives for one step."""

    step: int
    groups: tuple[TokenGroup, ...]
    sequences: tuple[tuple[TrainedSequence, ...], ...]
    """Per group, the same order as its responses."""
    updates: tuple[tuple[int, ...], ...]
    """Groups of each optimizer update, every class spread over them."""


def require_enough_patients(labels: Sequence[int], section: GrpoSection) -> None:
    """Refuses training patients of whom no batch can be drawn.

    Args:
        labels: outcome of each training patient.
        section: how many a step draws, and whether it balances them.

    Raises:
        DataError: if there are too few for one batch, or of one class with `grpo.balance`.
    """
    num = section.patients_per_step
    if section.balance:
        found, needed = [sum(labels), len(labels) - sum(labels)], [(num + 1) // 2] * 2
    else:
        found, needed = [len(labels)], [num]
    if any(have < want for have, want in zip(found, needed, strict=True)):
        raise DataError(
            f"Stage-2 draws {num} patients a step ({needed} "
            f"{'positives and negatives' if section.balance else 'of any class'}), the "
            f"training patients give {found}; lower grpo.patients_per_step, or set "
            "grpo.balance=false"
        )


class PatientStream:
    """The patients of every step, a function of the seed and the step alone."""

    def __init__(self, patients: Sequence[GrpoPatient], section: GrpoSection) -> None:
        """A stream over `patients`.

        Raises:
            DataError: if there are too few for one batch, or of one class with `grpo.balance`.
        """
        require_enough_patients([p.context.label for p in patients], section)
        self._section = section
        self._kinds = (
            [[p for p in patients if p.context.label == label] for label in (1, 0)]
            if section.balance
            else [list(patients)]
        )

    def draw(self, step: int, refill: int = 0) -> list[GrpoPatient]:
        """The patients of a step (from 1), or of its n-th refill."""
        section = self._section
        batches = 1 + (section.max_refills if section.dynamic_sampling else 0)
        number = (step - 1) * batches + refill
        shares = self._shares(number)
        chosen: list[GrpoPatient] = []
        for index, kind in enumerate(self._kinds):
            start = sum(self._shares(earlier)[index] for earlier in range(number))
            stream = itertools.islice(self._endless(kind), start, None)
            drawn: dict[str, GrpoPatient] = {}
            while len(drawn) < shares[index]:  # a pass may end inside a batch: no one twice in it
                patient = next(stream)
                drawn.setdefault(patient.patient_id, patient)
            chosen += drawn.values()
        return chosen

    def _shares(self, number: int) -> list[int]:
        num = self._section.patients_per_step
        if len(self._kinds) == 1:
            return [num]
        positives = (num + number % 2) // 2  # an odd one out is positive every other time
        return [positives, num - positives]

    def _endless(self, patients: list[GrpoPatient]) -> Iterator[GrpoPatient]:
        for lap in itertools.count():
            shuffled = sorted(patients, key=lambda patient: patient.patient_id)
            random.Random(f"{self._section.seed} patients {lap}").shuffle(shuffled)
            yield from sorted(shuffled, key=lambda patient: patient.in_stage1)


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
        grpo: overrides lambda, and says whether names are credited one by one.
    """
    weight = section.accuracy_weight if grpo.accuracy_weight is None else grpo.accuracy_weight
    scored = []
    for rollout in rollouts:
        parsed = parse_trajectory(rollout.text)
        if rollout.truncated and parsed.failure is None:
            parsed = replace(parsed, failure="truncated")
        scored.append(
            ScoredRollout(
                rollout=rollout,
                parsed=parsed,
                reward=reward(parsed, patient.context, section, matcher, weight),
                name_gains=attention_gains(parsed, patient.context, section, matcher)
                if grpo.credit == "by_name"
                else (),
            )
        )
    return ScoredGroup(
        patient=patient,
        rollouts=tuple(scored),
        accuracy_weight=weight,
    )


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
        sequences.append(
            TrainedSequence(
                patient_id=group.patient.patient_id,
                advantages=tuple(itertools.compress(of_tokens, written)),
                salient=tuple(itertools.compress(salient, written)),
                generator_logprobs=tuple(itertools.compress(rollout.generator_logprobs, written)),
                constrained=tuple(itertools.compress(rollout.constrained, written)),
                patterns=rollout.patterns,
            )
        )
    return tuple(sequences)


def rollout_metrics(
    groups: Sequence[ScoredGroup], matcher: FeatureMatcher, num_salient_features: int
) -> dict[str, Any]:
    """What a batch's rollouts say about the policy that wrote them."""
    scored = [each for group in groups for each in group.rollouts]
    totals = [each.reward.total for each in scored]
    failures = [each.reward.format_failure is not None for each in scored]
    jaccard = excess_jaccard(
        [matcher.canonical_set(each.parsed.features) for each in scored],
        [group.patient.context.salient_features for group in groups for _ in group.rollouts],
        num_salient_features,
    )
    written = [sum(each.rollout.model_written) for each in scored]
    return {
        "reward/mean": fmean(totals),
        "reward/std": pstdev(totals),
        "reward/cls_mean": fmean(each.reward.cls for each in scored),
        "reward/att_mean": fmean(each.reward.att for each in scored),
        "reward/excess": jaccard.excess,
        "rollout/dead_groups": sum(group.is_dead for group in groups),
        "rollout/groups": len(groups),
        "rollout/parse_failure_rate": fmean(failures),
        "rollout/truncated_rate": fmean(each.rollout.truncated for each in scored),
        "rollout/response_tokens": fmean(written),
        "tokens/prompt": sum(len(group.patient.prompt_token_ids) for group in groups),
        "tokens/response": sum(len(each.rollout.token_ids) for each in scored),
        "tokens/trained": sum(written),
    }


def rollout_samples(step: int, groups: Sequence[ScoredGroup]) -> list[dict[str, Any]]:
    """Some rollouts of a step with the parts of their rewards, for a person to read.

    Drawn evenly from all of them, seeded by the step: what the policy typically writes, neither its
    best nor its worst.
    """
    everything = [(group, index) for group in groups for index in range(len(group.rollouts))]
    drawn = random.Random(f"samples of step {step}").sample(
        range(len(everything)), min(_NUM_SAMPLES, len(everything))
    )
    samples = []
    for group, index in (everything[place] for place in sorted(drawn)):
        each = group.rollouts[index]
        samples.append(
            {
                "step": step,
                "patient_id": group.patient.patient_id,
                "rollout": index,
                "policy_version": each.rollout.newest_policy.version,
                "reward": each.reward.total,
                "reward_cls": each.reward.cls,
                "reward_att": each.reward.att,
                "probability": each.parsed.probability,
                "label": group.patient.context.label,
                "features": list(each.parsed.features),
                "format_failure": each.reward.format_failure,
                "is_dead_group": group.is_dead,
                "text": each.rollout.text,
            }
        )
    return samples
