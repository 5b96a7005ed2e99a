"""LoRA adapters as bytes."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from ehr.errors import ModelError
from services.adapters import read_pairs, verify_policy, write_peft_folder
from services.types import BASE_POLICY, Policy, PolicyVersion

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


def adapter() -> bytes:
    return save(
        {
            f"{LAYER}.lora_A.weight": torch.ones(2, 4),
            f"{LAYER}.lora_B.weight": torch.zeros(6, 2),
        }
    )


def policy(content: bytes, checksum: str | None = None) -> Policy:
    return Policy(
        version=PolicyVersion(lineage="grpo", version=1),
        adapter=content,
        scaling=0.5,
        checksum=checksum or hashlib.sha256(content).hexdigest(),
    )


def test_factors_come_by_the_name_of_the_weight_they_change() -> None:
    pairs = read_pairs(adapter())

    assert list(pairs) == ["model.layers.0.self_attn.q_proj.weight"]
    assert pairs["model.layers.0.self_attn.q_proj.weight"].a.shape == (2, 4)
    assert pairs["model.layers.0.self_attn.q_proj.weight"].b.shape == (6, 2)


def test_a_layer_with_one_factor_is_refused() -> None:
    half = save({f"{LAYER}.lora_A.weight": torch.ones(2, 4)})

    with pytest.raises(ModelError, match="a lora_A and a lora_B"):
        read_pairs(half)


@pytest.mark.parametrize("content", [b"", b"no tensors in here", save({})])
def test_bytes_that_are_no_adapter_are_refused(content: bytes) -> None:
    with pytest.raises(ModelError, match="expected"):
        read_pairs(content)


def test_bytes_that_changed_on_the_way_are_refused() -> None:
    with pytest.raises(ModelError, match="damaged on the way"):
        verify_policy(policy(adapter(), checksum="0" * 64))


def test_the_base_policy_needs_no_bytes() -> None:
    verify_policy(Policy(version=BASE_POLICY, adapter=None, scaling=0.0, checksum=""))


def test_a_peft_folder_says_rank_scaling_and_layers(tmp_path: Path) -> None:
    write_peft_folder(policy(adapter()), tmp_path / "p")

    config = json.loads((tmp_path / "p" / "adapter_config.json").read_text())

    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 1.0, ["q_proj"])
    assert (tmp_path / "p" / "adapter_model.safetensors").read_bytes() == adapter()
