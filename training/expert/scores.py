"""Scores of every member for every patient of a large cohort, computed by Ray tasks."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import ray
import torch

from ehr.expert.opinions import Opinions, SalienceEnsemble
from ehr.expert.view import ExpertInput
from training.run.progress import OnProgress

SMALL = 100_000
"""Members times patients times features that are asked in this process: a worker's start takes
longer."""

_PATIENTS = 256
"""Patients a task: some seconds of work, so that the progress line moves."""


def ask_on_workers(
    ensemble: SalienceEnsemble,
    inputs: Sequence[ExpertInput],
    *,
    cpus: float,
    at_a_time: int,
    on_progress: OnProgress,
) -> Opinions:
    """An ensemble's opinions of these patients; the same as `ensemble.predict` gives.

    Ray must be initialised where there are many patients.

    Args:
        ensemble: any salience method.
        inputs: the patients, in the order of the answer.
        cpus: logical CPUs of a task.
        at_a_time: tasks in flight; more than there are real cores only take each other's cache.
        on_progress: called with patients done, patients in total and a text.
    """
    size = len(ensemble.plans) * len(inputs) * len(ensemble.scaler.features)
    if size <= SMALL:
        return ensemble.predict(inputs)
    asked = ray.put(ensemble)
    parts = [list(inputs[start : start + _PATIENTS]) for start in range(0, len(inputs), _PATIENTS)]
    task = _predict.options(num_cpus=cpus)  # pyright: ignore[reportFunctionMemberAccess]
    answers: list[ray.ObjectRef] = []
    waiting: list[ray.ObjectRef] = []
    while len(answers) < len(parts) or waiting:
        while len(waiting) < at_a_time and len(answers) < len(parts):
            waiting.append(task.remote(asked, parts[len(answers)], max(1, int(cpus))))
            answers.append(waiting[-1])
        _, waiting = ray.wait(waiting)
        patients = min((len(answers) - len(waiting)) * _PATIENTS, len(inputs))
        on_progress(patients, len(inputs), "patients scored by every member")
    return _joined(ray.get(answers))


@ray.remote
def _predict(ensemble: SalienceEnsemble, inputs: list[ExpertInput], threads: int) -> Opinions:
    _use_threads(threads)
    return ensemble.predict(inputs)


@cache
def _use_threads(number: int) -> None:
    torch.set_num_threads(number)


def _joined(parts: Sequence[Opinions]) -> Opinions:
    return Opinions(
        patient_ids=tuple(patient for part in parts for patient in part.patient_ids),
        risk=np.concatenate([part.risk for part in parts], axis=1),
        scores=np.concatenate([part.scores for part in parts], axis=1),
        seen=np.concatenate([part.seen for part in parts], axis=1),
    )
