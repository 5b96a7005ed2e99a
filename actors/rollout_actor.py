"""The Ray actor that samples rollouts, so that neither driver nor controller does."""

from collections.abc import Callable
from typing import Protocol

import ray

from actors.rollouts import Rollout, RolloutBatch, RolloutPlan, RolloutSampler
from ehr.language.pieces import TextTokenizer
from services.types import Generator, RiskTeller


class RolloutGenerator(Generator, RiskTeller, Protocol):
    """What the actor asks: answers, and risks where they are read."""


@ray.remote(max_restarts=1, max_task_retries=1)  # a batch is safe to repeat: seeds are its own
class RolloutActor:
    """Samples rollout batches; `.options(num_cpus=...)` says what it books.

    Args:
        make_generator: builds the generator client inside the actor.
        make_tokenizer: builds the tokenizer inside the actor.
    """

    def __init__(
        self,
        make_generator: Callable[[], RolloutGenerator],
        make_tokenizer: Callable[[], TextTokenizer],
    ) -> None:
        self._generator = make_generator()
        self._tokenizer = make_tokenizer()
        self._samplers: dict[RolloutPlan, RolloutSampler] = {}
        self._num_done = 0

    async def sample_groups(self, plan: RolloutPlan, batch: RolloutBatch) -> list[list[Rollout]]:
        """A group of rollouts for every prompt of the batch, in order."""
        self._num_done = 0
        # One sampler a plan: batches that are sampled at the same time share its limit.
        if plan not in self._samplers:
            self._samplers[plan] = RolloutSampler(
                self._generator, self._tokenizer, plan, self._generator
            )
        return await self._samplers[plan].sample_groups(batch, self._count)

    async def num_done(self) -> int:
        """Rollouts finished since a batch was last asked for."""
        return self._num_done

    def _count(self) -> None:
        self._num_done += 1
