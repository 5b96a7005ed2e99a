"""Patients whose loss is watched, and on whom nothing is trained."""

import math
import random
from collections.abc import Sequence

from training.config.sft import FineTuneSection
from training.sft.inputs import SftExample

MIN_VALIDATION_PATIENTS = 4
"""Fewer say nothing about anybody else, and are missed in training where patients are so few."""


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
