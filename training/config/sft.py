"""Settings of supervised fine-tuning."""

from typing import Literal

from pydantic import Field

from ehr.base import Section, Seed


class FineTuneSection(Section):
    """What both kinds of supervised fine-tuning share."""

    epochs: int = Field(default=2, ge=1)
    """Passes over the examples."""
    batch_size: int = Field(default=16, ge=1)
    """Answers (of Stage-1: trajectories) per optimizer step."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """Peak learning rate (paper-sized models: 1e-4)."""
    warmup_fraction: float = Field(default=0.03, ge=0, lt=1)
    """Share of steps with linear warm-up, cosine afterwards."""
    reduction: Literal["token_mean", "sum"] = "token_mean"
    """Mean over answers of the token mean, or Eq. 8 literally."""
    validation_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of patients that are not trained on: their loss is measured after every epoch. Where
    that is fewer than 4 patients there are none."""
    checkpoint_steps: int = Field(default=20, ge=1)
    """A checkpoint is written after so many steps, and after every epoch."""
    seed: Seed = 13
    """Seeds the choice and the order of examples, and LoRA's initial weights."""


class SftSection(FineTuneSection):
    """Trajectory-level supervised fine-tuning (Stage 1), Eq. 8."""

    enabled: bool = True
    """false = no Stage-1 (`without_stage1`)."""


class DirectSftSection(FineTuneSection):
    """The `sft` row: fine-tuning on direct predictions; runs where `evaluate.methods` has `sft`."""

    num_predictions: int = Field(default=1000, ge=2)
    """Predictions to train on, half of them about positives."""
    replay: bool = False
    """Take the patients of a class again until its half is full (the paper, for TJH); false = no
    patient twice, and of both classes as many as the smaller one has."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the predictions."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate (paper-sized models: 1e-4)."""
