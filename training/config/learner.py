"""Settings that SFT and GRPO share: adapter, packing, DeepSpeed."""

from typing import Literal

from pydantic import Field

from ehr.base import Section


class LearnerSection(Section):
    """What SFT and GRPO share: LoRA, DeepSpeed, placement."""

    lora_rank: int = Field(default=64, ge=1)
    """LoRA rank, on all linear layers."""
    lora_alpha: float = Field(default=32, gt=0)
    """LoRA scaling factor; the adapter is scaled by alpha / rank."""
    num_workers: int = Field(default=1, ge=1)
    """Ray Train workers (learner ranks)."""
    cpus_per_worker: float = Field(default=1, gt=0)
    """Logical CPUs of a rank."""
    gpus_per_worker: float = Field(default=0, ge=0)
    """GPUs of a rank."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of a rank; null = the machine's cores divided by the ranks."""
    zero_stage: Literal[1, 2] = 2
    """DeepSpeed ZeRO stage."""
    max_row_tokens: int = Field(default=4096, ge=128)
    """Token budget of one packed row (micro-batch): a group's prompt once and its responses."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    gradient_clip: float = Field(default=1.0, gt=0)
    """Global gradient-norm clip."""
    max_failures: int = Field(default=1, ge=0)
    """Restarts of a failed worker group before the stage fails."""
    start_timeout_s: float = Field(default=600, gt=0)
    """How long a rank may wait for its next batch before it gives up."""
