"""Supervised fine-tuning on answers: token likelihood, Eq. 8, on Ray Train."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ehr.errors import TrainingError
from services.precision import ParameterType
from training.config.run import FineTuneSection, LearnerSection
from training.learner.canary import Canary
from training.learner.packing import PackedRow, TokenGroup
from training.learner.worker_group import WorkerGroup
from training.run.metrics_file import MetricsFile
from training.run.progress import OnProgress

MIN_VALIDATION_PATIENTS = 4
"""Fewer say nothing about anybody else, and are missed in training where patients are so few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SftExample:
    """One patient's prompt and the answers to learn: the trajectories kept, or a prediction."""

    patient_id: str
    prompt_token_ids: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    model_written: tuple[tuple[bool, ...], ...]
    """Per response token: the model wrote it, so it is in the loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SftInputs:
    """Everything the stage reads."""

    run_id: str
    stage: str
    """Names the worker group: `sft` or `direct_sft`."""
    examples: tuple[SftExample, ...]
    held_out: tuple[SftExample, ...]
    """Of other patients: their loss is measured after every epoch."""
    model_path: Path
    dtype: ParameterType
    """Of the frozen base, the engine's too."""
    served_merged: bool
    """The generator merges adapters into the base (`services.engine`)."""
    learner: LearnerSection
    sft: FineTuneSection
    canary: Canary
    """Scored before and after, for whoever serves the adapter."""
    out_dir: Path
    """RUN/STAGE."""
    storage: Path
    """Where Ray Train keeps its own records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SftStep:
    """One optimizer step: whose trajectories, and how far it moves."""

    step: int
    """From 1."""
    epoch: int
    """From 1."""
    groups: tuple[TokenGroup, ...]
    num_trajectories: int
    learning_rate: float
    ends_epoch: bool


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


def num_held_out(num_patients: int, share: float) -> int:
    """How many of so many patients are for validation: none where that would be very few."""
    held_out = math.floor(share * num_patients)
    return held_out if held_out >= MIN_VALIDATION_PATIENTS else 0


def hold_out(
    examples: Sequence[SftExample], section: FineTuneSection
) -> tuple[tuple[SftExample, ...], tuple[SftExample, ...]]:
    """The examples to train on and those of held-out patients, each in the given order.

    A function of the patients, the share and the seed alone.

    Args:
        examples: of any patients.
        section: `validation_share` and `seed`.
    """
    patients = sorted({example.patient_id for example in examples})
    random.Random(f"{section.seed} validation").shuffle(patients)
    chosen = set(patients[: num_held_out(len(patients), section.validation_share)])
    return (
        tuple(example for example in examples if example.patient_id not in chosen),
        tuple(example for example in examples if example.patient_id in chosen),
    )


def all_groups(examples: Sequence[SftExample]) -> tuple[TokenGroup, ...]:
    """All answers of the examples, each patient's prompt once."""
    members = [
        (number, i) for number, each in enumerate(examples) for i in range(len(each.responses))
    ]
    return _groups(examples, members)


def plan_steps(examples: Sequence[SftExample], section: FineTuneSection) -> list[SftStep]:
    """The steps of all epochs, a function of examples and section alone.

    Patients are shuffled in each epoch, a patient's trajectories stay together: they share a
    prompt, and only where a step is full does the next one repeat it.

    Raises:
        TrainingError: if no example has a trajectory.
    """
    trajectories = [
        (number, member)
        for number, example in enumerate(examples)
        for member in range(len(example.responses))
    ]
    if not trajectories:
        raise TrainingError(
            "Stage-1 keeps no trajectory to train on; search more patients or rollouts, or set "
            "search.only_correct=false"
        )
    size = section.batch_size
    num_steps = section.epochs * math.ceil(len(trajectories) / size)
    steps: list[SftStep] = []
    for epoch in range(1, section.epochs + 1):
        order = list(range(len(examples)))
        random.Random(f"{section.seed} epoch {epoch}").shuffle(order)
        ranked = sorted(trajectories, key=lambda each: order.index(each[0]))
        for start in range(0, len(ranked), size):
            chosen = ranked[start : start + size]
            number = len(steps) + 1
            steps.append(
                SftStep(
                    step=number,
                    epoch=epoch,
                    groups=_groups(examples, chosen),
                    num_trajectories=len(chosen),
                    learning_rate=learning_rate(number, num_steps, section),
                    ends_epoch=start + size >= len(ranked),
                )
            )
    return steps


def learning_rate(step: int, num_steps: int, section: FineTuneSection) -> float:
    """Learning rate of a step (from 1): linear warm-up to the peak, then a cosine towards 0."""
    warmup = max(1, round(section.warmup_fraction * num_steps))
    if step <= warmup:
        return section.learning_rate * step / warmup
    share = (step - warmup) / max(1, num_steps - warmup + 1)
    return section.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def sft_loss(
    logprobs: Float[Tensor, " targets"],
    row: PackedRow,
    section: FineTuneSection,
    num_trajectories: int,
) -> Float[Tensor, ""]:
    """A row's share of a step's loss, Eq. 8.

    Args:
        logprobs: of the row's trained tokens.
        row: which trajectories they belong to.
        section: `token_mean` is the mean over the step's trajectories of their token means; `sum`
            is Eq. 8 as it stands, the sum over trajectories and tokens.
        num_trajectories: of the whole step.
    """
    if not row.sequences:
        return logprobs.sum() * 0
    if section.reduction == "sum":
        return -logprobs.sum()
    lengths = torch.tensor(row.lengths, device=logprobs.device).clamp(min=1)
    return -(row.padded(logprobs).sum(1) / lengths).sum() / num_trajectories


def _groups(
    examples: Sequence[SftExample], chosen: Sequence[tuple[int, int]]
) -> tuple[TokenGroup, ...]:
    members: dict[int, list[int]] = {}
    for number, member in chosen:
        members.setdefault(number, []).append(member)
    return tuple(
        TokenGroup(
            patient_id=examples[number].patient_id,
            prompt=examples[number].prompt_token_ids,
            responses=tuple(examples[number].responses[i] for i in wanted),
            trained=tuple(examples[number].model_written[i] for i in wanted),
        )
        for number, wanted in members.items()
    )


def _train_rank(config: dict[str, Any]) -> None:
    # Only ranks load transformers, peft and DeepSpeed.
    from training.sft.rank import train_rank

    train_rank(config["inputs"])
