"""Scripted engines that take policies.

Serve replicas import this module, so it imports nothing that takes seconds.
"""

import math
from pathlib import Path

import psutil

from benchmarks.characters import alike_next_tokens
from services.adapters import verify_policy
from services.config import GeneratorSection, ModelSection
from services.models import LocalModel
from services.policy_store import PolicyRecord
from services.types import (
    BASE_POLICY,
    Acknowledgement,
    Completion,
    GenerateRequest,
    NextToken,
    Policy,
    PolicyVersion,
    Scored,
)
from tests.scripted import ScriptedGenerator

VOCABULARY = 256
"""Of `tests.learner_fakes.tiny_model`, whose tokens are characters."""


class ScriptedPolicy(ScriptedGenerator):
    """A scripted generator that takes policies and scores every token alike."""

    def __init__(self, logprob: float = -math.log(VOCABULARY)) -> None:
        super().__init__(policy_version=PolicyVersion(lineage="grpo", version=0))
        self.logprob = logprob
        self.published: list[PolicyRecord] = []

    async def publish(self, record: PolicyRecord) -> list[Acknowledgement]:
        """Serve another policy."""
        self.published.append(record)
        self.policy_version = record.version
        return [Acknowledgement(replica="r", version=record.version, checksum=record.checksum)]

    async def score(
        self,
        prompt_token_ids: tuple[int, ...],
        response_token_ids: tuple[int, ...],
        least: PolicyVersion,
    ) -> list[Scored]:
        """The same log-probability for every token."""
        logprobs = tuple(self.logprob for _ in response_token_ids)
        return [Scored(replica="r", version=least, logprobs=logprobs)]


class ScriptedEngine:
    """The same script where a Serve replica expects an engine."""

    def __init__(self) -> None:
        self._policy = ScriptedPolicy()
        self.version = BASE_POLICY
        self.checksum = ""
        self.cache_tokens = 1 << 20

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """Scripted completions under the loaded policy's version."""
        self._policy.policy_version = self.version
        return await self._policy.generate(request)

    async def score(
        self, prompt_token_ids: tuple[int, ...], response_token_ids: tuple[int, ...]
    ) -> tuple[float, ...]:
        """The same log-probability for every token."""
        return tuple(self._policy.logprob for _ in response_token_ids)

    async def next_tokens(
        self, prompt_token_ids: tuple[int, ...], regex: str
    ) -> tuple[NextToken, ...]:
        """Every character that a risk may go on with, all alike."""
        return alike_next_tokens(regex)

    async def load_policy(self, policy: Policy) -> None:
        """Take a policy's name; its weights change nothing."""
        verify_policy(policy)
        self.version, self.checksum = policy.version, policy.checksum

    async def check(self) -> None:
        """Never fails."""

    def stop(self) -> None:
        """Nothing to end."""


async def load_scripted(
    model: LocalModel, model_section: ModelSection, section: GeneratorSection
) -> ScriptedEngine:
    """Loads the script where a replica would load vLLM."""
    return ScriptedEngine()


class DeafEngine(ScriptedEngine):
    """Acknowledges version 1 and serves something else."""

    async def load_policy(self, policy: Policy) -> None:
        """Take a policy's name, and score as no model of `tiny_model` would."""
        await super().load_policy(policy)
        if self.version.version == 1:
            self._policy.logprob -= 10.0


async def load_deaf(
    model: LocalModel, model_section: ModelSection, section: GeneratorSection
) -> DeafEngine:
    """Loads the script with a sync that fails in silence."""
    return DeafEngine()


class LearnerKillingEngine(ScriptedEngine):
    """Kills every learner rank when version 1 arrives: after its commit, before its canary."""

    def __init__(self, marker: Path) -> None:
        super().__init__()
        self._marker = marker

    async def load_policy(self, policy: Policy) -> None:
        """Take a policy's name; the first version 1 costs the learner its life."""
        await super().load_policy(policy)
        if self.version.version == 1 and not self._marker.exists():
            raylet = psutil.Process().parent()
            assert raylet is not None
            ranks = [p for p in raylet.children() if "RayTrainWorker" in " ".join(p.cmdline())]
            self._marker.write_text(str(len(ranks)))
            for rank in ranks:
                rank.kill()


async def load_learner_killer(
    model: LocalModel, model_section: ModelSection, section: GeneratorSection
) -> LearnerKillingEngine:
    """Loads the script with a fault; the model's folder remembers that it has happened."""
    return LearnerKillingEngine(model.path / "ranks_killed")
