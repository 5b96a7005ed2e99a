"""The expert stage: Ray Train fits the ensemble's members, the driver reads salience from them.

Methods of salience that fit models of their own take seconds, and fit them on the driver.

Members are dealt out among the workers of one `TorchTrainer`. Each is written as soon as it is
finished, under a key of all it depends on, and a finished member is never trained again: that is
what makes a killed worker or run resume.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer, get_device

from ehr.cohorts.cohort import Cohort, cohort_hash
from ehr.cohorts.truth import ceilings
from ehr.config import ExpertSection
from ehr.errors import TrainingError
from ehr.expert.baselines import BASELINES
from ehr.expert.ensemble import ExpertEnsemble, save_ensembles
from ehr.expert.member import (
    Member,
    MemberPlan,
    all_patients,
    halves,
    member_file,
    member_key,
    read_member,
    whole_plans,
    write_atomically,
    write_member,
)
from ehr.expert.selection import (
    Selection,
    assembled,
    choose_rule,
    held_out_ids,
    train_member,
)
from ehr.expert.view import ExpertInput, ExpertScaler
from ehr.metrics import performance
from ehr.salience.agreement import agreement
from ehr.salience.deletion_json import own_deletion
from ehr.salience.methods import salience_ensembles, save_scorers
from ehr.salience.table import salience_table, salient_sets, true_overlap
from training.expert.members import (
    is_trained,
    remove_stale,
    settle_members,
    trace_file,
)
from training.expert.scores import ask_on_workers
from training.learner.worker_group import fit_and_watch
from training.run.folder import write_json
from training.run.progress import OnProgress

logger = logging.getLogger(__name__)

MAX_FAILURES = 2
"""Restarts of the worker group; each loses at most the members in training at that moment."""

_AGREEMENT_KEYS = ("jaccard", "jaccard_permuted", "jaccard_constant", "kappa")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Work:
    """What the workers need, put into the object store once."""

    inputs: dict[str, ExpertInput]
    labels: dict[str, int]
    held_out: tuple[tuple[str, ...], ...]
    """Patients that judge each of `plans`."""
    plans: tuple[MemberPlan, ...]
    section: ExpertSection
    data_sha256: str
    folder: Path


def train_expert(
    cohort: Cohort,
    section: ExpertSection,
    out_dir: Path,
    storage: Path,
    on_progress: OnProgress,
    reserved_cpus: float = 0,
) -> None:
    """Trains what is missing of the ensembles, then writes salience, predictions and metrics.

    Ray must be initialised. `out_dir` receives `checkpoint/`, `salience.parquet`,
    `predictions.parquet`, `deletion.json` and, last, `metrics.json`; it must be visible to the
    workers.

    Args:
        cohort: patients, labels and splits.
        section: the expert section of the configuration.
        out_dir: the stage's folder, `RUN/expert`.
        storage: folder for Ray Train's own records.
        on_progress: called with members done (in part), members in total and a text.
        reserved_cpus: logical CPUs that something else may still take meanwhile.

    Raises:
        DataError: if the cohort cannot be cross-fitted.
        TrainingError: if the worker group fails more than `MAX_FAILURES` times.
    """
    folder = out_dir / "checkpoint"
    folder.mkdir(parents=True, exist_ok=True)
    # The networks' operators are small: threads cost more than they give, most on busy cores.
    torch.set_num_threads(1)
    data_sha256 = cohort_hash(cohort)
    selection = choose_rule(section, cohort.splits["val"], cohort.labels)
    if section.selection not in ("auto", selection.rule):
        logger.warning("epochs are chosen by %s: %s", selection.rule, selection.reason)
    section = section.model_copy(update={"selection": selection.rule})
    scaler = ExpertScaler.fit(cohort, cohort.splits["train"])
    inputs = {patient: scaler.transform(case) for patient, case in cohort.cases.items()}
    plans = halves(cohort.splits["train"], cohort.labels, section)
    plans += whole_plans(cohort.splits["train"], section)
    missing = remove_stale(folder, plans, section, data_sha256)
    training = all_patients(plans)
    if missing:
        seen = {*cohort.splits["train"], *cohort.splits["val"]}
        work = _Work(
            inputs={patient: inputs[patient] for patient in sorted(seen)},
            labels={patient: cohort.labels[patient] for patient in sorted(seen)},
            held_out=tuple(
                held_out_ids(plan, training, cohort.splits["val"], selection.rule)
                for plan in missing
            ),
            plans=tuple(missing),
            section=section,
            data_sha256=data_sha256,
            folder=folder.absolute(),
        )
        watch = partial(_tell, folder, plans, section.epochs, on_progress)
        _fit_on_workers(work, storage, watch, reserved_cpus)
    settle_members(folder, plans)
    on_progress(len(plans), len(plans), "members are trained, fitting what salience needs")
    ensembles = _load_ensembles(folder, plans, scaler, section, data_sha256)
    save_ensembles(ensembles, folder)
    scorers = salience_ensembles(section.salience, ensembles, inputs, cohort.labels, section)
    save_scorers(scorers, folder)
    ask = partial(
        ask_on_workers,
        cpus=section.cpus_per_worker,
        at_a_time=_room(section, len(inputs), reserved_cpus),
        on_progress=on_progress,
    )
    table = salience_table(cohort, scorers, section.salience, ask)
    predictions = _predict(cohort, inputs, ensembles[0])
    _write_parquet(out_dir / "salience.parquet", table)
    _write_parquet(out_dir / "predictions.parquet", predictions)
    if section.deletion_patients:
        on_progress(len(plans), len(plans), "deletion curves")
        training_ids, most = cohort.splits["train"], section.deletion_patients
        curves = own_deletion(scorers[0], inputs, cohort.labels, training_ids, most, section.seed)
        whose = {"method": section.salience, "split": "train"}
        write_json(out_dir / "deletion.json", whose | curves)
    metrics = _metrics(cohort, section, ensembles, table, predictions)
    write_json(out_dir / "metrics.json", metrics | {"selection": _selected(selection, ensembles)})


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


def _room(section: ExpertSection, num_members: int, reserved_cpus: float) -> int:
    available = ray.available_resources()
    free = {
        "CPU": available.get("CPU", 0.0) - reserved_cpus,
        "GPU": available.get("GPU", 0.0),
    }
    nodes = [node for node in ray.nodes() if node["Alive"]]
    # Only of one machine does this process know the cores, and there they are its own.
    num_cores = os.cpu_count() if len(nodes) == 1 else None
    return num_workers(section, num_members, free, num_cores)


def _fit_on_workers(
    work: _Work, storage: Path, watch: Callable[[], None], reserved_cpus: float
) -> None:
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
                num_workers=_room(section, len(work.plans), reserved_cpus),
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
    work: _Work = ray.get(config["work"])
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
    write_atomically(_progress_file(folder, rank), note.encode())


def _tell(folder: Path, plans: Sequence[MemberPlan], epochs: int, on_progress: OnProgress) -> None:
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


def _load_ensembles(
    folder: Path,
    plans: Sequence[MemberPlan],
    scaler: ExpertScaler,
    section: ExpertSection,
    data_sha256: str,
) -> list[ExpertEnsemble]:
    members = [read_member(folder / member_file(plan)) for plan in plans]
    return [
        assembled(
            [member for member in members if member.plan.ensemble == ensemble],
            scaler,
            section,
            data_sha256,
        )
        for ensemble in range(section.num_ensembles)
    ]


def _predict(
    cohort: Cohort, inputs: Mapping[str, ExpertInput], ensemble: ExpertEnsemble
) -> pd.DataFrame:
    """Probabilities of the expert and of every baseline for the test patients."""
    train, test = cohort.splits["train"], cohort.splits["test"]
    asked = [inputs[patient] for patient in test]
    training = [inputs[patient] for patient in train]
    labels = [cohort.labels[patient] for patient in train]
    answers = {"concare": ensemble.fair_risk(asked)}
    for name, baseline in BASELINES.items():
        answers[name] = baseline(training, labels, asked, ensemble.section.seed)
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "method": method,
                    "patient_id": test,
                    "split": "test",
                    "label": [cohort.labels[patient] for patient in test],
                    "probability": probabilities,
                }
            )
            for method, probabilities in answers.items()
        ],
        ignore_index=True,
    )


def _metrics(
    cohort: Cohort,
    section: ExpertSection,
    ensembles: Sequence[ExpertEnsemble],
    table: pd.DataFrame,
    predictions: pd.DataFrame,
) -> dict[str, Any]:
    rows = {
        str(method): performance(
            frame["label"].to_numpy(), frame["probability"].to_numpy(), seed=section.seed
        )
        for method, frame in predictions.groupby("method", sort=False)
    }
    sets = [
        salient_sets(table, section.num_salient_features, section.candidates, ensemble)
        for ensemble in range(len(ensembles))
    ]
    return {
        "test": rows["concare"] | _agreement(sets, cohort.splits["test"], section),
        **_agreement(sets, cohort.splits["train"], section),
        "baselines": {name: rows[name] for name in BASELINES},
        "out_of_fold": section.members > 1,
        "num_salient_features": section.num_salient_features,
        "candidates": section.candidates,
        "salience": section.salience,
        "truth": _truth(cohort, section, sets[0]),
        "data_sha256": ensembles[0].data_sha256,
        "model_sha256": [ensemble.model_sha256 for ensemble in ensembles],
        "members": [
            {
                "ensemble": member.plan.ensemble,
                "member": member.plan.member,
                "whole": member.plan.whole,
                "num_patients": len(member.plan.train_ids),
                "best_epoch": member.state.best_epoch,
                "num_epochs": member.state.num_epochs,
                "validation_loss": member.state.validation_loss,
            }
            for ensemble in ensembles
            for member in ensemble.all_members
        ],
    }


def _selected(selection: Selection, ensembles: Sequence[ExpertEnsemble]) -> dict[str, Any]:
    """The rule that chose epochs, and the epoch of each ensemble or each member's own."""
    epochs = [[member.state.best_epoch for member in each.members] for each in ensembles]
    is_common = selection.rule == "cross_validation"
    return asdict(selection) | {
        "epochs": [each[0] for each in epochs] if is_common else epochs,
        "mean_held_out_loss": [
            float(np.mean([member.state.validation_loss for member in each.members]))
            for each in ensembles
        ],
    }


def _agreement(
    sets: Sequence[Mapping[str, tuple[str, ...]]], ids: Sequence[str], section: ExpertSection
) -> dict[str, float | None]:
    """Agreement of the two ensembles on these patients; null if there is one ensemble only."""
    if len(sets) < 2:
        return dict.fromkeys(_AGREEMENT_KEYS)
    first, second = ([chosen[patient] for patient in ids] for chosen in sets)
    measured = agreement(first, second, section.num_salient_features)
    return {key: getattr(measured, key) for key in _AGREEMENT_KEYS}


def _truth(
    cohort: Cohort, section: ExpertSection, salient: Mapping[str, tuple[str, ...]]
) -> dict[str, dict[str, float | None]] | None:
    """How close salience comes to a generated cohort's truth, and the best metrics there are."""
    if cohort.truth is None:
        return None
    result: dict[str, dict[str, float | None]] = {}
    for split, ids in cohort.splits.items():
        reached, constant = true_overlap(cohort, salient, ids, section.num_salient_features)
        result[split] = {
            "jaccard": reached,
            "jaccard_constant": constant,
            **ceilings(cohort, ids),
        }
    return result


def _write_parquet(path: Path, table: pd.DataFrame) -> None:
    write_atomically(path, table.to_parquet(index=False))
