"""The report: one self-contained page about a run, made from whatever its folder holds.

Texts of models and names from data are hostile as far as a page is concerned: the template escapes
everything, the page's policy forbids loading anything and running anything but the one script of
the search tree, named by its hash. Without scripts the page shows the same facts.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.evaluation.selection import selection_text
from training.readable import (
    MISSING,
    duration,
    finite_number,
    format_number,
    format_percentage,
    whole,
)
from training.report.case import CaseComparison, compare_case
from training.report.chart import present
from training.report.expert import expert_section
from training.report.feature_order import feature_order_section
from training.report.figures import bar_figure, stage_time_figure
from training.report.html import write_page
from training.report.other_cohort import other_cohort_section
from training.report.overview import (
    header,
    size_warning,
    switched_off,
    tiles,
)
from training.report.records import STAGES, RunRecords, read_run
from training.report.results import results_section
from training.report.search import search_section
from training.report.text import printable, shown
from training.report.training_curves import (
    GRPO_PANELS,
    SELECTION_PANEL,
    SFT_PANELS,
    SFT_TIME_PARTS,
    Panel,
    Steps,
    curve_points,
    curves_figure,
    grpo_time_parts,
    step_time_figure,
)
from training.run.files import as_object


def write_report(run_dir: Path) -> Path:
    """Writes `RUN/report.html` from what the run folder holds, and returns its path.

    Files that are missing leave their section out, with the command that makes them; files that
    cannot be read are named on the page.
    """
    records = read_run(run_dir)
    return write_page(run_dir / "report.html", "report.html.j2", _context(records, run_dir))


def _context(records: RunRecords, run_dir: Path) -> dict[str, Any]:
    name = shown(records.config.get("name") or run_dir.name)
    model = as_object(records.config.get("model"))
    expert, expert_problems = expert_section(records)
    search, search_problems = search_section(records)
    return {
        "name": name,
        "header": header(records),
        "model": {key: model.get(key) for key in ("description", "source", "sha256")},
        "warning": size_warning(records),
        "problems": (*records.problems, *expert_problems, *search_problems),
        "make": lambda stage: f"eag-rl {stage} CONFIG --run-dir {run_dir}",
        "switched_off": switched_off(records),
        "tiles": tiles(records),
        "results": results_section(records),
        "other_cohort": other_cohort_section(records),
        "feature_order": feature_order_section(records),
        "cohort": _cohort(records),
        "expert": expert,
        "search": search,
        "sft": _learning(records.sft, SFT_PANELS, SFT_TIME_PARTS),
        "direct_sft": _learning(records.direct_sft, SFT_PANELS, SFT_TIME_PARTS),
        "grpo": _stage2(records),
        "case": _case(records),
        "times": _times(records),
        "config_text": _json(records.config.get("config")),
        "versions": as_object(records.config.get("versions")),
    }


def _cohort(records: RunRecords) -> dict[str, Any] | None:
    if records.summary is None:
        return None
    splits = as_object(records.summary.get("splits"))
    rows: list[tuple[str, str, str, str, str]] = []
    for split, value in splits.items():
        counts = as_object(value)
        patients, visits = (
            finite_number(counts.get("patients")),
            finite_number(counts.get("visits")),
        )
        positives = finite_number(counts.get("positives"))
        share = positives / patients if patients and positives is not None else None
        rows.append(
            (
                shown(split),
                whole(patients),
                whole(visits),
                format_number(visits / patients if patients and visits else None, 1, MISSING),
                f"{whole(positives)} ({format_percentage(share, MISSING)})",
            )
        )
    dropped = as_object(records.summary.get("dropped"))
    return {
        "rows": rows,
        "features": whole(records.summary.get("features")),
        "dropped": [(shown(reason).replace("_", " "), whole(n)) for reason, n in dropped.items()],
        "is_synthetic": records.setting("cohort", "source") == "synthetic",
    }


def _learning(
    steps: Steps, panels: Sequence[Panel], phases: Sequence[tuple[str, str]]
) -> dict[str, Any] | None:
    if not steps:
        return None
    last = [
        (shown(key), format_number(value, 4, MISSING))
        for key, value in steps[-1].items()
        if finite_number(value) is not None
    ]
    return {
        "figures": present(
            [
                *(curves_figure(panel, steps) for panel in panels),
                step_time_figure(steps, phases),
            ]
        ),
        "num_steps": len(steps),
        "last": last,
    }


def _stage2(records: RunRecords) -> dict[str, Any] | None:
    learning = _learning(records.grpo, GRPO_PANELS, grpo_time_parts(records.grpo))
    if learning is None:
        return None
    selection = as_object(records.selection)
    curve = [row for row in selection.get("curve") or () if isinstance(row, dict)]
    figure = curves_figure(SELECTION_PANEL, curve)
    return {
        **learning,
        "figures": present([figure, *learning["figures"]]),
        "selected": shown(selection_text(selection)) if selection else None,
    }


def _case(records: RunRecords) -> CaseComparison | None:
    return None if records.predictions is None else compare_case(records.predictions)


def _times(records: RunRecords) -> dict[str, Any] | None:
    if not records.stages:
        return None
    rows = [
        (
            stage,
            shown(record.get("state")),
            duration(finite_number(record.get("seconds"))),
            whole(record.get("attempts")),
        )
        for stage in STAGES
        if (record := records.stages.get(stage)) is not None and stage != "report"
    ]
    phases = [
        (label, sum(value for _, value in points))
        for key, label in grpo_time_parts(records.grpo)
        if (points := curve_points(key, records.grpo))
    ]
    finished = {stage: record for stage, record in records.stages.items() if stage != "report"}
    figures = [
        stage_time_figure(finished),
        bar_figure("Inside GRPO: seconds per phase", phases),
    ]
    return {"rows": rows, "figures": present(figures)}


def _json(value: object) -> str:
    return printable(json.dumps(value, indent=2, default=str)) if value is not None else ""
