"""What the learner's tests share: a tiny model, a scripted policy, and inputs of Stage-2."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from tokenizers import Tokenizer, models
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from ehr.catalogue import BENCHMARK_17
from ehr.config import RewardSection
from ehr.rewards import RewardContext
from services.adapters import verify_policy
from services.config import GeneratorSection, ModelSection
from services.models import LocalModel
from services.policy_store import PolicyRecord
from services.types import (
    BASE_POLICY,
    Acknowledgement,
    Completion,
    GenerateRequest,
    Policy,
    PolicyVersion,
    Scored,
)
from tests.scripted import FEATURES, CharTokenizer, ScriptedGenerator
from training.config import GrpoSection, LearnerSection
from training.grpo_batch import GrpoPatient
from training.grpo_inputs import Canary, GrpoInputs
from training.packing import TokenGroup

VOCABULARY = 256
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096,
}
LEARNER = LearnerSection(lora_rank=4, lora_alpha=4, threads=1, start_timeout_s=120)


def tiny_model(folder: Path, kind: str = "qwen2") -> Path:
    """A random model of two layers whose tokens are characters."""
    torch.manual_seed(0)
    if kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**TINY))
    else:
        model = LlamaForCausalLM(LlamaConfig(**TINY))
    model.save_pretrained(folder)
    characters = models.BPE({chr(i): i for i in range(VOCABULARY)}, [])
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(characters), eos_token=chr(0)
    ).save_pretrained(folder)
    return folder


def token_groups(num: int, size: int, prompt: int = 20, response: int = 7) -> list[TokenGroup]:
    """Random groups of unequal lengths; every third response token is the caller's."""
    generator = torch.Generator().manual_seed(1)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, VOCABULARY, (length,), generator=generator).tolist())

    groups = []
    for i in range(num):
        responses = tuple(tokens(response + (3 * j) % 5) for j in range(size))
        trained = tuple(tuple(k % 3 != 1 for k in range(len(r))) for r in responses)
        groups.append(
            TokenGroup(
                patient_id=f"p{i}", prompt=tokens(prompt + i), responses=responses, trained=trained
            )
        )
    return groups


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


def grpo_patients(num: int, in_stage1: Sequence[int] = ()) -> tuple[GrpoPatient, ...]:
    """Patients p0, p1, ...; every other one is positive."""
    tokenizer = CharTokenizer()
    return tuple(
        GrpoPatient(
            prompt_token_ids=tuple(tokenizer.encode(f"Patient {i}: what is the risk?\n")),
            context=RewardContext(
                patient_id=f"p{i}", label=i % 2, salient_features=frozenset(FEATURES[:5])
            ),
            in_stage1=i in in_stage1,
        )
        for i in range(num)
    )


LINEAGE = "grpo"
"""Of the policies of `grpo_inputs`."""


def grpo_inputs(folder: Path, model_path: Path = Path("unused"), **changes: Any) -> GrpoInputs:
    """Inputs of a small Stage-2 without Stage-1; `changes` replace fields."""
    defaults: dict[str, Any] = {
        "run_id": "test",
        "lineage": LINEAGE,
        "model_path": model_path,
        "dtype": "float32",
        "patients": grpo_patients(6),
        "features": BENCHMARK_17,
        "num_salient_features": 5,
        "format": "guided",
        "kind": "question_decomposition",
        "feature_names": (),
        "learner": LEARNER,
        "grpo": GrpoSection(steps=2, group_size=4, max_depth=2, max_new_tokens=400),
        "reward": RewardSection(),
        "stage1_adapter": None,
        "canary": Canary(prompt_token_ids=(1, 2, 3), response_token_ids=(4, 5, 6, 7)),
        "merged_sync": True,
        "cache_tokens": 1 << 20,
        "out_dir": folder / "grpo",
        "storage": folder / "ray_train",
        "make_generator": ScriptedPolicy,
        "make_tokenizer": CharTokenizer,
    }
    return GrpoInputs(**{**defaults, **changes})
