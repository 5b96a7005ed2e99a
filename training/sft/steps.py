"""The steps of supervised fine-tuning, planned before the first."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from ehr.errors import TrainingError
from training.config.sft import FineTuneSection
from training.learner.packing import TokenGroup
from training.sft.inputs import SftExample


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
