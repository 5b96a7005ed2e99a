"""The controller of Stage 2 as a Ray actor."""

import asyncio
import logging
from dataclasses import replace
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from actors.rollouts import Rollout, RolloutBatch, RolloutPlan
from ehr.errors import EagRlError, TrainingError, reason_text
from services.policy_store import NAMESPACE
from training.grpo.controller import GrpoController, GrpoState
from training.grpo.inputs import GrpoInputs
from training.grpo.orders import (
    LONG_POLL_S,
    NewPolicy,
    Order,
    Start,
)

logger = logging.getLogger(__name__)


class GrpoControllerActor:
    """Ray actor around `GrpoController`: runs its turns and lets ranks wait for theirs."""

    def __init__(self, inputs: GrpoInputs, sampler: ActorHandle) -> None:
        policy = inputs.make_generator()
        groups = ActorSampler(sampler, inputs.rollout_plan)
        self._controller = GrpoController(inputs, policy, groups)
        self._changed = asyncio.Condition()

    async def run(self) -> None:
        """Take the controller's turns until the stage ends."""
        # Two at a time: a sync, and the collecting of rollouts.
        await asyncio.gather(self._take_turns(), self._take_turns())

    async def _take_turns(self) -> None:
        controller = self._controller
        while controller.state not in (GrpoState.FINISHED, GrpoState.FAILED):
            if not controller.may_advance:
                async with self._changed:
                    await self._changed.wait_for(self._has_turn_or_ended)
                continue
            try:
                await controller.advance()
            except Exception as error:  # without this the ranks would wait for their timeout
                logger.exception("the controller of Stage-2 failed")
                controller.fail(
                    TrainingError(f"the controller of Stage-2 failed: {reason_text(error)}")
                )
            await self._tell()

    async def join(self, fresh: NewPolicy | None) -> Start:
        """See `GrpoController.join`."""
        start = self._controller.join(fresh)
        await self._tell()
        return start

    async def needs_first_policy(self) -> bool:
        """Whether a joining learner has to bring version 0."""
        return self._controller.state is GrpoState.STARTING

    async def next_order(self, after: int) -> tuple[Order | None, tuple[ray.ObjectRef, ...]]:
        """The order behind number `after`, its batch by reference; None if there is none yet."""
        try:
            async with asyncio.timeout(LONG_POLL_S), self._changed:
                await self._changed.wait_for(lambda: self._controller.order(after) is not None)
        except TimeoutError:
            return None, ()
        order = self._controller.order(after)
        if order is None or order.batch is None:
            return order, ()
        return replace(order, batch=None), (self._put(order),)

    async def report_canary(self, attempt: int, logprobs: tuple[float, ...]) -> None:
        """See `GrpoController.report_canary`."""
        self._controller.report_canary(attempt, logprobs)
        await self._tell()

    async def report_step(self, attempt: int, new: NewPolicy, metrics: dict[str, Any]) -> None:
        """See `GrpoController.report_step`."""
        self._controller.report_step(attempt, new, metrics)
        await self._tell()

    async def report_failure(self, error: EagRlError) -> None:
        """A rank found something that no restart mends."""
        self._controller.fail(error)
        await self._tell()

    async def failure(self) -> EagRlError | None:
        """What stopped the stage."""
        return self._controller.failure

    async def progress(self) -> tuple[int, str]:
        """Committed steps, and what is going on."""
        return self._controller.steps_done, str(self._controller.state)

    def _has_turn_or_ended(self) -> bool:
        ended = self._controller.state in (GrpoState.FINISHED, GrpoState.FAILED)
        return ended or self._controller.may_advance

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _put(self, order: Order) -> ray.ObjectRef:
        # Once per order, however many ranks and restarts ask for it.
        if self._held is None or self._held[0] != order.number:
            self._held = (order.number, ray.put(order.batch))
        return self._held[1]

    _held: tuple[int, ray.ObjectRef] | None = None


class ActorSampler:
    """Samples groups in a rollout actor; who stops waiting ends them there too.

    Args:
        actor: handle of a `RolloutActor`.
        plan: how rollouts are sampled.
    """

    def __init__(self, actor: Any, plan: RolloutPlan) -> None:
        self._actor = actor
        self._plan = plan

    async def sample_groups(self, batch: RolloutBatch) -> list[list[Rollout]]:
        """A group of rollouts for every prompt of the batch, in order.

        Raises:
            TrainingError: if the actor fails or is lost.
        """
        answer = self._actor.sample_groups.remote(self._plan, batch)
        try:
            return await answer
        except asyncio.CancelledError:
            ray.cancel(answer)  # nobody waits for these rollouts any more
            raise
        except RayTaskError as error:
            if isinstance(error.cause, EagRlError):
                raise error.cause from error
            raise TrainingError(f"sampling rollouts failed: {reason_text(error.cause)}") from error
        except RayError as error:
            raise TrainingError(f"the rollout actor was lost: {error}") from error


def controller_handle(run_id: str) -> Any:
    """The controller's actor of a run that is in Stage-2."""
    return ray.get_actor(controller_name(run_id), namespace=NAMESPACE)


def controller_name(run_id: str) -> str:
    """The actor's name in Ray."""
    return f"grpo-controller-{run_id}"
