"""Members trained side by side on Ray Train, each by one worker."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer, get_device

from ehr.config import ExpertSection
from ehr.errors import TrainingError
from ehr.expert.member import Member
from ehr.expert.member_file import (
    member_file,
    member_key,
    write_member,
)
from ehr.expert.plans import (
    MemberPlan,
)
from ehr.expert.selection import (
    train_member,
)
from ehr.expert.view import ExpertInput
from ehr.whole_files import write_bytes
from training.expert.members import (
    is_trained,
    trace_file,
)
from training.run.progress import OnProgress
from training.run.ray_train import fit_and_watch

MAX_FAILURES = 2
"""Restarts of the worker group; each loses at most the members in training at that moment."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MemberWork:
    """What the workers need, put into the object store once."""

    inputs: dict[str, ExpertInput]
    labels: dict[str, int]
    held_out: tuple[tuple[str, ...], ...]
    """Patients that judge each of `plans`."""
    plans: tuple[MemberPlan, ...]
    section: ExpertSection
    data_sha256: str
    folder: Path


def num_workers(
    section: ExpertSection, num_members: int, free: Mapping[str, float], num_cores: int | None
) -> int:
    """Ray Train workers: as set, or as many as find room; at least 1, at most one a member.

    Args:
        section: the expert section.
        num_members: to be trained.
        free: logical CPUs and GPUs that nobody has booked, as `CPU` and `GPU`.
        num_cores: real cores, where Ray counts more CPUs than there are; None = do not look.
    """
    if section.num_workers is not None:
        return min(section.num_workers, num_members)
    cpus = free.get("CPU", 0.0) if num_cores is None else min(free.get("CPU", 0.0), num_cores)
    room = int(cpus / section.cpus_per_worker)
    if section.gpus_per_worker > 0:
        room = min(room, int(free.get("GPU", 0.0) / section.gpus_per_worker))
    return max(1, min(room, num_members))


def room_for(section: ExpertSection, num_members: int, reserved_cpus: float) -> int:
    """How many members the cluster trains at a time, one at least."""
    available = ray.available_resources()
    free = {
        "CPU": available.get("CPU", 0.0) - reserved_cpus,
        "GPU": available.get("GPU", 0.0),
    }
    nodes = [node for node in ray.nodes() if node["Alive"]]
    # Only of one machine does this process know the cores, and there they are its own.
    num_cores = os.cpu_count() if len(nodes) == 1 else None
    return num_workers(section, num_members, free, num_cores)


def fit_on_workers(
    work: MemberWork, storage: Path, watch: Callable[[], None], reserved_cpus: float
) -> None:
    """Trains the members on Ray Train workers that share them out."""
    section = work.section
    use_gpu = section.gpus_per_worker > 0
    resources = {"CPU": section.cpus_per_worker}
    if use_gpu:
        resources["GPU"] = section.gpus_per_worker
    loop_config = {"work": ray.put(work)}

    def make_trainer() -> TorchTrainer:
        return TorchTrainer(
            _train_members,
            train_loop_config=loop_config,
            scaling_config=ray.train.ScalingConfig(
                num_workers=room_for(section, len(work.plans), reserved_cpus),
                use_gpu=use_gpu,
                resources_per_worker=resources,
            ),
            run_config=ray.train.RunConfig(
                name="expert",
                storage_path=str(storage.absolute()),
                failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
            ),
        )

    try:
        fit_and_watch(make_trainer, watch, max_failures=MAX_FAILURES)
    except ray.train.TrainingFailedError as error:
        raise TrainingError(
            f"The expert's workers must finish {len(work.plans)} members, but failed more than "
            f"{MAX_FAILURES} times: {error}. Finished members are kept; run the same command again."
        ) from error
    finally:
        for path in work.folder.glob(_progress_file(work.folder, "*").name):
            path.unlink(missing_ok=True)


def _train_members(config: dict[str, Any]) -> None:
    """Ray Train's function: trains this worker's share of the members that are not on disk."""
    work: MemberWork = ray.get(config["work"])
    section = work.section
    context = ray.train.get_context()
    rank = context.get_world_rank()
    torch.set_num_threads(max(1, int(section.cpus_per_worker)))
    device = get_device() if section.gpus_per_worker > 0 else torch.device("cpu")
    assert isinstance(device, torch.device), "one device per worker is asked for"
    mine = list(zip(work.plans, work.held_out, strict=True))[rank :: context.get_world_size()]
    for plan, held_out in mine:
        if is_trained(work.folder, plan):  # a restarted worker group
            continue
        state = train_member(
            plan,
            work.inputs,
            work.labels,
            held_out,
            section,
            on_epoch=lambda epoch, loss: _note_epoch(work.folder, rank, epoch, loss),
            device=device,
        )
        # An epoch that is not chosen yet makes another file: a member's is final when written.
        path = work.folder / (member_file(plan) if state.best_epoch else trace_file(plan))
        key = member_key(plan, section, work.data_sha256)
        write_member(path, Member(plan=plan, state=state, key=key))
        _progress_file(work.folder, rank).unlink(missing_ok=True)


def _progress_file(folder: Path, rank: int | str) -> Path:
    return folder / f".epoch-{rank}.json"


def _note_epoch(folder: Path, rank: int, epoch: int, loss: float) -> None:
    note = json.dumps({"epoch": epoch, "loss": loss})
    write_bytes(_progress_file(folder, rank), note.encode())


def tell_progress(
    folder: Path, plans: Sequence[MemberPlan], epochs: int, on_progress: OnProgress
) -> None:
    """Reports finished members, and epochs of those in training."""
    done = sum(is_trained(folder, plan) for plan in plans)
    notes = [_read_note(path) for path in folder.glob(_progress_file(folder, "*").name)]
    running = [note for note in notes if note]
    part = sum(min(note["epoch"] / epochs, 1.0) for note in running)
    text = ", ".join(f"held-out loss {note['loss']:.3f}" for note in running)
    on_progress(min(done + part, len(plans)), len(plans), text)


def _read_note(path: Path) -> dict[str, float] | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:  # its member was finished in between
        return None
