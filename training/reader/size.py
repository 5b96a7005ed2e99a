"""How large the reader is, and what it reads; needs no torch."""

from dataclasses import dataclass
from enum import StrEnum


class Naming(StrEnum):
    """Which of the recorded features a lesson's answer names."""

    ANY = "any"
    """All are as likely."""
    ABNORMAL = "abnormal"
    """Those sooner whose last value is far from the cohort's mean. Nothing is known of outcomes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderSize:
    """Sizes of the model and of its training."""

    vocabulary: int = 1024
    hidden: int = 128
    layers: int = 4
    patients: int = 16000
    """Whom it reads about, of a generated cohort; of a real one it is everybody else."""
    epochs: int = 1
    """How often it reads about each, with other names and another probability every time."""
    generated: int = 0
    """Of a real cohort: how many stays of its layout to generate and read about first, once."""
    resampled: int = 0
    """How many patients put together from the others' values to read about before these, once."""
    batch: int = 32
    learning_rate: float = 2e-3
    seed: int = 0
    naming: Naming = Naming.ANY
