"""Who does what next in Stage-2, as a plain object that is stepped: no Ray, no DeepSpeed.

The controller collects rollouts, hands batches to learner ranks that ask for them, commits what
they report, publishes it and compares learner and generator on a canary. Its memory is the run
folder: a policy exists when `policies/v{n}` does, and a controller that starts on a folder goes on
behind the newest one.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ehr.errors import EagRlError
from ehr.whole_files import write_text
from services.adapters import adapter_checksum
from services.policy_store import PolicyRecord
from services.types import PolicyVersion
from training.grpo.batch import ScoredGroup
from training.grpo.collecting import CollectedStep, GroupSampler, RolloutCollector
from training.grpo.inputs import GrpoInputs, ServedPolicy
from training.grpo.orders import (
    NewPolicy,
    Order,
    OrderKind,
    Start,
)
from training.grpo.rollout_metrics import rollout_samples
from training.learner.canary import CanaryRecord
from training.learner.canary_check import check_canary
from training.learner.checkpoints import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    PolicyFolder,
    VersionRecord,
)
from training.run.metrics_file import MetricsFile

logger = logging.getLogger(__name__)


class GrpoState(StrEnum):
    """Whose turn it is, and for what."""

    STARTING = "starting"
    """The learner's: there is no policy yet, its fresh adapter becomes version 0."""
    PUBLISHING = "publishing"
    """The controller's: the newest policy goes to the generators."""
    PROBING = "probing"
    """The learner's: the canary's log-probabilities. The controller samples ahead meanwhile."""
    COLLECTING = "collecting"
    """The controller's: rollouts of the next step, for which the learner waits."""
    TRAINING = "training"
    """The learner's: the updates of a batch. The controller samples the next one meanwhile where
    `grpo.max_staleness` allows it."""
    FINISHED = "finished"
    """All steps are committed, published and checked."""
    FAILED = "failed"
    """An error stopped the stage; `failure` has it."""


@dataclass(slots=True)
class _Sync:
    """What is known about the policy that was published last."""

    metrics: dict[str, Any]
    generator_logprobs: list[tuple[float, ...]] = field(default_factory=list)


class GrpoController:
    """Steps through Stage-2; `advance` does what is the controller's, reports do the rest.

    Args:
        inputs: everything the stage reads.
        policy: publishes policies and scores the canary.
        sampler: samples rollouts.
        clock: seconds, for the metrics.
    """

    def __init__(
        self,
        inputs: GrpoInputs,
        policy: ServedPolicy,
        sampler: GroupSampler,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inputs = inputs
        self._policy = policy
        self._clock = clock
        self._collector = RolloutCollector(inputs, sampler, inputs.make_tokenizer(), clock)
        self._policies = PolicyFolder(inputs.out_dir / "policies")
        self._lines = MetricsFile(inputs.out_dir / "metrics.jsonl")
        self._attempt = 0
        self._order_number = 0
        self._training: CollectedStep | None = None
        self._ready: CollectedStep | None = None
        self._published_version: int | None = None
        self._is_publishing = False
        self._is_collecting = False
        self._step_began: float | None = None
        self._idle_since = 0.0
        self._rollout_wait_s = 0.0
        self._sync = _Sync(metrics={})
        self.failure: EagRlError | None = None
        self.state = GrpoState.STARTING
        _warn_about_settings(inputs)
        self._record = self._policies.latest()
        if self._record is None and inputs.stage1_adapter is not None:
            folder = inputs.stage1_adapter
            self._commit_first(
                NewPolicy(
                    adapter=(folder / ADAPTER_FILE).read_bytes(),
                    adapter_config=(folder / ADAPTER_CONFIG_FILE).read_text(),
                    scaling=inputs.learner.lora_alpha / inputs.learner.lora_rank,
                )
            )
        if self._record is not None:
            self.state = GrpoState.PUBLISHING

    @property
    def steps_done(self) -> int:
        """Committed steps."""
        return self._record.step if self._record else 0

    @property
    def may_advance(self) -> bool:
        """Whether `advance` has something to do that it is not doing already."""
        return self._may_publish or self._may_collect

    async def advance(self) -> None:
        """Do one thing that is the controller's turn, if any; a failure becomes a state.

        Two of these may be awaited at the same time: a sync, and the collecting of rollouts.
        """
        try:
            if self._may_publish:
                self._is_publishing = True
                try:
                    await self._publish()
                finally:
                    self._is_publishing = False
            elif self._may_collect:
                self._is_collecting = True
                try:
                    await self._collect()
                finally:
                    self._is_collecting = False
        except EagRlError as error:
            self.fail(error)

    def fail(self, error: EagRlError) -> None:
        """Stop the stage; ranks are told to return. The first failure is the one that counts."""
        if self.state is GrpoState.FAILED:
            return
        logger.error("grpo failed step=%d state=%s error=%s", self.steps_done, self.state, error)
        self.failure = error
        self._move(GrpoState.FAILED)

    def join(self, fresh: NewPolicy | None = None) -> Start:
        """A learner group (re)starts; what it was working on will be handed out again.

        Args:
            fresh: its untrained adapter, which becomes version 0 where Stage-1 left none.
        """
        self._attempt += 1
        if self.state is GrpoState.STARTING:
            assert fresh is not None, "without Stage-1 the learner brings the first adapter"
            self._commit_first(fresh)
            self._move(GrpoState.PUBLISHING)
        return Start(attempt=self._attempt, step=self.steps_done)

    def order(self, after: int) -> Order | None:
        """What a rank does after order number `after`; None while that is not known."""
        kind = {
            GrpoState.PROBING: OrderKind.PROBE,
            GrpoState.TRAINING: OrderKind.TRAIN,
            GrpoState.FINISHED: OrderKind.STOP,
            GrpoState.FAILED: OrderKind.STOP,
        }.get(self.state)
        if kind is None or self._order_number <= after:
            return None
        batch = self._training.batch if self._training else None
        return Order(
            number=self._order_number,
            kind=kind,
            canary=self._inputs.canary if kind is OrderKind.PROBE else None,
            batch=batch if kind is OrderKind.TRAIN else None,
        )

    def report_canary(self, attempt: int, logprobs: tuple[float, ...]) -> None:
        """The learner's log-probabilities of the canary; may stop the stage."""
        if attempt != self._attempt or self.state is not GrpoState.PROBING:
            return  # a group that has been replaced since
        try:
            self._check_canary(logprobs)
        except EagRlError as error:
            self.fail(error)
            return
        self._write_line()
        self._idle_since = self._step_began = self._clock()
        if self._is_last:
            self._move(GrpoState.FINISHED)
        elif self._ready is None:
            self._move(GrpoState.COLLECTING)
        else:
            self._hand_out()

    def report_step(self, attempt: int, new: NewPolicy, metrics: dict[str, Any]) -> None:
        """The learner has trained the batch and saved its checkpoint: commit."""
        if attempt != self._attempt or self.state is not GrpoState.TRAINING:
            return  # a group that has been replaced since
        assert self._training is not None, "a batch was handed out"
        step = self.steps_done + 1
        self._append_samples(step, self._training.groups)
        waited = {"time/rollout_wait_s": self._rollout_wait_s}
        record = self._version_record(step, new, {**self._training.metrics, **metrics, **waited})
        self._record = self._policies.commit(record, new.adapter, new.adapter_config)
        self._training = None
        logger.info("committed policy_version=%d attempt=%d", step, attempt)
        self._move(GrpoState.PUBLISHING)

    @property
    def _is_last(self) -> bool:
        return self.steps_done >= self._inputs.grpo.steps

    @property
    def _next_step(self) -> int:
        """The step whose rollouts are collected next."""
        return self.steps_done + (1 if self._training is None else 2)

    @property
    def _may_publish(self) -> bool:
        return self.state is GrpoState.PUBLISHING and not self._is_publishing

    @property
    def _may_collect(self) -> bool:
        """Whether what the generators serve is new enough for the next step's rollouts."""
        section = self._inputs.grpo
        is_busy = self._is_collecting or self._ready is not None
        has_ended = self.state in (GrpoState.FINISHED, GrpoState.FAILED)
        if is_busy or has_ended or self._published_version is None:
            return False
        step = self._next_step  # starts from version step - 1
        return step <= section.steps and step - 1 - self._published_version <= section.max_staleness

    def _hand_out(self) -> None:
        """Give the batch that is ready to the learner."""
        waited = self.state is GrpoState.COLLECTING
        self._rollout_wait_s = self._clock() - self._idle_since if waited else 0.0
        self._training, self._ready = self._ready, None
        self._move(GrpoState.TRAINING)

    def _move(self, state: GrpoState) -> None:
        self.state = state
        self._order_number += 1

    def _commit_first(self, policy: NewPolicy) -> None:
        record = self._version_record(0, policy, {})
        self._record = self._policies.commit(record, policy.adapter, policy.adapter_config)

    def _version_record(
        self, step: int, policy: NewPolicy, metrics: dict[str, Any]
    ) -> VersionRecord:
        return VersionRecord(
            run_id=self._inputs.run_id,
            version=step,
            step=step,
            attempt=self._attempt,
            sha256=adapter_checksum(policy.adapter),
            scaling=policy.scaling,
            metrics=metrics,
        )

    async def _publish(self) -> None:
        record = self._record
        assert record is not None, "publishing follows a commit"
        version = PolicyVersion(lineage=self._inputs.lineage, version=record.version)
        path = self._policies.adapter_folder(record.version) / ADAPTER_FILE
        started = self._clock()
        replies = await self._policy.publish(
            PolicyRecord(
                version=version,
                adapter_path=str(path.absolute()),
                checksum=record.sha256,
                scaling=record.scaling,
            )
        )
        self._published_version = self._collector.published_version = record.version
        published = self._clock()
        canary = self._inputs.canary
        scored = await self._policy.score(
            canary.prompt_token_ids, canary.response_token_ids, version
        )
        self._sync = _Sync(
            metrics={
                "time/sync_s": published - started,
                "time/canary_s": self._clock() - published,
                "sync/replicas": len(replies),
                "sync/adapter_bytes": path.stat().st_size,
            },
            generator_logprobs=[each.logprobs for each in scored],
        )
        logger.info(
            "synced policy_version=%d replicas=%d seconds=%.2f",
            record.version,
            len(replies),
            published - started,
        )
        if self.state is GrpoState.PUBLISHING:  # collecting may have failed meanwhile
            self._move(GrpoState.PROBING)

    async def _collect(self) -> None:
        self._ready = await self._collector.collect(self._next_step)
        if self.state is GrpoState.COLLECTING:
            self._hand_out()

    def _check_canary(self, learner: tuple[float, ...]) -> None:
        assert self._record is not None, "a canary follows a sync"
        version, served = self._record.version, self._sync.generator_logprobs
        folder = self._inputs.out_dir
        # at version 0 the tolerance alone decides
        before = CanaryRecord.read(folder) if version > 0 else None
        self._sync.metrics |= check_canary(
            learner, served, before, self._inputs.grpo, f"version {version}"
        )
        if version == 0:
            before = CanaryRecord(
                canary=self._inputs.canary, learner_before=learner, served_before=tuple(served)
            )
        if before is not None:
            before.trained(self._record.sha256, learner).write(folder)

    def _write_line(self) -> None:
        record = self._record
        assert record is not None, "a line follows a sync"
        if record.step == 0:
            return
        self._lines.append(
            {
                "step": record.step,
                "policy_version_out": record.version,
                "attempt": record.attempt,
                **record.metrics,
                **self._sync.metrics,
                **self._step_seconds(),
            }
        )

    def _step_seconds(self) -> dict[str, float]:
        """Wall time of the step that ends now; nothing where it began before a restart."""
        return {} if self._step_began is None else {"time/step_s": self._clock() - self._step_began}

    def _append_samples(self, step: int, groups: Sequence[ScoredGroup]) -> None:
        path = self._inputs.out_dir / "rollouts.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] < step]
        kept += [json.dumps(sample) for sample in rollout_samples(step, groups)]
        write_text(path, "\n".join(kept) + "\n", durable=True)


def _warn_about_settings(inputs: GrpoInputs) -> None:
    section = inputs.grpo
    if section.updates_per_step < 2:
        logger.warning(
            "the clip is inert with updates_per_step=%d: every ratio is 1", section.updates_per_step
        )
