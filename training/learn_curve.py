"""How results grow with the number of training patients, beside models that read the record."""
# pandas annotates results of indexing too widely for the checker.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from ehr.metrics import performance
from training.arms import ARMS
from training.evaluation import EXPERT_METHODS
from training.result_table import format_number, method_label
from training.run_folder import RunFolder, write_json

CURVE_FILE = "curve.json"
"""In RUN/learn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One method with one number of training patients, on the same test patients for all."""

    train_patients: int
    """Patients of the training split."""
    method: str
    seed: int | None
    """Of the arm's own training; None for models that read the record."""
    num_test: int
    auroc: float | None
    auroc_low: float | None
    auroc_high: float | None
    auprc: float | None
    auprc_low: float | None
    auprc_high: float | None


def size_folder(size: int | None) -> str:
    """Folder of the experiment with so many training patients, below the run folder."""
    return "train-all" if size is None else f"train-{size}"


def write_learn_curve(run_dir: Path) -> list[CurvePoint]:
    """Collects all finished units of all sizes into RUN/learn/curve.json.

    Returns:
        The points, by size; within a size units before models that read the record.
    """
    points: list[CurvePoint] = []
    for folder in sorted(run_dir.glob("train-*"), key=_size_of):
        if (folder / "cohort" / "summary.json").exists():
            points += _points(folder)
    write_json(run_dir / "learn" / CURVE_FILE, [asdict(point) for point in points])
    return points


def curve_lines(run_dir: Path) -> list[str]:
    """The curve as a plain table: AUROC of every method (mean over seeds), a column a size."""
    known = [
        CurvePoint(**point) for point in json.loads((run_dir / "learn" / CURVE_FILE).read_text())
    ]
    sizes = sorted({point.train_patients for point in known})
    methods = list(dict.fromkeys(point.method for point in known))
    width = max((len(method_label(method)) for method in methods), default=0)
    lines = [f"{'AUROC':<{width}}" + "".join(f"{f'{size} patients':>22}" for size in sizes)]
    for method in methods:
        cells = [
            _cell([p for p in known if p.method == method and p.train_patients == size])
            for size in sizes
        ]
        lines.append(f"{method_label(method):<{width}}" + "".join(f"{cell:>22}" for cell in cells))
    return lines


def _cell(points: Sequence[CurvePoint]) -> str:
    found = [point.auroc for point in points if point.auroc is not None]
    if not found:
        return "-"
    text = format_number(fmean(found))
    if len(points) > 1:
        return f"{text} ({len(points)} seeds)"
    low, high = points[0].auroc_low, points[0].auroc_high
    return text if low is None else f"{text} [{format_number(low)}, {format_number(high)}]"


def _size_of(folder: Path) -> tuple[bool, int]:
    number = re.fullmatch(r"train-(\d+)", folder.name)
    return (number is None, int(number[1]) if number else 0)


def _points(folder: Path) -> list[CurvePoint]:
    summary = json.loads((folder / "cohort" / "summary.json").read_text())
    size = summary["splits"]["train"]["patients"]
    points: list[CurvePoint] = []
    asked: set[str] = set()
    section = RunFolder(folder).read_config().evaluate
    for arm in ARMS:
        for unit in sorted((folder / "arms" / arm).glob("seed-*")):
            if not RunFolder(unit).stage("evaluate").done:
                continue
            rows = json.loads((unit / "evaluate" / "results.json").read_text())
            predictions = pd.read_parquet(unit / "evaluate" / "predictions.parquet")
            asked |= set(predictions["patient_id"])
            points.append(_point(size, rows[0], int(unit.name.removeprefix("seed-"))))
    stored = pd.read_parquet(folder / "expert" / "predictions.parquet")
    same = stored[(stored["split"] == "test") & stored["patient_id"].isin(asked)]
    for method in EXPERT_METHODS:
        table = same[same["method"] == method]
        if len(table):
            found = performance(
                table["label"].to_numpy(int),
                table["probability"].to_numpy(float),
                section.num_resamples,
                section.seed,
            )
            points.append(_point(size, {**found, "method": method}, None))
    return points


def _point(size: int, row: dict[str, Any], seed: int | None) -> CurvePoint:
    names = ("auroc", "auroc_low", "auroc_high", "auprc", "auprc_low", "auprc_high")
    return CurvePoint(
        train_patients=size,
        method=row["method"],
        seed=seed,
        num_test=row["n"],
        **{name: row.get(name) for name in names},
    )
