"""Stage 2 on Ray: the controller's actor, the passive learner ranks, and the entry point."""

import asyncio
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch.distributed as dist
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from actors.rollout_actor import RolloutActor
from actors.rollouts import Rollout, RolloutBatch, RolloutPlan
from ehr.errors import EagRlError, TrainingError
from services.policy_store import NAMESPACE
from training.checkpoints import CheckpointFolder, PolicyFolder, write_folder
from training.grpo_controller import (
    Canary,
    GrpoController,
    GrpoInputs,
    GrpoState,
    NewPolicy,
    Order,
    OrderKind,
    Start,
)
from training.grpo_updates import BatchTrainer
from training.learner import Learner
from training.packing import TokenGroup, pack
from training.policy_model import (
    PolicyModel,
    adapter_bytes,
    adapter_config_text,
    load_adapter,
    load_policy_model,
)
from training.progress import OnProgress
from training.worker_group import WorkerGroup, prepare_rank

logger = logging.getLogger(__name__)

_LONG_POLL_S = 20.0
"""How long the controller holds a question for the next order before it answers `not yet`."""

_ANSWER_TIMEOUT_S = 120.0
"""How long the controller may take to answer anything but that question (a commit to disk)."""


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

    def watch() -> None:
        done, text = ray.get(controller.progress.remote(), timeout=_ANSWER_TIMEOUT_S)
        on_progress(done, inputs.grpo.steps, text)

    try:
        loop = controller.run.remote()
        try:
            group.run(_train_rank, {"inputs": inputs}, watch)
        except TrainingError:
            _raise_failure(controller)
            raise
        _raise_failure(controller)
        ray.get(loop, timeout=_ANSWER_TIMEOUT_S)
    finally:
        ray.kill(controller)
        ray.kill(sampler)
    _write_final_adapter(inputs.out_dir)


class GrpoControllerActor:
    """Ray actor around `GrpoController`: runs its turns and lets ranks wait for theirs."""

    def __init__(self, inputs: GrpoInputs, sampler: ActorHandle) -> None:
        policy = inputs.make_generator()
        groups = _ActorSampler(sampler, inputs.rollout_plan)
        self._controller = GrpoController(inputs, policy, groups)
        self._changed = asyncio.Condition()

    async def run(self) -> None:
        """Take the controller's turns until the stage ends."""
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
                controller.fail(TrainingError(f"the controller of Stage-2 failed: {error!r}"))
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
            async with asyncio.timeout(_LONG_POLL_S), self._changed:
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


class _ActorSampler:
    def __init__(self, actor: Any, plan: RolloutPlan) -> None:
        self._actor = actor
        self._plan = plan

    async def sample_groups(self, batch: RolloutBatch) -> list[list[Rollout]]:
        try:
            return await self._actor.sample_groups.remote(self._plan, batch)
        except RayTaskError as error:
            if isinstance(error.cause, EagRlError):
                raise error.cause from error
            raise TrainingError(f"sampling rollouts failed: {error.cause!r}") from error
        except RayError as error:
            raise TrainingError(f"the rollout actor was lost: {error}") from error


def _train_rank(config: dict[str, Any]) -> None:
    """What every rank runs: ask, do, report, until told to stop."""
    inputs: GrpoInputs = config["inputs"]
    rank = _Rank(inputs)
    try:
        rank.work()
    except EagRlError as error:
        ray.get(rank.controller.report_failure.remote(error), timeout=_ANSWER_TIMEOUT_S)
        raise


class _Rank:
    def __init__(self, inputs: GrpoInputs) -> None:
        self._inputs = inputs
        self._section = inputs.learner
        self._checkpoints = CheckpointFolder(inputs.out_dir / "checkpoint")
        self.controller = ray.get_actor(_controller_name(inputs.run_id), namespace=NAMESPACE)

    def work(self) -> None:
        inputs = self._inputs
        device = prepare_rank(self._section)
        model = load_policy_model(
            inputs.model_path,
            self._section,
            dtype=inputs.dtype,
            seed=inputs.grpo.seed,
            device=device,
        )
        if inputs.stage1_adapter is not None:
            load_adapter(model, inputs.stage1_adapter)
        learner = Learner(model, self._section)
        trainer = BatchTrainer(learner, inputs.grpo, self._section.max_row_tokens)
        start = self._join(learner)
        if start.step > 0:
            self._load(learner, start.step)
        last = 0
        while True:
            order = self._next_order(last)
            last = order.number
            match order.kind:
                case OrderKind.STOP:
                    return
                case OrderKind.PROBE:
                    if learner.rank == 0:
                        assert order.canary is not None, "a probe has its canary"
                        self._report("report_canary", start, canary_logprobs(learner, order.canary))
                case OrderKind.TRAIN:
                    assert order.batch is not None, "a training order has its batch"
                    metrics = trainer.train(order.batch)
                    self._save(learner, order.batch.step)
                    if learner.rank == 0:
                        self._report("report_step", start, _new_policy(model), metrics)

    def _join(self, learner: Learner) -> Start:
        answer: list[Start | None] = [None]
        if learner.rank == 0:
            needed = ray.get(self.controller.needs_first_policy.remote(), timeout=_ANSWER_TIMEOUT_S)
            fresh = _new_policy(learner.model) if needed else None
            join: Any = self.controller.join.remote(fresh)
            answer = [ray.get(join, timeout=_ANSWER_TIMEOUT_S)]
        dist.broadcast_object_list(answer)
        assert answer[0] is not None, "the first rank has joined"
        return answer[0]

    def _load(self, learner: Learner, step: int) -> None:
        if step not in self._checkpoints.steps():
            raise TrainingError(
                f"expected the learner's checkpoint of step {step} at "
                f"{str(self._checkpoints.path(step))!r}, found steps {self._checkpoints.steps()}; "
                "restore it, or run Stage-2 again with --redo grpo"
            )
        learner.load(self._checkpoints.path(step))

    def _save(self, learner: Learner, step: int) -> None:
        if learner.rank == 0:
            self._checkpoints.begin(step)
        learner.save(self._checkpoints.partial(step))
        if learner.rank == 0:
            self._checkpoints.finish(step)

    def _next_order(self, after: int) -> Order:
        deadline = time.monotonic() + self._section.start_timeout_s
        while time.monotonic() < deadline:
            order, batch = ray.get(
                self.controller.next_order.remote(after), timeout=_LONG_POLL_S + _ANSWER_TIMEOUT_S
            )
            if order is not None:
                return replace(order, batch=ray.get(batch[0])) if batch else order
        raise TrainingError(
            f"expected the next batch within learner.start_timeout_s="
            f"{self._section.start_timeout_s:g} s; rollouts take longer than that: look at the "
            "generator, or raise it"
        )

    def _report(self, method: str, start: Start, *values: object) -> None:
        try:
            call = getattr(self.controller, method).remote(start.attempt, *values)
            ray.get(call, timeout=_ANSWER_TIMEOUT_S)
        except GetTimeoutError as error:
            raise TrainingError(
                f"the controller did not take {method} within {_ANSWER_TIMEOUT_S:g} s; is the run "
                "folder's disk writable and fast enough?"
            ) from error


def canary_logprobs(learner: Learner, canary: Canary) -> tuple[float, ...]:
    """The learner's log-probabilities of the canary's response."""
    group = TokenGroup(
        patient_id="canary",
        prompt=canary.prompt_token_ids,
        responses=(canary.response_token_ids,),
        trained=((True,) * len(canary.response_token_ids),),
    )
    length = len(canary.prompt_token_ids) + len(canary.response_token_ids)
    (row,) = pack([group], length)
    return tuple(learner.frozen_logprobs(row)[0].tolist())


def _new_policy(model: PolicyModel) -> NewPolicy:
    return NewPolicy(
        adapter=adapter_bytes(model),
        adapter_config=adapter_config_text(model),
        scaling=model.scaling,
    )


def _controller_name(run_id: str) -> str:
    return f"grpo-controller-{run_id}"


def _raise_failure(controller: Any) -> None:
    failure: EagRlError | None = ray.get(controller.failure.remote(), timeout=_ANSWER_TIMEOUT_S)
    if failure is not None:
        raise failure


def _write_final_adapter(out_dir: Path) -> None:
    policies = PolicyFolder(out_dir / "policies")
    record = policies.latest()
    assert record is not None, "a finished stage has a policy"
    source = policies.adapter_folder(record.version)

    def copy(folder: Path) -> None:
        for file in source.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())

    write_folder(out_dir / "adapter", copy)
