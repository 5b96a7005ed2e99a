"""What Stage-2 reads: patients, settings, folders, and how to reach the served policy."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from actors.case_prompts import PromptKind
from actors.rollouts import RolloutPlan
from ehr.catalogue import Feature
from ehr.config import RewardSection
from ehr.language.pieces import TextTokenizer
from services.policy_store import PolicyRecord
from services.precision import ParameterType
from services.types import Acknowledgement, Generator, PolicyVersion, Scored
from training.config.grpo import GrpoSection
from training.config.learner import LearnerSection
from training.grpo.patients import GrpoPatient
from training.learner.canary import Canary


class ServedPolicy(Generator, Protocol):
    """The generator as Stage-2 uses it; `services.clients.GeneratorClient` is one."""

    async def publish(self, record: PolicyRecord) -> list[Acknowledgement]:
        """Make a committed policy current on every replica."""
        ...

    async def score(
        self,
        prompt_token_ids: tuple[int, ...],
        response_token_ids: tuple[int, ...],
        least: PolicyVersion,
    ) -> list[Scored]:
        """Log-probabilities of a response by every replica."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoInputs:
    """Everything Stage-2 reads."""

    run_id: str
    """Names the controller and the worker group."""
    lineage: str
    """Of the policies of Stage-2; its version 0 is Stage-1's policy."""
    model_path: Path
    dtype: ParameterType
    """Of the frozen base, the engine's too."""
    served_merged: bool
    """The generator merges adapters into the base (`services.engine`)."""
    patients: tuple[GrpoPatient, ...]
    """Training patients that Stage-2 may draw."""
    features: tuple[Feature, ...]
    """Of the cohort, for matching names."""
    num_salient_features: int
    format: Literal["free", "guided"]
    """`prompt.format`."""
    kind: PromptKind
    """`prompt.kind`."""
    feature_names: tuple[str, ...]
    """`RolloutPlan.feature_names`."""
    learner: LearnerSection
    grpo: GrpoSection
    reward: RewardSection
    stage1_adapter: Path | None
    """Stage-1's adapter in peft's format; None starts at a fresh one (`without_stage1`)."""
    canary: Canary
    cache_tokens: int
    """KV cache of all generator replicas, in tokens."""
    out_dir: Path
    """RUN/grpo."""
    storage: Path
    """Where Ray Train keeps its own records."""
    make_generator: Callable[[], ServedPolicy]
    """Builds the client; called in the processes that use it."""
    make_tokenizer: Callable[[], TextTokenizer]

    @property
    def rollout_plan(self) -> RolloutPlan:
        """How rollouts are sampled."""
        return RolloutPlan(
            format=self.format,
            kind=self.kind,
            max_depth=self.grpo.max_depth,
            max_new_tokens=self.grpo.max_new_tokens,
            temperature=self.grpo.temperature,
            feature_names=self.feature_names,
        )
