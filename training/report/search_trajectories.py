"""The best trajectories of a search as readable text."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ehr.salience.table import salient_sets
from training.readable import finite_number
from training.report.case import NamedFeature
from training.report.records import RunRecords, name_list
from training.report.text import TextBlock, printable, text_blocks
from training.run.files import Rows

NUM_BEST = 3
"""Trajectories that are shown as text."""

_STEP = re.compile(r"subquestion (\d+)|final subquestion", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryStep:
    """A question of a trajectory with what was written under it."""

    label: str
    """Such as "Step 1" or "Final"; empty for what stands before the first question."""
    question: str
    parts: tuple[TextBlock, ...]
    """The answer; of the final step the features and the probability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BestTrajectory:
    """A trajectory to read."""

    patient_id: str
    reward: float | None
    reward_cls: float | None
    reward_att: float | None
    probability: float | None
    visit_count: float | None
    steps: tuple[TrajectoryStep, ...]
    features: tuple[NamedFeature, ...]
    """What it names, as the project understood it; empty if the table does not say."""
    missed: tuple[str, ...]
    """The expert's features that it does not name."""


def best_trajectories(
    trajectories: Rows, salient: Mapping[str, Sequence[str]]
) -> list[BestTrajectory]:
    """The best trajectory of each of the patients with the highest rewards.

    Args:
        trajectories: rows of `search/trajectories.parquet`.
        salient: the expert's features of patients; may lack any.
    """
    return [_best(row, salient.get(str(row["patient_id"]), ())) for row in best_rows(trajectories)]


def best_rows(trajectories: Rows) -> list[dict[str, Any]]:
    """The rows that `best_trajectories` shows."""
    best_of_patient: dict[str, dict[str, Any]] = {}
    for row in sorted(trajectories, key=_reward, reverse=True):
        best_of_patient.setdefault(str(row["patient_id"]), row)
    return list(best_of_patient.values())[:NUM_BEST]


def salient_of(records: RunRecords, patients: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The expert's features of patients, out of fold, as far as the run folder has them."""
    table = records.salience
    if table is None or not patients:
        return {}
    rows = table.loc[table["patient_id"].isin(list(patients))]
    if rows.empty or rows["score"].isna().any():
        return {}
    # a category that no row has any more would come back as a patient without scores
    rows = rows.assign(patient_id=rows["patient_id"].astype(pd.StringDtype()).astype(object))
    return salient_sets(rows, *records.salient_choice())


def trajectory_steps(text: object) -> tuple[TrajectoryStep, ...]:
    """The text's questions, each with what was written before the next one."""
    found: list[tuple[str, str, list[TextBlock]]] = []
    for block in text_blocks(text):
        opened = _STEP.fullmatch(block.label)
        if opened:
            label = f"Step {opened.group(1)}" if opened.group(1) else "Final"
            found.append((label, block.text, []))
        else:
            if not found:
                found.append(("", "", []))
            found[-1][2].append(block)
    return tuple(
        TrajectoryStep(label=label, question=question, parts=tuple(parts))
        for label, question, parts in found
    )


def _best(row: Mapping[str, Any], salient: Sequence[str]) -> BestTrajectory:
    named = list(dict.fromkeys(name_list(row.get("features"))))
    return BestTrajectory(
        patient_id=printable(row["patient_id"]),
        reward=finite_number(row["reward"]),
        reward_cls=finite_number(row["reward_cls"]),
        reward_att=finite_number(row["reward_att"]),
        probability=finite_number(row.get("probability")),
        visit_count=finite_number(row.get("visit_count")),
        steps=trajectory_steps(row["text"] if isinstance(row["text"], str) else ""),
        features=tuple(
            NamedFeature(name=printable(name), is_salient=name in salient) for name in named
        ),
        missed=tuple(printable(name) for name in salient if name not in named),
    )


def _reward(row: Mapping[str, Any]) -> float:
    reward = finite_number(row["reward"])
    return -np.inf if reward is None else reward
