"""Supervised fine-tuning on answers: token likelihood, Eq. 8, on Ray Train."""

from typing import Any

from training.learner.worker_group import WorkerGroup
from training.run.metrics_file import MetricsFile
from training.run.progress import OnProgress
from training.sft.inputs import SftInputs
from training.sft.steps import (
    plan_steps,
)


def train_sft(inputs: SftInputs, on_progress: OnProgress) -> None:
    """Fine-tune a fresh adapter on the examples; resumes behind the last checkpoint.

    Writes `metrics.jsonl`, `checkpoint/` and, at the end, `adapter/` in `inputs.out_dir`. A step
    that ends an epoch also says `sft/validation_loss`, if patients are held out.

    Args:
        inputs: everything it reads.
        on_progress: called with steps done, all steps and a text.

    Raises:
        TrainingError: if there is nothing to train on, a loss or gradient is not finite, or the
            learner fails more often than `learner.max_failures`.
    """
    steps = plan_steps(inputs.examples, inputs.sft)
    inputs.out_dir.mkdir(parents=True, exist_ok=True)
    metrics = MetricsFile(inputs.out_dir / "metrics.jsonl")

    def watch() -> None:
        lines = metrics.lines()
        text = f"loss {lines[-1]['sft/loss']:.3f}" if lines else "learner starts"
        on_progress(len(lines), len(steps), text)

    name = f"{inputs.stage}-{inputs.run_id}"
    group = WorkerGroup(name=name, section=inputs.learner, storage=inputs.storage)
    group.run(_train_rank, {"inputs": inputs}, watch)


def _train_rank(config: dict[str, Any]) -> None:
    # Only ranks load transformers, peft and DeepSpeed.
    from training.sft.rank import train_rank

    train_rank(config["inputs"])
