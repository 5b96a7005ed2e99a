"""Collecting the rollouts of a step: sampled, rewarded, dead groups replaced, none too old."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol

from actors.rollouts import Rollout, RolloutBatch, RolloutPrompt, rollouts_in_flight
from ehr.catalogue.names import FeatureMatcher
from ehr.errors import StalePolicyError
from ehr.language.pieces import TextTokenizer
from services.types import PolicyVersion
from training.grpo.batch import (
    ScoredGroup,
    TrainingBatch,
    score_group,
    training_batch,
)
from training.grpo.dynamic_sampling import GroupFate, choose_groups
from training.grpo.inputs import GrpoInputs
from training.grpo.patients import GrpoPatient, PatientStream
from training.grpo.rollout_metrics import rollout_metrics

_MOST_SAMPLINGS = 3
"""Times that a group is sampled before a generator that ignores the oldest version it may use is
given up on. Replicas enforce that version themselves: one that does not is broken."""


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _AskedGroup:
    """A group that was asked for, finished or not."""

    patient: GrpoPatient
    scoring: asyncio.Task[ScoredGroup]


class RolloutCollector:
    """Samples and scores the groups of one step after another.

    A step's own batch is asked for first. Its dead groups give way (`grpo.dynamic_sampling`) to
    live ones left over from the step before, then to those of refill batches, which are asked for
    as soon as it is certain that they are needed. Which groups are taken depends on the order in
    which they were asked for, not on the order in which they finish.

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
        self._section = inputs.grpo
        self._sampler = sampler
        self._tokenizer = tokenizer
        self._clock = clock
        self._matcher = FeatureMatcher(inputs.features)
        self._stream = PatientStream(inputs.patients, inputs.grpo)
        self._buffer: list[_AskedGroup] = []
        self._num_refused = 0
        self.published_version = 0
        """Newest version that the generators have been given; what is asked for from now on is
        sampled by it or a newer one."""

    async def collect(self, step: int) -> CollectedStep:
        """The rollouts of a step (from 1), at most `grpo.max_staleness` versions behind it.

        Raises:
            StalePolicyError: if the generators answer with a policy that is older than that.
            TrainingError: if a reward is not finite; names the patient.
        """
        started = self._clock()
        self._num_refused = 0
        buffered, self._buffer = self._buffer, []
        asked = [*self._ask(step, 0), *buffered]
        try:
            taken, num_refills = await self._take(asked, step)
        except BaseException:
            _cancel(asked)
            raise
        left = [each for each in asked if each not in taken]
        self._buffer = self._left_over(left, step)
        dropped = [each for each in left if each not in self._buffer]
        _cancel(dropped)
        wasted = [each.scoring.result() for each in dropped if each.scoring.done()]
        groups = [each.scoring.result() for each in taken]
        metrics = {
            **rollout_metrics(groups, self._matcher, self._inputs.num_salient_features),
            **_age_metrics(groups, step),
            "rollout/dead_groups_drawn": sum(group.is_dead for group in [*groups, *wasted]),
            "rollout/refills": num_refills,
            "rollout/from_buffer": sum(each in buffered for each in taken),
            "rollout/refused": self._num_refused,
            "tokens/wasted": sum(group.num_written_tokens for group in wasted),
            "time/rollout_s": self._clock() - started,
        }
        batch = training_batch(step, groups, self._section, self._tokenizer, self._matcher)
        return CollectedStep(batch=batch, groups=tuple(groups), metrics=metrics)

    async def _take(self, asked: list[_AskedGroup], step: int) -> tuple[list[_AskedGroup], int]:
        """The groups that the step trains, in their places, and how many refills they took.

        `asked`, the step's own batch and the buffer, grows by the refills.
        """
        wanted = self._section.patients_per_step
        most_refills = self._section.max_refills if self._section.dynamic_sampling else 0
        num_refills = 0
        while True:
            fates = [(each.patient.patient_id, self._fate(each, step)) for each in asked]
            choice = choose_groups(fates, wanted)
            if choice.most < wanted and num_refills < most_refills:
                num_refills += 1
                asked += self._ask(step, num_refills)
            elif choice.is_final:
                patients = [patient for patient, _ in fates]
                return [asked[i] for i in _in_place(choice.places, patients, wanted)], num_refills
            else:
                pending = [each.scoring for each in asked if not each.scoring.done()]
                await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)

    def _oldest(self, step: int) -> int:
        """The oldest version that may have sampled what a step trains; it starts from step - 1."""
        return max(0, step - 1 - self._section.max_staleness)

    def _fate(self, asked: _AskedGroup, step: int) -> GroupFate:
        if not asked.scoring.done():
            return GroupFate.PENDING
        group = asked.scoring.result()  # raises what sampling raised
        is_dead = self._section.dynamic_sampling and group.is_dead
        is_useless = is_dead or group.oldest_version < self._oldest(step)
        return GroupFate.USELESS if is_useless else GroupFate.LIVE

    def _left_over(self, left: Sequence[_AskedGroup], step: int) -> list[_AskedGroup]:
        """What the next step may still use, in the order in which it was asked for."""
        if self._section.max_staleness == 0 or step == self._section.steps:
            return []
        return [each for each in left if self._fate(each, step + 1) is not GroupFate.USELESS]

    def _ask(self, step: int, refill: int) -> list[_AskedGroup]:
        section = self._section
        patients = self._stream.draw(step, refill)
        prompts = [
            RolloutPrompt(patient_id=p.patient_id, token_ids=p.prompt_token_ids) for p in patients
        ]
        max_in_flight = rollouts_in_flight(
            prompts, section.group_size, section.max_new_tokens, self._inputs.cache_tokens
        )
        asked = []
        for patient, prompt in zip(patients, prompts, strict=True):
            batch = RolloutBatch(
                prompts=(prompt,),
                group_size=section.group_size,
                least=PolicyVersion(
                    lineage=self._inputs.lineage,
                    version=max(self.published_version, self._oldest(step)),
                ),
                # Step and refill make every request's seed new.
                seed=section.seed * 1_000_003 + step + (refill << 40),
                max_in_flight=max_in_flight,
            )
            scoring = asyncio.create_task(self._sample(patient, batch, self._oldest(step)))
            asked.append(_AskedGroup(patient=patient, scoring=scoring))
        return asked

    async def _sample(self, patient: GrpoPatient, batch: RolloutBatch, oldest: int) -> ScoredGroup:
        least = PolicyVersion(lineage=self._inputs.lineage, version=oldest)
        rollouts: list[Rollout] = []
        for _ in range(_MOST_SAMPLINGS):
            (rollouts,) = await self._sampler.sample_groups(batch)
            if all(rollout.oldest_policy.satisfies(least) for rollout in rollouts):
                return score_group(
                    patient,
                    rollouts,
                    self._inputs.reward,
                    self._matcher,
                    self._section,
                )
            self._num_refused += 1
        found = min(rollout.oldest_policy for rollout in rollouts)
        raise StalePolicyError(
            f"expected rollouts by {self._inputs.lineage} policies from version {oldest} on "
            f"(grpo.max_staleness={self._section.max_staleness}), got one by {found.lineage} "
            f"version {found.version} in each of {_MOST_SAMPLINGS} samplings; a generator replica "
            "does not follow the policy store: look at its log"
        )


def _in_place(places: Sequence[int], patients: Sequence[str], wanted: int) -> list[int]:
    """The chosen places, a batch's own groups where they were and the others in the gaps.

    Gaps that nothing fills keep their own, dead groups; no patient comes twice.
    """
    others = [place for place in places if place >= wanted]
    elsewhere = {patients[place] for place in others}
    gaps = [place for place in range(wanted) if place not in places]
    gaps.sort(key=lambda place: patients[place] not in elsewhere)
    filled = dict(zip(gaps, others, strict=False))
    return [filled.get(place, place) for place in range(wanted)]


def _cancel(asked: Sequence[_AskedGroup]) -> None:
    for each in asked:
        each.scoring.cancel()


def _age_metrics(groups: Sequence[ScoredGroup], step: int) -> dict[str, Any]:
    """How far the policies that sampled are behind the one that the step starts from."""
    rollouts = [each.rollout for group in groups for each in group.rollouts]
    ages = [step - 1 - rollout.oldest_policy.version for rollout in rollouts]
    return {
        "policy_version": step - 1 - max(ages),
        "rollout/staleness": max(ages),
        "rollout/staleness_mean": fmean(ages),
        "rollout/straddled": sum(
            rollout.oldest_policy != rollout.newest_policy for rollout in rollouts
        ),
    }
