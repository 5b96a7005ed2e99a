"""Learner ranks on Ray Train: one way to start them, watch them and read their errors."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ray.exceptions import RayTaskError
from ray.train import (
    ControllerError,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    WorkerGroupError,
)
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from ehr.errors import EagRlError, TrainingError, os_error_text
from training.config.learner import LearnerSection
from training.run.ray_train import fit_and_watch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerGroup:
    """A stage's ranks."""

    name: str
    """Of the stage, in Ray's records."""
    section: LearnerSection
    storage: Path
    """Where Ray Train keeps its own records."""

    def run(
        self,
        train: Callable[[dict[str, Any]], None],
        config: dict[str, Any],
        watch: Callable[[], None],
    ) -> None:
        """Run `train(config)` on every rank; a group that loses one is restarted.

        Args:
            train: the same function for all ranks.
            config: its argument.
            watch: called on this thread about every second until the ranks have returned.

        Raises:
            TrainingError: if the ranks failed once more than `learner.max_failures` allows.
        """
        try:
            fit_and_watch(
                lambda: self._trainer(train, config), watch, max_failures=self.section.max_failures
            )
        except WorkerGroupError as error:
            raise _as_own_error(self.name, list(error.worker_failures.values())) from error
        except ControllerError as error:
            raise _as_own_error(self.name, [error.controller_failure]) from error

    def _trainer(
        self, train: Callable[[dict[str, Any]], None], config: dict[str, Any]
    ) -> TorchTrainer:
        section = self.section
        use_gpu = section.gpus_per_worker > 0
        return TorchTrainer(
            train if use_gpu else partial(_train_on_cpu, train),
            train_loop_config=config,
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=section.num_workers,
                use_gpu=use_gpu,
                resources_per_worker={
                    "CPU": section.cpus_per_worker,
                    **({"GPU": section.gpus_per_worker} if use_gpu else {}),
                },
            ),
            run_config=RunConfig(
                name=self.name,
                storage_path=str(self.storage.absolute()),
                failure_config=FailureConfig(max_failures=section.max_failures),
            ),
        )


def _train_on_cpu(train: Callable[[dict[str, Any]], None], config: dict[str, Any]) -> None:
    # DeepSpeed reads its accelerator from nowhere else, when it is imported.
    os.environ["DS_ACCELERATOR"] = "cpu"
    train(config)


def prepare_rank(section: LearnerSection) -> torch.device:
    """Set a rank's CPU threads; its device comes back."""
    threads = section.threads or max(1, (os.cpu_count() or 1) // section.num_workers)
    torch.set_num_threads(threads)
    return get_device()


def _as_own_error(name: str, causes: Sequence[BaseException]) -> EagRlError:
    for cause in causes:
        inner: BaseException | None = cause
        if isinstance(cause, RayTaskError):
            inner = cause.cause
        while inner is not None:
            if isinstance(inner, EagRlError):
                return inner
            if isinstance(inner, OSError):
                return TrainingError(f"the learner ranks of {name!r}: {os_error_text(inner)}")
            inner = inner.__cause__
    last = str(causes[0]).strip().splitlines()[-1] if causes else "unknown"
    return TrainingError(
        f"the learner ranks of {name!r} failed more often than learner.max_failures allows; the "
        f"last failure: {last}; see their logs in Ray's session folder, and run the same command "
        "again to go on from the last checkpoint"
    )
