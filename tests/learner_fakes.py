"""What the learner's tests share: a tiny model, and inputs of Stage-2."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from tests.policy_engines import VOCABULARY, ScriptedPolicy
from tests.scripted import FEATURES, CharTokenizer
from training.config.grpo import GrpoSection
from training.config.learner import LearnerSection
from training.grpo.inputs import GrpoInputs
from training.grpo.patients import GrpoPatient
from training.learner.canary import Canary
from training.learner.packing import TokenGroup

TINY: dict[str, Any] = {
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
        "served_merged": True,
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
        "cache_tokens": 1 << 20,
        "out_dir": folder / "grpo",
        "storage": folder / "ray_train",
        "make_generator": ScriptedPolicy,
        "make_tokenizer": CharTokenizer,
    }
    return GrpoInputs(**{**defaults, **changes})
