"""A trained member on disk: what keys it, and how it is written and read."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ehr.config import ExpertSection
from ehr.errors import DataError
from ehr.expert.member import Member, MemberState
from ehr.expert.plans import MemberPlan
from ehr.whole_files import write_bytes

FORMAT_VERSION = 2
"""Of a member's file; a file of another version is refused."""


_TRAINING_SETTINGS = {
    "hidden_size",
    "num_heads",
    "feedforward_size",
    "dropout",
    "time_attention",
    "decov_weight",
    "learning_rate",
    "batch_size",
    "epochs",
    "patience",
    "selection",
}
"""Fields of the expert section that change a member, beside its plan."""


def member_key(plan: MemberPlan, section: ExpertSection, data_sha256: str) -> str:
    """SHA-256 of all that a member's parameters depend on: equal keys, equal members."""
    settings = section.model_dump(mode="json", include=_TRAINING_SETTINGS)
    described = [FORMAT_VERSION, data_sha256, settings, asdict(plan)]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def member_file(plan: MemberPlan) -> str:
    """File name of a member in a checkpoint folder."""
    return f"member-{plan.ensemble}-{plan.member}.safetensors"


def write_member(path: Path, member: Member) -> None:
    """Writes a member, whole or not at all."""
    described = {
        "format_version": FORMAT_VERSION,
        "key": member.key,
        "plan": asdict(member.plan),
        "best_epoch": member.state.best_epoch,
        "num_epochs": member.state.num_epochs,
        "validation_loss": member.state.validation_loss,
        "losses": member.state.losses,
    }
    # One metadata entry: several would be written in an order that differs between processes.
    data = save(member.state.parameters, metadata={"member": json.dumps(described)})
    write_bytes(path, data)


def read_described(
    path: Path, entry: str, content: str, framework: Literal["pt", "numpy"]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The description and the tensors by name of a safetensors file that the expert stage wrote.

    Args:
        path: of the file.
        entry: of its metadata, which holds the description as JSON.
        content: what the file holds, for the error.
        framework: of the tensors: PyTorch or NumPy.

    Raises:
        DataError: if the file is missing or damaged, or of another format.
    """
    try:
        with safe_open(path, framework=framework) as file:
            described = json.loads((file.metadata() or {})[entry])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if described["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {described['format_version']!r}")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(
            f"{path} must hold {content} in format version {FORMAT_VERSION}, but does not "
            f"({error!r}). Run the expert stage again (--redo expert)."
        ) from error
    return described, tensors


def plan_of(described: Mapping[str, Any]) -> MemberPlan:
    """A member's plan from the JSON of `asdict`."""
    return MemberPlan(**{**described, "train_ids": tuple(described["train_ids"])})


def read_member(path: Path) -> Member:
    """The member that `write_member` wrote.

    Raises:
        DataError: if the file is missing or not a member of this format.
    """
    described, parameters = read_described(path, "member", "an expert member", "pt")
    state = MemberState(
        parameters=parameters,
        best_epoch=described["best_epoch"],
        num_epochs=described["num_epochs"],
        validation_loss=described["validation_loss"],
        losses=tuple(described["losses"]),
    )
    return Member(plan=plan_of(described["plan"]), state=state, key=described["key"])
