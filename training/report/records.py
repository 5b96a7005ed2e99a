"""What a report reads: a run folder's files, each of which may be missing, cut off or odd."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from training.evaluation.methods import ordered_rows
from training.readable import finite_number
from training.run import stages
from training.run.files import (
    Rows,
    RunFiles,
    as_object,
)

STAGES = tuple(stage.name for stage in stages.STAGES)
"""Stages in the order in which a run takes them; each is also a command and a folder."""

MAX_NAMED_TREES = 3
"""Unreadable trees that are named one by one."""


TRUTH_COLUMNS = ("patient_id", "true_risk")
SALIENCE_COLUMNS = (
    "patient_id",
    "split",
    "ensemble",
    "member",
    "out_of_fold",
    "feature",
    "score",
    "observed",
)
TRAJECTORY_COLUMNS = ("patient_id", "text", "reward", "reward_cls", "reward_att", "kept")
EXPERT_PREDICTION_COLUMNS = ("method", "patient_id", "split", "label", "probability")
NEEDED_COLUMNS = ("method", "patient_id", "label", "probability", "parse_failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecords:
    """Everything of a run folder that a report shows; None or empty = the file is not there."""

    config: dict[str, Any] = field(default_factory=dict)
    """`config.json`."""
    summary: dict[str, Any] | None = None
    truth: Rows | None = None
    expert: dict[str, Any] | None = None
    deletion: dict[str, Any] | None = None
    """Deletion and insertion curves of the expert's salience."""
    salience: pd.DataFrame | None = None
    expert_predictions: Rows | None = None
    """The EHR models' risks of all splits; `predictions` are those of the test split."""
    trajectories: Rows | None = None
    ledger: dict[str, Any] | None = None
    trees: "TreeFiles" = field(default_factory=lambda: TreeFiles(Path(), ()))
    sft: Rows = ()
    grpo: Rows = ()
    selection: dict[str, Any] | None = None
    """The step that Stage 2 chose on validation patients, and the curve."""
    direct_sft: Rows = ()
    """Steps of the `sft` row's own fine-tuning."""
    results: Rows = ()
    differences: Rows = ()
    """Paired differences between methods on the same patients."""
    other_cohort: dict[str, Any] | None = None
    """Results on another test cohort."""
    feature_order: dict[str, Any] | None = None
    """Results with features of the test prompts at other places."""
    predictions: Rows | None = None
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    """`stage.json` of each stage that has one."""
    problems: tuple[str, ...] = ()
    """One sentence for each file that exists and cannot be read."""

    def setting(self, section: str, key: str) -> Any:
        """A value of the resolved configuration, or None."""
        return as_object(as_object(self.config.get("config")).get(section)).get(key)

    def salient_choice(self) -> tuple[int, str]:
        """How many features are salient, and which may be: `observed` or `paper`."""
        size = finite_number(self.setting("expert", "num_salient_features"))
        return int(size or 5), str(self.setting("expert", "candidates") or "observed")


@dataclass(frozen=True, slots=True)
class TreeFiles:
    """The search's trees, which are read one at a time: a large cohort's do not fit into memory."""

    run_dir: Path
    names: tuple[str, ...]
    """Below the run folder, by patient."""

    def read(self, problems: list[str]) -> Iterator[dict[str, Any]]:
        """Every tree that can be read; a sentence for those that cannot joins `problems`."""
        reader = RunFiles(self.run_dir)
        for name in self.names:
            tree = reader.json_object(name)
            if tree is not None:
                yield tree
        problems += reader.problems[:MAX_NAMED_TREES]
        if len(reader.problems) > MAX_NAMED_TREES:
            more = len(reader.problems) - MAX_NAMED_TREES
            problems.append(f"{more} more files in search/trees/ cannot be read.")


def read_run(run_dir: Path) -> RunRecords:
    """Everything in a run folder that a report shows."""
    reader = RunFiles(run_dir)
    trees = sorted((run_dir / "search" / "trees").glob("*.json"))
    stages = {stage: reader.json_object(f"{stage}/stage.json") for stage in STAGES}
    salience = reader.table("expert/salience.parquet", SALIENCE_COLUMNS)
    trajectories = reader.rows("search/trajectories.parquet", TRAJECTORY_COLUMNS)
    return RunRecords(
        config=reader.json_object("config.json") or {},
        summary=reader.json_object("cohort/summary.json"),
        truth=reader.rows("cohort/truth.parquet", TRUTH_COLUMNS),
        expert=reader.json_object("expert/metrics.json"),
        deletion=reader.json_object("expert/deletion.json"),
        salience=salience,
        expert_predictions=reader.rows("expert/predictions.parquet", EXPERT_PREDICTION_COLUMNS),
        trajectories=trajectories,
        ledger=reader.json_object("search/ledger.json"),
        trees=TreeFiles(run_dir, tuple(str(path.relative_to(run_dir)) for path in trees)),
        sft=reader.json_lines("sft/metrics.jsonl"),
        grpo=reader.json_lines("grpo/metrics.jsonl"),
        selection=reader.json_object("grpo/selection.json"),
        direct_sft=reader.json_lines("direct_sft/metrics.jsonl"),
        results=reader.json_rows("evaluate/results.json"),
        differences=reader.json_rows("evaluate/differences.json"),
        other_cohort=reader.json_object("evaluate/other_cohort.json"),
        feature_order=reader.json_object("evaluate/feature_order.json"),
        predictions=reader.rows("evaluate/predictions.parquet", NEEDED_COLUMNS),
        stages={stage: record for stage, record in stages.items() if record is not None},
        problems=tuple(reader.problems),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One method's predictions, in the order of its rows."""

    patients: tuple[str, ...]
    labels: np.ndarray
    """0 or 1, int [patients]."""
    probabilities: np.ndarray
    """Finite, float [patients]."""
    is_readable: np.ndarray
    """Whether the probability is the method's own, bool [patients]."""


def scores_by_method(rows: Rows) -> dict[str, Scores]:
    """The usable predictions of each method, in the order of the result table.

    A row without a patient's label or without a probability is left out.
    """
    usable: dict[str, list[tuple[str, int, float, bool]]] = {}
    for row in rows:
        label, probability = finite_number(row["label"]), finite_number(row["probability"])
        if label is not None and probability is not None:
            is_readable = not row.get("parse_failed")
            usable.setdefault(str(row["method"]), []).append(
                (str(row["patient_id"]), int(label == 1), probability, is_readable)
            )
    scores: dict[str, Scores] = {}
    for row in ordered_rows([{"method": method} for method in usable]):
        patients, labels, probabilities, is_readable = zip(*usable[row["method"]], strict=True)
        scores[row["method"]] = Scores(
            patients=patients,
            labels=np.array(labels),
            probabilities=np.array(probabilities),
            is_readable=np.array(is_readable),
        )
    return scores


def name_list(value: object) -> list[str]:
    """Feature names from a table's cell; empty if the cell is missing."""
    return [str(name) for name in value] if isinstance(value, list) else []
