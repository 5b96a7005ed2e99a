"""RUN/learn.html: one self-contained page about an experiment, whatever of it there is so far."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.experiments.figures import (
    CURVES,
    arm_colour,
    curve_figure,
    forest_figure,
    measure_figure,
)
from training.experiments.measures import DIFFERENCE_MEASURES, MEASURES
from training.experiments.records import ExperimentRecords, UnitRecords, collect
from training.experiments.results import Results, arm_label
from training.experiments.results_file import RESULTS_FILE, read_learn_results, write_learn_results
from training.experiments.table import (
    DIFFERENCE_COLUMNS,
    arm_rows,
    difference_cells,
    facts,
    other_cohort,
    other_cohort_facts,
    reference_rows,
    unfinished_lines,
)
from training.experiments.words import shown_sentence
from training.readable import MISSING, duration, format_number
from training.report.chart import present
from training.report.figures import bar_figure
from training.report.html import write_page
from training.report.text import shown
from training.run.files import RunFiles, as_object

DARK_COLOURS = {
    "#1f2a37": "#e3e8ee",
    "#5d6b7a": "#a4b0bd",
    "#e4e9ef": "#2a323c",
    "#e9edf1": "#2b3440",
    "#1f5fa8": "#7d9dff",
    "#5aa5d6": "#63cfdc",
    "#1a7f6c": "#3fb79f",
    "#40702f": "#79b662",
    "#7a6fc4": "#a79df0",
    "#b0578d": "#dd85ba",
    "#a34d4d": "#dd8080",
    "#8c6d5a": "#bf9a84",
    "#b3372f": "#ea7d75",
    "#fff": "#14191f",
}
"""Chart colours that are hard to see on a dark page, and what stands for them there."""


def write_learn_page(run_dir: Path) -> Path:
    """Writes `RUN/learn.html` from what the experiment has so far, and returns its path.

    Reads `RUN/learn/results.json`, which it makes where there is none.

    Raises:
        RunFolderError: if the folder has no configuration of this release.
    """
    if not (run_dir / "learn" / RESULTS_FILE).is_file():
        write_learn_results(run_dir)
    results, records = read_learn_results(run_dir), collect(run_dir)
    estimate = RunFiles(run_dir).json_object("learn/estimate.json") or {}
    return write_page(
        run_dir / "learn.html", "learn.html.j2", _context(results, records, estimate, run_dir)
    )


def _context(
    results: Results, records: ExperimentRecords, estimate: Mapping[str, Any], run_dir: Path
) -> dict[str, Any]:
    colours = {arm["label"]: arm_colour(arm["arm"]) for arm in results["arms"]}
    elsewhere = other_cohort(results)
    return {
        "name": shown(results["name"]),
        "dark_colours": DARK_COLOURS,
        "facts": facts(results),
        "unfinished": unfinished_lines(results),
        "problems": results["problems"],
        "here": _found(results, arm_rows(results), colours),
        "elsewhere": None
        if elsewhere is None
        else {
            "name": shown(elsewhere["cohort"]),
            "facts": other_cohort_facts(elsewhere),
            **_found(elsewhere, arm_rows(elsewhere, has_effort=False), colours),
        },
        "curves": present([curve_figure(records.units, key, title) for key, title in CURVES]),
        "unit_columns": UNIT_COLUMNS,
        "units": [
            {"cells": _unit_cells(unit, results, estimate), "page": _report_of(unit, run_dir)}
            for unit in records.units
        ],
        "time": present(
            [
                bar_figure(
                    "Seconds a unit",
                    [
                        (f"{arm_label(unit.arm)}, seed {unit.seed}", sum(unit.seconds.values()))
                        for unit in records.units
                        if unit.seconds
                    ],
                )
            ]
        ),
    }


def _found(
    results: Results, rows: Sequence[Sequence[str]], colours: Mapping[str, str]
) -> dict[str, Any]:
    """Tables and figures of what was measured on one cohort's test patients."""
    columns, *cells_of_arms = rows
    against_columns, *against = reference_rows(results)
    return {
        "columns": columns,
        "rows": [
            {"cells": cells, "colour": colours.get(cells[0]), "is_seed": not cells[0]}
            for cells in cells_of_arms
        ],
        "against_columns": against_columns,
        "against": against,
        "measures": present([measure_figure(results, name) for name in MEASURES]),
        "differences": present([forest_figure(results, name) for name in DIFFERENCE_MEASURES]),
        "difference_columns": DIFFERENCE_COLUMNS,
        "difference_rows": difference_cells(results),
        "shown": shown_sentence(results),
    }


UNIT_COLUMNS = (
    "Unit",
    "State",
    "Steps",
    "Time",
    "Prompt tokens",
    "Sampled",
    "Trained",
    "Learner",
    "Estimated",
)
"""Headings of the table of units; tokens are those of the training's steps, the last the
learner's as they were estimated before, an upper limit."""


def _report_of(unit: UnitRecords, run_dir: Path) -> str | None:
    """Where the unit's own report is, from the page; None where there is none."""
    page = f"arms/{unit.name}/report.html"
    return page if (run_dir / page).is_file() else None


def _unit_cells(unit: UnitRecords, results: Results, estimate: Mapping[str, Any]) -> list[str]:
    tokens = next(
        (
            row["tokens"]
            for arm in results["arms"]
            if arm["arm"] == unit.arm
            for row in arm["units"]
            if row["seed"] == unit.seed
        ),
        {},
    )
    state = "finished" if unit.is_finished else unit.state
    planned = "" if unit.planned_steps is None else f" of {unit.planned_steps}"
    return [
        f"{arm_label(unit.arm)}, seed {unit.seed}",
        state if unit.is_finished or unit.stage is None else f"{unit.stage} {state}",
        f"{len(unit.steps)}{planned}" if unit.steps or planned else MISSING,
        duration(sum(unit.seconds.values()) if unit.seconds else None),
        *(
            format_number(tokens.get(name), 0, MISSING)
            for name in ("prompt", "sampled", "trained", "learner")
        ),
        format_number(as_object(estimate.get(unit.name)).get("learner_tokens"), 0, MISSING),
    ]
