"""Stage 2 on Ray: the entry point and the controller's actor."""

import asyncio
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from actors.rollout_actor import RolloutActor
from actors.rollouts import Rollout, RolloutBatch, RolloutPlan
from ehr.errors import EagRlError, TrainingError, reason_text
from services.policy_store import NAMESPACE
from training.grpo.controller import GrpoController, GrpoState
from training.grpo.inputs import GrpoInputs
from training.grpo.orders import (
    ANSWER_TIMEOUT_S,
    LONG_POLL_S,
    NewPolicy,
    Order,
    Start,
)
from training.learner.checkpoints import PolicyFolder, write_folder
from training.learner.worker_group import WorkerGroup
from training.run.progress import OnProgress

logger = logging.getLogger(__name__)


def train_grpo(inputs: GrpoInputs, on_progress: OnProgress) -> None:
    """Run Stage-2 to its last step; resumes behind the last committed one.

    Writes `policies/`, `checkpoint/`, `metrics.jsonl`, `rollouts.jsonl` and, at the end,
    `adapter/` in `inputs.out_dir`.

    Args:
        inputs: everything it reads; the generator they name must be up.
        on_progress: called with committed steps, all steps and a text.

    Raises:
        TrainingError: if a reward, loss or gradient is not finite, the canary disagrees, or the
            learner fails more often than allowed.
        ServiceError: if the generator does not answer within its budget.
    """
    inputs.out_dir.mkdir(parents=True, exist_ok=True)
    # Ray types its proxies, not what they answer: handles are Any here.
    sampler: Any = RolloutActor.options(num_cpus=0).remote(
        inputs.make_generator, inputs.make_tokenizer
    )
    # max_concurrency: one task a waiting rank, the loop, and reports.
    controller: Any = (
        ray.remote(GrpoControllerActor)
        .options(
            name=_controller_name(inputs.run_id),
            namespace=NAMESPACE,
            num_cpus=0,
            max_concurrency=inputs.learner.num_workers + 8,
        )
        .remote(inputs, sampler)
    )
    group = WorkerGroup(
        name=f"grpo-{inputs.run_id}", section=inputs.learner, storage=inputs.storage
    )

    pending: Any = controller.progress.remote()

    def watch() -> None:
        nonlocal pending
        if ray.wait([pending], timeout=0)[0]:
            done, text = ray.get(pending)
            on_progress(done, inputs.grpo.steps, text)
            pending = controller.progress.remote()

    try:
        loop = controller.run.remote()
        try:
            group.run(_train_rank, {"inputs": inputs}, watch)
        except TrainingError:
            _raise_failure(controller)
            raise
        _raise_failure(controller)
        ray.get(loop, timeout=ANSWER_TIMEOUT_S)
    except RayError as error:
        raise TrainingError(
            f"the controller of Stage-2 was lost ({error}); run the same command again to go on "
            "from the last commit"
        ) from error
    finally:
        ray.kill(controller)
        ray.kill(sampler)
    keep_policy(inputs.out_dir, inputs.grpo.steps)


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


def _train_rank(config: dict[str, Any]) -> None:
    # Only ranks load transformers, peft and DeepSpeed.
    from training.grpo.rank import Rank

    inputs: GrpoInputs = config["inputs"]
    Rank(inputs, controller_handle(inputs.run_id)).run()


def controller_handle(run_id: str) -> Any:
    """The controller's actor of a run that is in Stage-2."""
    return ray.get_actor(_controller_name(run_id), namespace=NAMESPACE)


def _controller_name(run_id: str) -> str:
    return f"grpo-controller-{run_id}"


def _raise_failure(controller: Any) -> None:
    failure: EagRlError | None = ray.get(controller.failure.remote(), timeout=ANSWER_TIMEOUT_S)
    if failure is not None:
        raise failure


def keep_policy(out_dir: Path, version: int) -> None:
    """Makes a committed policy the stage's `adapter/`.

    Args:
        out_dir: RUN/grpo.
        version: number of its step.
    """
    source = PolicyFolder(out_dir / "policies").adapter_folder(version)

    def copy(folder: Path) -> None:
        for file in source.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())

    write_folder(out_dir / "adapter", copy)
