"""A learner rank of Stage-2: passive, it does what the controller orders."""

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ray
import torch.distributed as dist
from ray.exceptions import GetTimeoutError

from ehr.errors import EagRlError, TrainingError
from training.grpo.batch import TrainingBatch
from training.grpo.inputs import GrpoInputs
from training.grpo.orders import (
    ANSWER_TIMEOUT_S,
    LONG_POLL_S,
    NewPolicy,
    Order,
    OrderKind,
    Start,
)
from training.grpo.updates import BatchTrainer
from training.learner.allowed_tokens import AllowedTokens
from training.learner.checkpoints import CheckpointFolder
from training.learner.learner import Learner
from training.learner.policy_model import (
    PolicyModel,
    adapter_bytes,
    adapter_config_text,
    load_adapter,
    load_policy_model,
)
from training.learner.worker_group import prepare_rank

logger = logging.getLogger(__name__)


class Rank:
    """One learner rank: ask, do, report, until told to stop.

    Args:
        inputs: everything Stage-2 reads.
        controller: handle of its controller's actor.
    """

    def __init__(self, inputs: GrpoInputs, controller: Any) -> None:
        self._inputs = inputs
        self._section = inputs.learner
        self._checkpoints = CheckpointFolder(inputs.out_dir / "checkpoint")
        self._controller = controller

    def run(self) -> None:
        """Work until the controller says stop; an error of this project stops the stage."""
        try:
            self._work()
        except EagRlError as error:
            ray.get(self._controller.report_failure.remote(error), timeout=ANSWER_TIMEOUT_S)
            raise

    def _work(self) -> None:
        inputs = self._inputs
        device = prepare_rank(self._section)
        model = load_policy_model(
            inputs.model_path,
            self._section,
            dtype=inputs.dtype,
            seed=inputs.grpo.seed,
            device=device,
            served_merged=inputs.served_merged,
        )
        if inputs.stage1_adapter is not None:
            load_adapter(model, inputs.stage1_adapter)
        learner = Learner(model, self._section)
        allowed_tokens = AllowedTokens(inputs.model_path)
        if inputs.grpo.credit == "exact_risk":
            _ = allowed_tokens.number  # a tokenizer without digits is refused before any rollout
        trainer = BatchTrainer(learner, inputs.grpo, self._section.max_row_tokens, allowed_tokens)
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
                        self._report(
                            "report_canary",
                            start,
                            learner.scores(
                                order.canary.prompt_token_ids, order.canary.response_token_ids
                            ),
                        )
                case OrderKind.TRAIN:
                    assert order.batch is not None, "a training order has its batch"
                    metrics = trainer.train(order.batch)
                    metrics["tokens/useful_per_s"] = useful_tokens_per_s(order.batch, metrics)
                    self._checkpoints.save(order.batch.step, learner.rank, learner.save)
                    if learner.rank == 0:
                        self._report("report_step", start, _new_policy(model), metrics)

    def _join(self, learner: Learner) -> Start:
        answer: list[Start | None] = [None]
        if learner.rank == 0:
            # The controller may still be starting.
            timeout_s = self._section.start_timeout_s
            needed = ray.get(self._controller.needs_first_policy.remote(), timeout=timeout_s)
            fresh = _new_policy(learner.model) if needed else None
            answer = [ray.get(self._controller.join.remote(fresh), timeout=timeout_s)]
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

    def _next_order(self, after: int) -> Order:
        deadline = time.monotonic() + self._section.start_timeout_s
        while time.monotonic() < deadline:
            order, batch = ray.get(
                self._controller.next_order.remote(after), timeout=LONG_POLL_S + ANSWER_TIMEOUT_S
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
            call = getattr(self._controller, method).remote(start.attempt, *values)
            ray.get(call, timeout=ANSWER_TIMEOUT_S)
        except GetTimeoutError as error:
            raise TrainingError(
                f"the controller did not take {method} within {ANSWER_TIMEOUT_S:g} s; is the run "
                "folder's disk writable and fast enough?"
            ) from error


def useful_tokens_per_s(batch: TrainingBatch, metrics: Mapping[str, Any]) -> float:
    """Trained tokens of a batch per second of the learner: old log-probabilities and updates."""
    trained = sum(sum(map(sum, group.trained)) for group in batch.groups)
    return trained / (metrics["time/old_logprob_s"] + metrics["time/train_s"])


def _new_policy(model: PolicyModel) -> NewPolicy:
    return NewPolicy(
        adapter=adapter_bytes(model),
        adapter_config=adapter_config_text(model),
        scaling=model.scaling,
    )
