"""Stage 2 on Ray: the entry point and the controller's actor."""

import logging
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from actors.rollout_actor import RolloutActor
from ehr.errors import EagRlError, TrainingError
from ehr.whole_files import write_folder
from services.policy_store import NAMESPACE
from training.grpo.controller_actor import (
    GrpoControllerActor,
    controller_handle,
    controller_name,
)
from training.grpo.inputs import GrpoInputs
from training.grpo.orders import (
    ANSWER_TIMEOUT_S,
)
from training.learner.checkpoints import PolicyFolder
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
    sampler, controller = _start_actors(inputs)
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


def _start_actors(inputs: GrpoInputs) -> tuple[Any, Any]:
    """What samples rollouts, and the controller, which asks it for them."""
    # Ray types its proxies, not what they answer: handles are Any here.
    sampler: Any = RolloutActor.options(num_cpus=0).remote(
        inputs.make_generator, inputs.make_tokenizer
    )
    # max_concurrency: one task a waiting rank, the loop, and reports.
    controller: Any = (
        ray.remote(GrpoControllerActor)
        .options(
            name=controller_name(inputs.run_id),
            namespace=NAMESPACE,
            num_cpus=0,
            max_concurrency=inputs.learner.num_workers + 8,
        )
        .remote(inputs, sampler)
    )
    return sampler, controller


def _train_rank(config: dict[str, Any]) -> None:
    # Only ranks load transformers, peft and DeepSpeed.
    from training.grpo.rank import Rank

    inputs: GrpoInputs = config["inputs"]
    Rank(inputs, controller_handle(inputs.run_id)).run()


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
