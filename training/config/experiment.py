"""Settings of an experiment."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ehr.base import Section, Seed
from training.config.validators import (
    require_each_once,
)


class LearnSection(Section):
    """The experiment of `eag-rl learn`: which arms, over which seeds."""

    arms: tuple[
        Literal[
            "vanilla",
            "think_then_answer",
            "think_then_answer_json",
            "untrained",
            "sft",
            "stage1",
            "stage1_grpo",
            "stage1_dapo",
            "eag_rl",
            "shuffled_salience",
            "rare_features",
            "eag_rl_selected",
            "without_attention_reward",
            "without_adaptive_clip",
            "without_stage1",
        ],
        ...,
    ] = (
        "vanilla",
        "untrained",
        "sft",
        "stage1",
        "stage1_grpo",
        "stage1_dapo",
        "eag_rl",
        "shuffled_salience",
        "without_attention_reward",
        "without_adaptive_clip",
    )
    """Arms, all from one shared Stage 1; `untrained` is the untrained model asked as `prompt.kind`
    says."""
    seeds: tuple[Seed, ...] = Field(default=(17, 18, 19), min_length=1)
    """Seeds of the arms' own training (patients, rollouts, mini-batches, LoRA's initial weights);
    arms with the same seed are compared in pairs. Arms without training of their own are asked
    once."""

    train_patients: tuple[Annotated[int, Field(ge=4)] | None, ...] = ()
    """Numbers of training patients (`cohort.train_patients`; null = all): an experiment of its own
    for each, in RUN/train-N, and a curve over them beside regression, boosting and ConCare on the
    same patients. Empty = one experiment, as the cohort says."""

    @model_validator(mode="after")
    def _unique(self) -> "LearnSection":
        named = {"arms": self.arms, "seeds": self.seeds, "train_patients": self.train_patients}
        for name, values in named.items():
            require_each_once(f"learn.{name}", values)
        if not self.arms:
            raise ValueError("learn.arms must name at least one arm, such as [stage1, eag_rl]")
        return self
