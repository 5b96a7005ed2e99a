"""How results grow with the number of training patients, beside models that read the record.

An experiment over several numbers of training patients is an experiment for each, in a folder of
its own below the run folder; the curve is made of their results.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ehr.errors import DataError
from ehr.seeds import holm
from ehr.whole_files import write_json
from training.evaluation.methods import EXPERT_METHODS
from training.experiments.results_file import RESULTS_FILE, read_learn_results
from training.experiments.table import (
    estimate_text,
    facts,
    measure_headings,
    p_text,
    unfinished_lines,
)
from training.readable import aligned
from training.run.files import RunFiles, as_object

CURVE_FILE = "curve.json"
"""In RUN/learn."""

REFERENCES = (*EXPERT_METHODS, "true_risk")
"""What an experiment is read against, of that which has a value for every number of patients."""

Curve = Mapping[str, Any]
"""What `RUN/learn/curve.json` holds."""


def size_folder(size: int | None) -> str:
    """Folder of the experiment with so many training patients, below the run folder."""
    return "train-all" if size is None else f"train-{size}"


def sizes_found(run_dir: Path) -> list[int | None]:
    """Numbers of training patients that have a folder below the run folder; None (= all) last."""
    names = (re.fullmatch(r"train-(\d+|all)", folder.name) for folder in run_dir.glob("train-*"))
    numbers = {name[1] for name in names if name}
    sizes = sorted(int(number) for number in numbers - {"all"})
    return [*sizes, None] if "all" in numbers else [*sizes]


def write_learn_curve(run_dir: Path) -> Curve:
    """Collects the results of all sizes into `RUN/learn/curve.json`, and returns it.

    Sizes without a result are left out; of the others only finished units are in it. One that
    cannot be read is named among the problems.
    """
    sizes: list[dict[str, Any]] = []
    problems: list[str] = []
    for size in sizes_found(run_dir):
        folder = run_dir / size_folder(size)
        if (folder / "learn" / RESULTS_FILE).is_file():
            try:
                sizes.append(_of_size(folder))
            except (DataError, KeyError) as error:
                problems.append(f"{folder.name} is in no number of the curve: {error}")
    rows = [row for size in sizes for row in size["differences"]]
    # what stands together on the curve, not what stood in each size's own table
    for row, p in zip(rows, holm([row.get("p") for row in rows]), strict=True):
        row["p_holm"] = p
    curve = {"sizes": sizes, "problems": problems}
    write_json(run_dir / "learn" / CURVE_FILE, curve)
    return curve


def curve_lines(curve: Curve) -> list[str]:
    """The curve as a plain table: AUROC of everybody, a column a size, and the differences."""
    lines = curve_rows(curve, "auroc")
    if differences := curve_difference_rows(curve):
        lines += differences[1:]
    notes = curve_notes(curve)
    return [*([*aligned(lines), *notes] if curve["sizes"] else []), *curve["problems"]]


def curve_notes(curve: Curve) -> list[str]:
    """What its intervals say nothing about, a sentence each."""
    few = {
        f"{row['label']}, {size['train_patients']:,} patients: {note}"
        for size in curve["sizes"]
        for row in size["rows"]
        if (note := row.get("seeds_note")) is not None
    }
    return [
        "Each number of training patients is one choice of them: intervals say nothing about "
        "another choice.",
        *sorted(few),
    ]


def curve_rows(curve: Curve, measure: str) -> list[list[str]]:
    """A measure of every arm and reference, a column a number of patients; headings first."""
    sizes = curve["sizes"]
    rows = [_headings(curve, measure_headings(sizes[0] if sizes else {})[measure])]
    for name, label in methods(curve).items():
        found = [measured(size, name, measure) for size in sizes]
        if any(found):
            rows.append([label, *(estimate_text(each, measure) if each else "-" for each in found)])
    return rows


def curve_difference_rows(curve: Curve) -> list[list[str]]:
    """AUROC of an arm less that of a model of the record, on the same patients; headings first.

    P-values are adjusted by Holm's method for all differences of the curve.
    """
    labels = {row["name"]: row["label"] for size in curve["sizes"] for row in size["rows"]}
    by_size = [
        {(row["arm"], row["minus"]): row for row in size["differences"]} for size in curve["sizes"]
    ]
    pairs = dict.fromkeys(pair for rows in by_size for pair in rows)
    texts = [
        [
            f"{labels[arm]} - {labels[minus]}",
            *(
                f"{estimate_text({**row, 'value': row['difference']}, 'auroc', is_signed=True)}, "
                f"p {p_text(row.get('p_holm'))}"
                if (row := rows.get((arm, minus)))
                else "-"
                for rows in by_size
            ),
        ]
        for arm, minus in pairs
    ]
    return [_headings(curve, "Difference in AUROC, p by Holm"), *texts] if texts else []


def methods(curve: Curve) -> dict[str, str]:
    """Name and label of every arm and reference that any size has: arms first."""
    every = [row for size in curve["sizes"] for row in size["rows"]]
    every.sort(key=lambda row: row["num_seeds"] is None)
    return {row["name"]: row["label"] for row in every}


def measured(size: Mapping[str, Any], name: str, measure: str) -> Mapping[str, Any] | None:
    """The estimate of an arm or reference at a size; None where it has none."""
    return next((row["measures"].get(measure) for row in size["rows"] if row["name"] == name), None)


def _headings(curve: Curve, first: str) -> list[str]:
    return [first, *(f"{size['train_patients']:,} patients" for size in curve["sizes"])]


def _of_size(folder: Path) -> dict[str, Any]:
    summary = as_object(RunFiles(folder).json_object("cohort/summary.json"))
    train = as_object(as_object(summary.get("splits")).get("train"))
    if not train:
        raise DataError(f"expected its training patients in {folder}/cohort/summary.json")
    results = read_learn_results(folder)
    return {
        "folder": folder.name,
        "train_patients": train["patients"],
        "train_positives": train["positives"],
        "num_samples": results.get("num_samples"),
        "facts": facts(results, has_training_patients=False),
        "rows": [*_rows(results["arms"]), *_rows(results["references"])],
        "differences": [
            dict(row)
            for row in results["differences"]
            if row["measure"] == "auroc" and row["minus"] in EXPERT_METHODS
        ],
        "missing": [*unfinished_lines(results), *results["problems"]],
    }


def _rows(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "name": row.get("arm") or row["name"],
            "label": row["label"],
            "num_seeds": row.get("num_seeds"),
            "seeds_note": row.get("seeds_note"),
            "measures": row["measures"],
        }
        for row in found
        if "arm" in row or row["name"] in REFERENCES
    ]
