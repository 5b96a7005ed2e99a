"""What a rank of supervised fine-tuning is given."""

from dataclasses import dataclass
from pathlib import Path

from services.precision import ParameterType
from training.config.learner import LearnerSection
from training.config.sft import FineTuneSection
from training.learner.canary import Canary


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
