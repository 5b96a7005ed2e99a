"""The report: one self-contained page about a run, made from whatever its folder holds.

Texts of models and names from data are hostile as far as a page is concerned: the template escapes
everything, the page has no script at all, and its policy forbids loading anything.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from training.report_case import CaseComparison, compare_case
from training.report_chart import Figure
from training.report_data import (
    STAGES,
    RunRecords,
    Scores,
    as_object,
    read_run,
    scores_by_method,
)
from training.report_expert import (
    Salience,
    agreement_figure,
    heat_map_figure,
    salience_of_test_patients,
    truth_figures,
)
from training.report_figures import (
    METHOD_COLOURS,
    bar_figure,
    base_rates,
    calibration_figure,
    difference_figure,
    interval_figure,
    precision_recall_figure,
    roc_figure,
    stage_time_figure,
)
from training.report_learning import (
    GRPO_PANELS,
    SFT_PANELS,
    TIME_PARTS,
    Steps,
    curve_points,
    curves_figure,
    step_time_figure,
)
from training.report_search import (
    BestTrajectory,
    TreeNode,
    best_trajectories,
    ledger_tiles,
    read_tree,
    reward_figure,
    tree_figure,
)
from training.report_text import printable
from training.result_table import (
    COLUMNS,
    FAITHFULNESS_COLUMNS,
    GROUNDING_COLUMNS,
    LANGUAGE_MODEL_METHODS,
    Row,
    faithfulness_cells,
    finite_number,
    format_number,
    format_percentage,
    grounding_cells,
    method_label,
    ordered_rows,
    table_cells,
    table_rows,
)

MISSING = "\u2013"
"""What a table shows for a value that is not there."""

SMALL_TEST_PATIENTS = 100
"""Below this many test patients an AUROC's interval spans tens of points."""

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchTree:
    """The tree that the page shows."""

    patient_id: str
    nodes: tuple[TreeNode, ...]
    figure: Figure


def write_report(run_dir: Path) -> Path:
    """Writes `RUN/report.html` from what the run folder holds, and returns its path.

    Files that are missing leave their section out, with the command that makes them; files that
    cannot be read are named on the page.
    """
    records = read_run(run_dir)
    page = _environment().get_template("report.html.j2").render(_context(records, run_dir))
    path = run_dir / "report.html"
    partial = path.with_name("report.html.partial")
    # surrogates come out of JSON escapes and exist in no encoding
    partial.write_bytes(page.encode("utf-8", errors="replace"))
    os.replace(partial, path)
    return path


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda value, digits=3: format_number(value, digits, MISSING)
    environment.filters["percentage"] = lambda value: format_percentage(value, MISSING)
    environment.filters["text"] = _text
    return environment


def _context(records: RunRecords, run_dir: Path) -> dict[str, Any]:
    name = _text(records.config.get("name") or run_dir.name)
    model = as_object(records.config.get("model"))
    return {
        "name": name,
        "header": _header(records),
        "model": {key: model.get(key) for key in ("description", "source", "sha256")},
        "warning": _size_warning(records),
        "problems": records.problems,
        "make": lambda stage: f"eag-rl {stage} CONFIG --run-dir {run_dir}",
        "switched_off": _switched_off(records),
        "tiles": _tiles(records),
        "results": _results(records),
        "cohort": _cohort(records),
        "expert": _expert(records),
        "search": _search(records),
        "sft": _learning(records.sft, SFT_PANELS),
        "grpo": _grpo(records.grpo),
        "case": _case(records),
        "times": _times(records),
        "config_text": _json(records.config.get("config")),
        "versions": as_object(records.config.get("versions")),
    }


def _header(records: RunRecords) -> list[tuple[str, str]]:
    model = as_object(records.config.get("model"))
    task = _text(records.setting("cohort", "task"))
    if task == "readmission":
        task += f" within {_text(records.setting('cohort', 'horizon_days'))} days"
    entries = [
        ("Task", task),
        ("Cohort", _text(records.setting("cohort", "source"))),
        ("Language model", _text(model.get("name") or records.setting("model", "name"))),
        ("Answer format", _text(records.setting("prompt", "format"))),
        ("Commit", _text(records.config.get("commit"))),
        ("Created", _text(records.config.get("created"))),
    ]
    return [(label, value) for label, value in entries if value != MISSING]


def _size_warning(records: RunRecords) -> str:
    counts = [
        count
        for row in records.results
        if row.get("method") in LANGUAGE_MODEL_METHODS
        and (count := finite_number(row.get("n"))) is not None
    ]
    asked = finite_number(records.setting("evaluate", "num_patients"))
    if counts:
        fewest = int(min(counts))
        statement = f"The language model was tested on {fewest} patients."
    elif asked is not None:
        fewest = int(asked)
        statement = f"The configuration tests the language model on {fewest} patients."
    else:
        return ""
    if fewest >= SMALL_TEST_PATIENTS:
        return ""
    return f"{statement} Such sizes show that it runs and nothing else."


def _switched_off(records: RunRecords) -> dict[str, str]:
    """Stages that the configuration leaves out, with the setting that does."""
    setting_of = {"search": "sft", "sft": "sft", "grpo": "grpo"}
    return {
        stage: f"{section}.enabled: false"
        for stage, section in setting_of.items()
        if records.setting(section, "enabled") is False
    }


def _tiles(records: RunRecords) -> list[tuple[str, str, str]]:
    splits = as_object((records.summary or {}).get("splits"))
    tiles: list[tuple[str, str, str]] = []
    if splits:
        counts = [as_object(splits.get(split)).get("patients") for split in SPLITS]
        known = [count for value in counts if (count := finite_number(value)) is not None]
        detail = " / ".join(_whole(count) for count in counts)
        tiles.append(("Patients", _whole(sum(known)), f"{detail} train / val / test"))
    expert = as_object((records.expert or {}).get("test"))
    if expert:
        tiles.append(("Expert", format_number(expert.get("auroc"), 3, MISSING), "test AUROC"))
    if records.trajectories is not None:
        kept = sum(bool(row["kept"]) for row in records.trajectories)
        tiles.append(("Trajectories", _whole(len(records.trajectories)), f"{kept} kept for SFT"))
    if records.grpo:
        version = _whole(records.grpo[-1].get("policy_version_out"))
        tiles.append(("GRPO steps", _whole(len(records.grpo)), f"last policy version {version}"))
    trained = next((row for row in ordered_rows(records.results)[::-1] if _is_trained(row)), None)
    if trained is not None:
        label = method_label(trained.get("method"))
        tiles.append((label, format_number(trained.get("auroc"), 3, MISSING), "test AUROC"))
    seconds = [finite_number(record.get("seconds")) for record in records.stages.values()]
    known_seconds = [value for value in seconds if value is not None]
    if known_seconds:
        tiles.append(("Time", _duration(sum(known_seconds)), "all stages"))
    return tiles


def _is_trained(row: Row) -> bool:
    untrained = ("vanilla", "think_then_answer", "question_decomposition")
    return row.get("method") in LANGUAGE_MODEL_METHODS and row.get("method") not in untrained


def _results(records: RunRecords) -> dict[str, Any] | None:
    if not records.results:
        return None
    rows = table_rows(records.results)
    scores = scores_by_method(records.predictions or ())
    rates = base_rates(scores)
    figures = [
        *(interval_figure(records.results, metric, rates) for metric in ("auroc", "auprc")),
        roc_figure(scores),
        precision_recall_figure(scores),
    ]
    grounded = [row for row in rows if finite_number(row.get("num_checked_claims")) is not None]
    tested = [row for row in rows if as_object(row.get("faithfulness"))]
    differences = [difference_figure(records.differences, metric) for metric in ("auroc", "auprc")]
    return {
        "columns": COLUMNS,
        "rows": [
            {
                "cells": [_text(cell) for cell in table_cells(row, MISSING)],
                "colour": METHOD_COLOURS.get(str(row.get("method")), "#97a3b0"),
                "is_language_model": row.get("method") in LANGUAGE_MODEL_METHODS,
            }
            for row in rows
        ],
        "figures": _present(figures),
        "grounding": [[_text(cell) for cell in grounding_cells(row, MISSING)] for row in grounded],
        "grounding_columns": GROUNDING_COLUMNS,
        "faithfulness": [
            [_text(cell) for cell in faithfulness_cells(row, MISSING)] for row in tested
        ],
        "faithfulness_columns": FAITHFULNESS_COLUMNS,
        "differences": _present(differences),
        "calibration": _present([calibration_figure(*item) for item in scores.items()]),
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
                _text(split),
                _whole(patients),
                _whole(visits),
                format_number(visits / patients if patients and visits else None, 1, MISSING),
                f"{_whole(positives)} ({format_percentage(share, MISSING)})",
            )
        )
    dropped = as_object(records.summary.get("dropped"))
    return {
        "rows": rows,
        "features": _whole(records.summary.get("features")),
        "dropped": [(_text(reason).replace("_", " "), _whole(n)) for reason, n in dropped.items()],
        "is_synthetic": records.setting("cohort", "source") == "synthetic",
    }


def _expert(records: RunRecords) -> dict[str, Any] | None:
    if records.expert is None and records.salience is None:
        return None
    metrics = records.expert or {}
    models = {"concare": metrics.get("test"), **as_object(metrics.get("baselines"))}
    rows = [
        {"method": method, **as_object(values)}
        for method, values in models.items()
        if as_object(values)
    ]
    salience = _salience(records)
    scores = _expert_scores(records)
    figures = [agreement_figure(metrics)]
    if salience is not None and records.truth is not None:
        figures += truth_figures(salience, records.truth, scores)
    heat_map = None if salience is None else heat_map_figure(salience, scores)
    return {
        "rows": [[_text(cell) for cell in table_cells(row, MISSING)[:3]] for row in rows],
        "columns": COLUMNS[:3],
        "figures": _present(figures),
        "heat_map": heat_map,
        "members": records.setting("expert", "members"),
        "num_ensembles": records.setting("expert", "num_ensembles"),
        "salience": _text(records.setting("expert", "salience") or "attention").replace("_", " "),
    }


def _expert_scores(records: RunRecords) -> Scores | None:
    """The expert's test predictions: its own stage's, which exist before an evaluation."""
    of_stage = [row for row in records.expert_predictions or () if row["split"] == "test"]
    return scores_by_method(of_stage or records.predictions or ()).get("concare")


def _salience(records: RunRecords) -> Salience | None:
    if records.salience is None:
        return None
    size = finite_number(records.setting("expert", "num_salient_features"))
    candidates = _text(records.setting("expert", "candidates") or "observed")
    return salience_of_test_patients(records.salience, int(size or 5), candidates)


def _search(records: RunRecords) -> dict[str, Any] | None:
    if records.trajectories is None and records.ledger is None and not records.trees:
        return None
    figures: list[Figure | None] = []
    best: list[BestTrajectory] = []
    if records.trajectories is not None:
        headings = {
            "reward": "R",
            "reward_cls": "R_cls, of the prediction",
            "reward_att": "R_att, of the named features",
        }
        for column, heading in headings.items():
            figures.append(reward_figure(records.trajectories, column, heading))
        best = best_trajectories(records.trajectories)
    return {
        "tiles": [] if records.ledger is None else ledger_tiles(records.ledger),
        "figures": _present(figures),
        "tree": _search_tree(records.trees),
        "num_trees": len(records.trees),
        "best": best,
    }


def _search_tree(trees: Sequence[Mapping[str, Any]]) -> SearchTree | None:
    """The tree with the most visited nodes: the others are smaller, not worse."""
    read = [(_text(tree.get("patient_id")), nodes) for tree in trees if (nodes := read_tree(tree))]
    if not read:
        return None
    patient_id, nodes = max(read, key=lambda tree: sum(node.visit_count > 0 for node in tree[1]))
    return SearchTree(patient_id=patient_id, nodes=tuple(nodes), figure=tree_figure(nodes))


def _learning(steps: Steps, panels: Sequence[Any]) -> dict[str, Any] | None:
    if not steps:
        return None
    last = [
        (_text(key), format_number(value, 4, MISSING))
        for key, value in steps[-1].items()
        if finite_number(value) is not None
    ]
    return {
        "figures": _present([curves_figure(panel, steps) for panel in panels]),
        "num_steps": len(steps),
        "last": last,
    }


def _grpo(steps: Steps) -> dict[str, Any] | None:
    section = _learning(steps, GRPO_PANELS)
    if section is not None:
        section["figures"] += _present([step_time_figure(steps)])
    return section


def _case(records: RunRecords) -> CaseComparison | None:
    return None if records.predictions is None else compare_case(records.predictions)


def _times(records: RunRecords) -> dict[str, Any] | None:
    if not records.stages:
        return None
    rows = [
        (
            stage,
            _text(record.get("state")),
            _duration(finite_number(record.get("seconds"))),
            _whole(record.get("attempts")),
        )
        for stage in STAGES
        if (record := records.stages.get(stage)) is not None and stage != "report"
    ]
    phases = [
        (label, sum(value for _, value in points))
        for key, label in TIME_PARTS
        if (points := curve_points(key, records.grpo))
    ]
    finished = {stage: record for stage, record in records.stages.items() if stage != "report"}
    figures = [
        stage_time_figure(finished),
        bar_figure("Inside GRPO: seconds per phase", phases),
    ]
    return {"rows": rows, "figures": _present(figures)}


def _present(figures: Sequence[Figure | None]) -> list[Figure]:
    return [figure for figure in figures if figure is not None]


def _text(value: object) -> str:
    return MISSING if value is None or value == "" else printable(value)


def _whole(value: object) -> str:
    return format_number(value, 0, MISSING)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 120 else f"{minutes} min {rest} s"


def _json(value: object) -> str:
    return printable(json.dumps(value, indent=2, default=str)) if value is not None else ""
