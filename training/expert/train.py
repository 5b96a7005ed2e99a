"""The expert stage: Ray Train fits the ensemble's members, the driver reads salience from them.

Methods of salience that fit models of their own take seconds, and fit them on the driver.

Members are dealt out among the workers of one `TorchTrainer`. Each is written as soon as it is
finished, under a key of all it depends on, and a finished member is never trained again: that is
what makes a killed worker or run resume.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from ehr.cohorts.cohort import Cohort, cohort_hash
from ehr.config import ExpertSection
from ehr.expert.ensemble import ExpertEnsemble, save_ensembles
from ehr.expert.member_file import (
    member_file,
    read_member,
)
from ehr.expert.opinions import SalienceEnsemble
from ehr.expert.plans import (
    MemberPlan,
    all_patients,
    halves,
    whole_plans,
)
from ehr.expert.selection import (
    Rule,
    Selection,
    assembled,
    choose_rule,
    held_out_ids,
)
from ehr.expert.view import ExpertInput, ExpertScaler
from ehr.salience.deletion_json import own_deletion
from ehr.salience.methods import salience_ensembles, save_scorers
from ehr.salience.table import salience_table
from ehr.whole_files import write_bytes, write_json
from training.expert.members import (
    remove_stale,
    settle_members,
)
from training.expert.metrics import (
    expert_metrics,
    predictions_table,
    selected_salience,
)
from training.expert.scores import ask_on_workers
from training.expert.workers import (
    MemberWork,
    fit_on_workers,
    room_for,
    tell_progress,
)
from training.run.progress import OnProgress

logger = logging.getLogger(__name__)


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
    selection, section = _with_rule(cohort, section)
    scaler = ExpertScaler.fit(cohort, cohort.splits["train"])
    inputs = {patient: scaler.transform(case) for patient, case in cohort.cases.items()}
    plans = halves(cohort.splits["train"], cohort.labels, section)
    plans += whole_plans(cohort.splits["train"], section)
    if missing := remove_stale(folder, plans, section, data_sha256):
        rule = selection.rule
        work = _member_work(cohort, inputs, plans, missing, section, rule, data_sha256, folder)
        watch = partial(tell_progress, folder, plans, section.epochs, on_progress)
        fit_on_workers(work, storage, watch, reserved_cpus)
    settle_members(folder, plans)
    on_progress(len(plans), len(plans), "members are trained, fitting what salience needs")
    ensembles = _load_ensembles(folder, plans, scaler, section, data_sha256)
    save_ensembles(ensembles, folder)
    scorers = salience_ensembles(section.salience, ensembles, inputs, cohort.labels, section)
    save_scorers(scorers, folder)
    room, cpus = room_for(section, len(inputs), reserved_cpus), section.cpus_per_worker
    ask = partial(ask_on_workers, cpus=cpus, at_a_time=room, on_progress=on_progress)
    table = salience_table(cohort, scorers, section.salience, ask)
    predictions = predictions_table(cohort, inputs, ensembles[0])
    _write_parquet(out_dir / "salience.parquet", table)
    _write_parquet(out_dir / "predictions.parquet", predictions)
    if section.deletion_patients:
        on_progress(len(plans), len(plans), "deletion curves")
        _write_deletion(out_dir, cohort, inputs, scorers[0], section)
    metrics = expert_metrics(cohort, section, ensembles, table, predictions)
    metrics["selection"] = selected_salience(selection, ensembles)
    write_json(out_dir / "metrics.json", metrics)


def _with_rule(cohort: Cohort, section: ExpertSection) -> tuple[Selection, ExpertSection]:
    """How epochs are chosen with these patients, and the section that says so."""
    selection = choose_rule(section, cohort.splits["val"], cohort.labels)
    if section.selection not in ("auto", selection.rule):
        logger.warning("epochs are chosen by %s: %s", selection.rule, selection.reason)
    return selection, section.model_copy(update={"selection": selection.rule})


def _member_work(
    cohort: Cohort,
    inputs: Mapping[str, ExpertInput],
    plans: Sequence[MemberPlan],
    missing: Sequence[MemberPlan],
    section: ExpertSection,
    rule: Rule,
    data_sha256: str,
    folder: Path,
) -> MemberWork:
    """What workers need to fit the missing members: no test patient is in it."""
    training, validation = all_patients(plans), cohort.splits["val"]
    seen = sorted({*cohort.splits["train"], *validation})
    return MemberWork(
        inputs={patient: inputs[patient] for patient in seen},
        labels={patient: cohort.labels[patient] for patient in seen},
        held_out=tuple(held_out_ids(plan, training, validation, rule) for plan in missing),
        plans=tuple(missing),
        section=section,
        data_sha256=data_sha256,
        folder=folder.absolute(),
    )


def _write_deletion(
    out_dir: Path,
    cohort: Cohort,
    inputs: Mapping[str, ExpertInput],
    scorer: SalienceEnsemble,
    section: ExpertSection,
) -> None:
    training_ids, most = cohort.splits["train"], section.deletion_patients
    curves = own_deletion(scorer, inputs, cohort.labels, training_ids, most, section.seed)
    whose = {"method": section.salience, "split": "train"}
    write_json(out_dir / "deletion.json", whose | curves)


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


def _write_parquet(path: Path, table: pd.DataFrame) -> None:
    write_bytes(path, table.to_parquet(index=False))
