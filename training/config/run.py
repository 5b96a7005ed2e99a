"""Configuration sections of the training stages, and the tree of all sections."""

from typing import Literal

from pydantic import ValidationInfo, model_validator

from actors.config import SearchSection
from ehr.base import Section
from ehr.config import CohortSection, ExpertSection, PromptSection, RewardSection
from services.config import ClusterSection, GeneratorSection, ModelSection, ServeSection
from training.config.checks import TAG_TOKENS, contradictions
from training.config.evaluate import EvaluateSection
from training.config.experiment import LearnSection
from training.config.grpo import GrpoSection
from training.config.learner import LearnerSection
from training.config.sft import DirectSftSection, SftSection

RECORDED = {"recorded": True}
"""Validation context of a configuration that a run was made with: it is no longer asked for, and
stays readable whatever is refused today."""

MAX_NAME_BYTES = 100
"""Of `run.name`: it becomes part of longer file names."""


class RunSection(Section):
    """The run as a whole."""

    name: str | None = None
    """Name of the run, and of its folder below runs/; null = the first configuration's file
    name."""
    verbose: bool = False
    """Show the logs of Ray, vLLM and DeepSpeed on the terminal."""
    data_origin: str | None = None
    """Where the cohort's files were copied from, such as a mirror and its commit; a note that
    report and tables repeat."""

    @model_validator(mode="after")
    def _plain_name(self, info: ValidationInfo) -> "RunSection":
        name = self.name
        if name is None or info.context is RECORDED:
            return self
        if not (
            name == name.strip()
            and name not in ("", ".", "..")
            and name.isprintable()
            and not set(name) & set("/\\")
            and len(name.encode()) <= MAX_NAME_BYTES
        ):
            raise ValueError(
                f"run.name must be the name of a folder below runs/: printable, without / and \\, "
                f"at most {MAX_NAME_BYTES} bytes, got {name!r}; set run.name=NAME (the default is "
                "the first configuration's file name), and --run-dir for a folder elsewhere"
            )
        return self


class RunConfig(Section):
    """Everything a run reads, resolved."""

    run: RunSection = RunSection()
    cluster: ClusterSection = ClusterSection()
    cohort: CohortSection = CohortSection()
    prompt: PromptSection = PromptSection()
    reward: RewardSection = RewardSection()
    model: ModelSection = ModelSection()
    generator: GeneratorSection = GeneratorSection()
    expert: ExpertSection = ExpertSection()
    search: SearchSection = SearchSection()
    learner: LearnerSection = LearnerSection()
    sft: SftSection = SftSection()
    direct_sft: DirectSftSection = DirectSftSection()
    grpo: GrpoSection = GrpoSection()
    evaluate: EvaluateSection = EvaluateSection()
    learn: LearnSection = LearnSection()
    serve: ServeSection = ServeSection()

    @property
    def thought_tokens(self) -> int:
        """Most tokens of a guided Think-then-Answer's reasoning; 0 where no row asks for it."""
        thinks = any(name.startswith("think_then_answer") for name in self.evaluate.methods)
        return self.prompt.think_budget_tokens if thinks and self.prompt.format == "guided" else 0

    @property
    def risk_reading(self) -> Literal["expected", "sampled"]:
        """How the evaluation reads risks: `evaluate.reading` without `auto`."""
        if self.evaluate.reading != "auto":
            return self.evaluate.reading
        return "expected" if self.prompt.format == "guided" else "sampled"

    @model_validator(mode="after")
    def _trained_trajectories(self) -> "RunConfig":
        if self.search.value == "label_free" and self.sft.enabled:
            raise ValueError(
                "search.value is 'label_free', whose trajectories are for inference: Stage 1 "
                "trains on rewarded ones only; set sft.enabled=false, or search.value=reward"
            )
        return self

    @model_validator(mode="after")
    def _teacher(self) -> "RunConfig":
        if (
            self.prompt.kind == "short_answer"
            and self.search.method == "tree"
            and (self.sft.enabled or self.search.value == "label_free")
        ):
            raise ValueError(
                "prompt.kind is 'short_answer', which has no steps to search over; set "
                "search.method=samples, or sft.enabled=false"
            )
        return self

    @model_validator(mode="after")
    def _one_weighting(self) -> "RunConfig":
        if self.grpo.rare_features and self.reward.attention_weighting != "none":
            raise ValueError(
                "grpo.rare_features weighs the features of C_exp, and so does "
                f"reward.attention_weighting={self.reward.attention_weighting}; set one of them"
            )
        return self

    @model_validator(mode="after")
    def _same_task(self) -> "RunConfig":
        other = self.evaluate.other_cohort
        if other is not None and other.task is not self.cohort.task:
            raise ValueError(
                f"evaluate.other_cohort.task must be cohort.task, {str(self.cohort.task)!r}, got "
                f"{str(other.task)!r}: models trained for one task are asked about it"
            )
        if other is not None and other.horizon_days != self.cohort.horizon_days:
            raise ValueError(
                f"evaluate.other_cohort.horizon_days must be cohort.horizon_days, "
                f"{self.cohort.horizon_days}, got {other.horizon_days}: risks within one horizon "
                "are not risks within another"
            )
        return self

    @model_validator(mode="after")
    def _context_length(self) -> "RunConfig":
        # Caller-written tags and the chat frame come on top of what the model writes.
        overhead = TAG_TOKENS
        longest = max(
            self.grpo.max_new_tokens if self.grpo.enabled else 0,
            self.evaluate.max_new_tokens,
            self.thought_tokens,
        )
        needed = self.prompt.max_prompt_tokens + longest + overhead
        if needed > self.model.max_model_len:
            raise ValueError(
                f"model.max_model_len is {self.model.max_model_len}, but prompt.max_prompt_tokens "
                f"+ the longest answer + {overhead} for tags is {needed}; raise the first or "
                "lower the others"
            )
        return self

    @model_validator(mode="after")
    def _no_contradiction(self, info: ValidationInfo) -> "RunConfig":
        if info.context is not RECORDED and (problems := contradictions(self)):
            raise ValueError("; ".join(problems[:5]))
        return self
