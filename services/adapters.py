"""LoRA adapters as bytes: checked before an engine touches them, and written for vLLM's loader."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from ehr.errors import ModelError
from services.types import Policy

if TYPE_CHECKING:
    import torch

_PREFIX = "base_model.model."
"""What peft puts before every module name."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoraPair:
    """The two factors of one layer's update."""

    a: "torch.Tensor"
    """[rank, inputs]"""
    b: "torch.Tensor"
    """[outputs, rank]"""


def adapter_checksum(adapter: bytes) -> str:
    """SHA-256 of an adapter's bytes, the checksum that every reply carries."""
    return hashlib.sha256(adapter).hexdigest()


def read_pairs(adapter: bytes) -> dict[str, LoraPair]:
    """The LoRA factors of an adapter, by the name of the base weight they change.

    Raises:
        ModelError: if these are not the bytes of a peft LoRA adapter.
    """
    # The policy store uses this module too, and has no use for torch.
    from safetensors.torch import load

    try:
        tensors = load(adapter)
    except SafetensorError as error:
        raise ModelError(
            f"expected a safetensors LoRA adapter, the bytes could not be read ({error}); "
            "publish the file that peft's save_pretrained wrote"
        ) from error
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, side = name.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".lora_")
        sides.setdefault(f"{module}.weight", {})[side] = tensor
    odd = [name for name, pair in sides.items() if set(pair) != {"A", "B"}]
    if odd or not sides:
        raise ModelError(
            "expected a lora_A and a lora_B for every adapted layer, got something else for "
            f"{odd[:5] or 'all of them'}; only plain LoRA on linear layers is served"
        )
    return {name: LoraPair(a=pair["A"], b=pair["B"]) for name, pair in sides.items()}


def verify_policy(policy: Policy) -> None:
    """Check that a policy's bytes are what its checksum says, and are a LoRA adapter.

    Raises:
        ModelError: if they are not.
    """
    if policy.adapter is None:
        return
    found = adapter_checksum(policy.adapter)
    if found != policy.checksum:
        raise ModelError(
            f"expected an adapter with checksum {policy.checksum}, its bytes have {found}: it was "
            "damaged on the way; publish it again from the run folder"
        )
    read_pairs(policy.adapter)


def write_peft_folder(policy: Policy, folder: Path) -> None:
    """Write a policy as the folder that vLLM's LoRA loader reads."""
    assert policy.adapter is not None, "the base model has no adapter"
    pairs = read_pairs(policy.adapter)
    rank = next(iter(pairs.values())).a.shape[0]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": policy.scaling * rank,
        "target_modules": sorted({name.split(".")[-2] for name in pairs}),
        "bias": "none",
    }
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(policy.adapter)
