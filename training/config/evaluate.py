"""Settings of the evaluation."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from ehr.base import Section, Seed
from ehr.config import CohortSection
from ehr.language.feature_order import FeatureOrder
from training.config.validators import (
    listed,
    require_each_once,
)


class EvaluateSection(Section):
    """Which rows of the result table, on how many test patients."""

    methods: tuple[
        Literal[
            "vanilla",
            "think_then_answer",
            "think_then_answer_json",
            "question_decomposition",
            "short_answer",
            "sft",
            "stage1",
            "stage2",
            "concare",
            "logistic_regression",
            "gradient_boosting",
        ],
        ...,
    ] = ("vanilla", "question_decomposition", "stage1", "stage2", "concare", "logistic_regression")
    """Rows; Think-then-Answer has two forms, tags and JSON; `stage2` appears under `grpo.method`'s
    name, `sft` trains an adapter of its own (`direct_sft`)."""
    other_cohort: CohortSection | None = None
    """Another cohort (settings as in the section `cohort`, of the same task) whose test patients
    every row answers for as well: language models in that cohort's own schema, models of the record
    through a map of features. null = none."""
    num_patients: int | None = Field(default=16, ge=4)
    """Test patients for the language model rows (balanced if `balance`); null = all."""
    balance: bool = False
    """Half positives among those test patients; false = a seeded random sample."""
    num_samples: int = Field(default=1, ge=1)
    """Answers to each question: 1 = greedy; more = the mean risk of so many answers sampled at
    temperature 1. The text that is kept is that of the first."""
    reading: Literal["auto", "expected", "sampled"] = "auto"
    """How an answer's risk is read. `expected`: the mean over the hundred numbers that the model
    may write, from their probabilities, with their spread; needs the guided format. `sampled`: the
    number that it writes. `auto` = expected where the format is guided."""
    seed: Seed = 19
    """Seeds the sample of test patients, sampled answers and the bootstrap."""
    num_resamples: int = Field(default=1000, ge=100)
    """Bootstrap resamples of patients behind the intervals."""
    max_depth: int = Field(default=3, ge=1)
    """T: depth at which the final is forced."""
    max_new_tokens: int = Field(default=256, ge=32)
    """Most model-written tokens of an answer."""
    faithfulness_patients: int = Field(default=8, ge=0)
    """Of the test patients, the first so many are asked about twice more by each language model row
    that names features: without one named and without one unnamed feature. 0 = off."""
    feature_order_shuffle: Annotated[
        tuple[Annotated[float, Field(ge=0, le=1)], ...], BeforeValidator(listed)
    ] = ()
    """Shares p of the features that stand at another place of the test prompts (EXP#2; the paper:
    [0, 0.25, 0.5, 0.75, 1]), or one p: each language model row is asked about all its test patients
    again for every p above 0 and every seed. Nobody is trained on another order. Empty = off."""
    feature_order_seed: Annotated[tuple[Seed, ...], BeforeValidator(listed)] = Field(
        default=(23,), min_length=1
    )
    """Seeds of those orders, or one seed; with the patient's id it says what moves, and where to
    (EXP#2 has five)."""

    @property
    def feature_orders(self) -> tuple[FeatureOrder, ...]:
        """The orders of features to ask about beside the cohort's own."""
        return tuple(
            FeatureOrder(share=share, seed=seed)
            for share in self.feature_order_shuffle
            if share > 0
            for seed in self.feature_order_seed
        )

    @model_validator(mode="after")
    def _unique(self) -> "EvaluateSection":
        for name in ("methods", "feature_order_shuffle", "feature_order_seed"):
            require_each_once(f"evaluate.{name}", getattr(self, name))
        if not self.methods:
            raise ValueError("evaluate.methods must name at least one row, such as [vanilla]")
        return self
