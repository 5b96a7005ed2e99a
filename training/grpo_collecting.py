"""Collecting the rollouts of a step: sampled, rewarded, dead groups replaced."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from actors.rollouts import Rollout, RolloutBatch, RolloutPrompt, rollouts_in_flight
from ehr.names import FeatureMatcher
from ehr.pieces import TextTokenizer
from services.types import PolicyVersion
from training.grpo_batch import (
    PatientStream,
    ScoredGroup,
    TrainingBatch,
    rollout_metrics,
    score_group,
    training_batch,
)
from training.grpo_inputs import LINEAGE, GrpoInputs


class GroupSampler(Protocol):
    """Samples groups of rollouts: a Ray actor, or a sampler in this process."""

    async def sample_groups(self, batch: RolloutBatch) -> list[list[Rollout]]:
        """A group of rollouts for every prompt of the batch, in order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectedStep:
    """The rollouts of a step, ready for the learner."""

    batch: TrainingBatch
    groups: tuple[ScoredGroup, ...]
    metrics: dict[str, Any]


class RolloutCollector:
    """Samples and scores the groups of a step.

    Args:
        inputs: everything Stage-2 reads.
        sampler: samples rollouts.
        tokenizer: of the policy.
        clock: seconds, for the metrics.
    """

    def __init__(
        self,
        inputs: GrpoInputs,
        sampler: GroupSampler,
        tokenizer: TextTokenizer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inputs = inputs
        self._sampler = sampler
        self._tokenizer = tokenizer
        self._clock = clock
        self._matcher = FeatureMatcher(inputs.features)
        self._stream = PatientStream(inputs.patients, inputs.grpo)

    async def collect(self, step: int) -> CollectedStep:
        """The rollouts of a step (from 1), sampled by the policy that the step before made.

        Raises:
            TrainingError: if a reward is not finite; names the patient.
        """
        section = self._inputs.grpo
        started = self._clock()
        groups = await self._sample(step, 0)
        num_dead = sum(group.is_dead for group in groups)
        num_refills = 0
        while section.dynamic_sampling and num_refills < section.max_refills:
            dead = [i for i, group in enumerate(groups) if group.is_dead]
            if not dead:
                break
            num_refills += 1
            taken = {group.patient.patient_id for group in groups}
            fresh = [
                group
                for group in await self._sample(step, num_refills)
                if not group.is_dead and group.patient.patient_id not in taken
            ]
            for i, group in zip(dead, fresh, strict=False):
                groups[i] = group
        metrics = {
            **rollout_metrics(groups, self._matcher, self._inputs.num_salient_features),
            "rollout/dead_groups_drawn": num_dead,
            "rollout/refills": num_refills,
            "time/rollout_s": self._clock() - started,
        }
        batch = training_batch(step, groups, section, self._tokenizer, self._matcher)
        return CollectedStep(batch=batch, groups=tuple(groups), metrics=metrics)

    async def _sample(self, step: int, refill: int) -> list[ScoredGroup]:
        section = self._inputs.grpo
        patients = self._stream.draw(step, refill)
        prompts = tuple(
            RolloutPrompt(patient_id=p.patient_id, token_ids=p.prompt_token_ids) for p in patients
        )
        batch = RolloutBatch(
            prompts=prompts,
            group_size=section.group_size,
            least=PolicyVersion(lineage=LINEAGE, version=step - 1),
            # Patients differ between refills; the step alone makes every request's seed new.
            seed=section.seed * 1_000_003 + step,
            max_in_flight=rollouts_in_flight(
                prompts, section.group_size, section.max_new_tokens, self._inputs.cache_tokens
            ),
        )
        rollouts = await self._sampler.sample_groups(batch)
        return [
            score_group(patient, group, self._inputs.reward, self._matcher, section.accuracy_weight)
            for patient, group in zip(patients, rollouts, strict=True)
        ]
