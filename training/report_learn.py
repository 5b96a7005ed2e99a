"""The page of an experiment: its table, every seed as a dot, differences, curves over the steps."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from training.arms import ARMS
from training.learn_results import RESULTS_FILE
from training.learn_table import (
    MEASURE_LABELS,
    REFERENCE_LABELS,
    Row,
    arm_label,
    table_parts,
    unfinished_lines,
)
from training.metrics_file import MetricsFile
from training.report import write_page
from training.report_chart import (
    GREY,
    Axis,
    Chart,
    Figure,
    LegendEntry,
    padded_range,
    present,
    step_axis,
    text_width,
)
from training.report_figures import UNDETECTABLE, categories, method_colour
from training.report_learning import Steps, curve_points
from training.report_text import duration, shown, whole
from training.result_table import finite_number, format_number, method_label

CURVES: dict[str, str] = {
    "reward/mean": "Mean reward of the rollouts",
    "reward/att_mean": "R_att of the rollouts",
    "reward/excess": "R_att above the best constant set",
    "reward/cls_mean": "R_cls of the rollouts",
    "entropy/all_mean": "Entropy of all tokens, nats",
    "rollout/parse_failure_rate": "Format failures",
    "rollout/dead_groups": "Dead groups",
    "clip/adaptive_share": "Share of tokens that the adaptive bound decided",
}
"""Keys of `grpo/metrics.jsonl` that are drawn, and their titles."""

_DRAWN = ("auroc", "auprc", "reward", "reward_att_excess", "true_overlap", "ece")
_COMPARED = ("auroc", "reward", "reward_att", "true_overlap")


def write_learn_page(run_dir: Path) -> Path:
    """Writes RUN/learn.html from RUN/learn/results.json and the units; returns its path."""
    results = json.loads((run_dir / "learn" / RESULTS_FILE).read_text())
    return write_page(run_dir / "learn.html", "learn.html.j2", _context(results, run_dir))


def seed_figure(results: Row, measure: str) -> Figure | None:
    """A measure of every arm: a dot a seed, the mean with its interval, references as lines."""
    arms = [row for row in results["arms"] if finite_number(row.get(measure)) is not None]
    if not arms:
        return None
    units = [unit for unit in results["units"] if finite_number(unit.get(measure)) is not None]
    references = [
        row for row in results["references"] if finite_number(row.get(measure)) is not None
    ]
    values = [row[measure] for row in (*arms, *units, *references)]
    values += [
        bound
        for row in arms
        for end in ("low", "high")
        if (bound := finite_number(row.get(f"{measure}_{end}"))) is not None
    ]
    low, high = padded_range(values)
    labels = [arm_label(row["arm"]) for row in arms]
    chart = Chart(
        label=f"{MEASURE_LABELS[measure]} of every arm and seed",
        x=Axis(low=low, high=high),
        y=categories(labels),
        height=30.0 * len(arms) + 44,
        left=max(text_width(label) for label in labels) + 14,
        bottom=26,
    )
    for row in references:
        chart.line(
            [(row[measure], -0.5), (row[measure], len(arms) - 0.5)],
            method_colour(row["name"]),
            width=1.5,
            is_dashed=True,
            tip=f"{_reference_label(row)}: {format_number(row[measure])}",
        )
    for index, row in enumerate(arms):
        colour = _colour(row["arm"])
        ends = [finite_number(row.get(f"{measure}_{end}")) for end in ("low", "high")]
        if ends[0] is not None and ends[1] is not None:
            chart.line([(ends[0], index), (ends[1], index)], colour, width=3)
        for unit in (unit for unit in units if unit["arm"] == row["arm"]):
            tip = f"{labels[index]}, seed {unit['seed']}: {format_number(unit[measure])}"
            chart.dot(unit[measure], index, colour, radius=3, is_hollow=True, tip=tip)
        tip = f"{labels[index]}, mean of {len(row['seeds'])}: {format_number(row[measure])}"
        chart.dot(row[measure], index, colour, radius=5, tip=tip)
    legend = tuple(
        LegendEntry(
            label=f"{_reference_label(row)} {format_number(row[measure])}",
            colour=method_colour(row["name"]),
            is_dashed=True,
        )
        for row in references
    )
    return Figure(title=MEASURE_LABELS[measure], svg=chart.render(), legend=legend)


def forest_figure(results: Row, measure: str) -> Figure | None:
    """Paired differences of a measure, each seed as a hollow dot; None without any."""
    rows = [row for row in results["differences"] if row["measure"] == measure]
    if not rows:
        return None
    labels = [arm_label(row["minus"]) for row in rows]
    reach = max(
        abs(finite_number(value) or 0.0)
        for row in rows
        for value in (row["low"], row["high"], row["minimal_detectable"], *row["by_seed"])
    )
    _, high = padded_range([-reach, reach])
    chart = Chart(
        label=f"{MEASURE_LABELS[measure]}: paired differences",
        x=Axis(low=-high, high=high),
        y=categories(labels),
        height=30.0 * len(rows) + 44,
        left=max(text_width(label) for label in labels) + 14,
        bottom=26,
    )
    for index, row in enumerate(rows):
        band = finite_number(row["minimal_detectable"]) or 0.0
        if band > 0:
            chart.bar((-band, band), (index - 0.36, index + 0.36), UNDETECTABLE)
    chart.line([(0, len(rows) - 0.5), (0, -0.5)], GREY, width=1.5)
    for index, row in enumerate(rows):
        colour = _colour(row["minus"])
        low, high = finite_number(row["low"]), finite_number(row["high"])
        tip = (
            f"minus {labels[index]}: {format_number(row['difference'])} "
            f"[{format_number(low)}, {format_number(high)}], {len(row['by_seed'])} seeds"
        )
        if low is not None and high is not None:
            chart.line([(low, index), (high, index)], colour, width=3, tip=tip)
        for seed, value in zip(row["seeds"], row["by_seed"], strict=True):
            seed_tip = f"seed {seed}: {format_number(value)}"
            chart.dot(value, index, colour, radius=3, is_hollow=True, tip=seed_tip)
        chart.dot(row["difference"], index, colour, radius=5, tip=tip)
    return Figure(title=f"{MEASURE_LABELS[measure]}, minus", svg=chart.render())


def curve_figure(steps_of: Mapping[str, Sequence[Steps]], key: str, title: str) -> Figure | None:
    """A metric over the steps: a thin line a seed, a thick one for an arm's mean.

    Args:
        steps_of: of each arm, the steps of each of its seeds.
        key: of `grpo/metrics.jsonl`.
        title: of the figure.
    """
    curves = {
        arm: [points for steps in seeds if (points := curve_points(key, steps))]
        for arm, seeds in steps_of.items()
    }
    curves = {arm: lines for arm, lines in curves.items() if lines}
    if not curves:
        return None
    points = [point for lines in curves.values() for line in lines for point in line]
    low, high = padded_range([value for _, value in points])
    chart = Chart(
        label=f"{title} over the steps",
        x=step_axis([step for step, _ in points]),
        y=Axis(low=low, high=high),
        width=340,
        height=220,
        left=52,
    )
    for arm, lines in curves.items():
        for line in lines:
            chart.line(line, _colour(arm), width=0.8)
        mean = list(_mean_line(lines))
        chart.line(mean, _colour(arm), width=2.6, tip=arm_label(arm))
        if len(mean) == 1:
            chart.dot(*mean[0], _colour(arm), tip=arm_label(arm))
    legend = tuple(LegendEntry(label=arm_label(arm), colour=_colour(arm)) for arm in curves)
    return Figure(title=title, svg=chart.render(), legend=legend)


def _context(results: Row, run_dir: Path) -> dict[str, Any]:
    config = json.loads((run_dir / "config.json").read_text())
    steps_of = {
        arm: [
            MetricsFile(folder / "grpo" / "metrics.jsonl").lines()
            for folder in sorted((run_dir / "arms" / arm).glob("seed-*"))
        ]
        for arm in ARMS
    }
    differences = results["differences"]
    return {
        "name": shown(config.get("name") or run_dir.name),
        "facts": list(_facts(results, config)),
        "unfinished": [shown(line) for line in unfinished_lines(results)],
        "heading": ["Arm", "Seed", *MEASURE_LABELS.values()],
        "table": [
            (is_first and number > 0, cells)
            for number, part in enumerate(table_parts(results))
            for is_first, cells in zip([True] + [False] * len(part), part, strict=False)
        ],
        "seed_figures": present([seed_figure(results, measure) for measure in _DRAWN]),
        "reference": arm_label(differences[0]["arm"]) if differences else "",
        "difference_figures": present([forest_figure(results, name) for name in _COMPARED]),
        "curve_figures": present(
            [curve_figure(steps_of, key, title) for key, title in CURVES.items()]
        ),
        "costs": list(_costs(results, run_dir)),
    }


def _facts(results: Row, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    model = results["model"] or {}
    patients = results["patients"]
    yield "Model", shown(model.get("name"))
    yield "Weights", shown(model.get("description"))
    yield "Cohort", shown((config.get("config") or {}).get("cohort", {}).get("source"))
    yield "Test patients", f"{patients['n']} ({patients['num_positives']} positive)"
    yield "Units done", str(len(results["units"]))
    yield "Commit", shown(config.get("commit"))


def _costs(results: Row, run_dir: Path) -> Iterator[tuple[str, ...]]:
    path = run_dir / "learn" / "estimate.json"
    estimate = json.loads(path.read_text()) if path.exists() else {}
    for unit in results["units"]:
        expected = estimate.get(f"{unit['arm']}/seed-{unit['seed']}", {}).get("learner_tokens")
        yield (
            f"{arm_label(unit['arm'])}, seed {unit['seed']}",
            duration(finite_number(unit.get("seconds"))),
            whole(unit.get("learner_tokens")),
            whole(expected),
        )


def _mean_line(lines: Sequence[Sequence[tuple[float, float]]]) -> Iterator[tuple[float, float]]:
    together = sorted(point for line in lines for point in line)
    for step, points in groupby(together, key=lambda point: point[0]):
        values = [value for _, value in points]
        if len(values) == len(lines):
            yield step, fmean(values)


def _colour(arm: object) -> str:
    return method_colour("question_decomposition" if arm == "untrained" else str(arm))


def _reference_label(row: Row) -> str:
    return REFERENCE_LABELS.get(row["name"], method_label(row["name"]))
