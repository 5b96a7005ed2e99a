"""Figures of an experiment: measures by arm, paired differences, curves over steps."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from training.experiments.records import UnitRecords
from training.experiments.results import Results, arm_label
from training.experiments.table import (
    estimate_text,
    measure_headings,
    p_text,
    value_text,
)
from training.readable import finite_number, format_number
from training.report.chart import (
    GREY,
    Axis,
    Chart,
    Figure,
    LegendEntry,
    padded_range,
    shortened,
    step_axis,
    text_width,
)
from training.report.figures import UNDETECTABLE, categories, method_colour
from training.report.training_curves import curve_points
from training.run.files import as_object

REFERENCE_COLOURS = {
    "concare": "#1a7f6c",
    "logistic_regression": "#6fa35c",
    "gradient_boosting": "#40702f",
    "logistic_regression_shared": "#b0578d",
    "gradient_boosting_shared": "#8c6d5a",
    "true_risk": "#b3372f",
    "expert_salience": "#1a7f6c",
    "constant_set": "#97a3b0",
}

CURVES = (
    ("reward/mean", "R of the rollouts, as the arm is rewarded"),
    ("reward/cls_mean", "R_cls of the rollouts"),
    ("reward/att_mean", "R_att of the rollouts"),
    ("reward/excess", "R_att above the best constant set"),
    ("entropy/salient_mean", "Entropy of salient tokens (nats)"),
    ("entropy/all_mean", "Entropy of all tokens (nats)"),
    ("rollout/parse_failure_rate", "Format failures"),
    ("clip/high_share", "Tokens at the upper bound"),
    ("clip/adaptive_share", "Tokens where entropy moved the bound"),
    ("rollout/dead_groups", "Dead groups"),
    ("sft/loss", "Loss of direct fine-tuning"),
)
"""Key in `metrics.jsonl` and title of each picture of curves."""

_ROW_HEIGHT = 30.0


def arm_colour(arm: str) -> str:
    """The colour of an arm, that of its row in a run's report."""
    return method_colour("question_decomposition" if arm == "untrained" else arm)


def measure_figure(results: Results, name: str) -> Figure | None:
    """A measure of every arm: a dot a seed, the mean with its interval, ceilings as lines."""
    arms = [
        (arm, found)
        for arm in results["arms"]
        if finite_number((found := as_object(arm["measures"].get(name))).get("value")) is not None
    ]
    if not arms:
        return None
    references = [
        (row, value)
        for row in results["references"]
        if (value := finite_number(as_object(row["measures"].get(name)).get("value"))) is not None
    ]
    seeds = [
        finite_number(as_object(unit["measures"].get(name)).get("value"))
        for arm, _ in arms
        for unit in arm["units"]
    ]
    every = [
        *(value for value in seeds if value is not None),
        *(value for _, found in arms for value in _numbers(found, ("value", "low", "high"))),
        *(value for _, value in references),
    ]
    low, high = padded_range(every)
    title = measure_headings(results)[name]
    chart = _rows_chart(f"{title} of each arm", low, high, [arm["label"] for arm, _ in arms])
    legend: list[LegendEntry] = []
    for row, value in references:
        colour = REFERENCE_COLOURS.get(row["name"], GREY)
        tip = f"{row['label']}: {estimate_text(row['measures'][name], name)}"
        ends = [(value, len(arms) - 0.5), (value, -0.5)]
        chart.line(ends, colour, width=1.5, is_dashed=True, tip=tip)
        legend.append(LegendEntry(label=row["label"], colour=colour, is_dashed=True))
    for index, (arm, found) in enumerate(arms):
        colour = arm_colour(arm["arm"])
        seed_text = "1 seed" if arm["num_seeds"] == 1 else f"{arm['num_seeds']} seeds"
        seed_text = str(arm.get("seeds_note") or seed_text)
        tip = f"{arm['label']}, {seed_text}: {estimate_text(found, name)}"
        _interval(chart, found, index - 0.12, colour, tip)
        for unit in arm["units"] if arm["num_seeds"] > 1 else []:
            of_seed = as_object(unit["measures"].get(name))
            value = finite_number(of_seed.get("value"))
            if value is not None:
                text = f"{arm['label']}, seed {unit['seed']}: {value_text(of_seed, name)}"
                chart.dot(value, index + 0.22, colour, radius=3, is_hollow=True, tip=text)
    return Figure(title=title, svg=chart.render(), legend=tuple(legend))


def forest_figure(results: Results, name: str) -> Figure | None:
    """Paired differences in a measure with what could have been found; None without any."""
    rows = [
        row
        for row in results["differences"]
        if row["measure"] == name and finite_number(row["difference"]) is not None
    ]
    if not rows:
        return None
    reference = rows[0]["arm"]
    minus = [f"minus {arm_label(row['minus'])}" for row in rows]
    labels = [
        text if row["arm"] == reference else f"{arm_label(row['arm'])} {text}"
        for row, text in zip(rows, minus, strict=True)
    ]
    every = [value for row in rows for value in _numbers(row, ("difference", "low", "high"))]
    reach = max([*(abs(value) for value in every), *(_detectable(row) for row in rows), 0.01])
    title = f"{measure_headings(results)[name]}: {arm_label(reference)} minus the others"
    if any(row["arm"] != reference for row in rows):
        title += ", and each part alone"
    chart = _rows_chart(title, -1.06 * reach, 1.06 * reach, labels)
    for index, row in enumerate(rows):
        if (band := _detectable(row)) > 0:
            chart.bar((-band, band), (index - 0.36, index + 0.36), UNDETECTABLE)
    chart.line([(0, len(rows) - 0.5), (0, -0.5)], GREY, width=1.5)
    for index, row in enumerate(rows):
        found = {**row, "value": row["difference"]}
        tip = (
            f"{labels[index]}: {estimate_text(found, name, is_signed=True)}, {row['n']} "
            f"patients, {row.get('seeds_note') or str(len(row['seeds'])) + ' seed(s)'}, p by Holm "
            f"{p_text(row.get('p_holm'))}, detectable from "
            f"{format_number(row['minimal_detectable'])}"
        )
        colour = arm_colour(row["minus"])
        _interval(chart, found, index - 0.12, colour, tip)
        for seed, value in zip(row["seeds"], row["by_seed"], strict=True):
            if value is not None and len(row["seeds"]) > 1:
                text = f"{labels[index]}, seed {seed}: {value:+.3f}"
                chart.dot(value, index + 0.22, colour, radius=3, is_hollow=True, tip=text)
    return Figure(title=title, svg=chart.render())


def curve_figure(units: Sequence[UnitRecords], key: str, title: str) -> Figure | None:
    """A metric over steps: a thin line a seed, a thick one for their mean; None without any."""
    by_arm: dict[str, list[list[tuple[float, float]]]] = defaultdict(list)
    for unit in units:
        if points := curve_points(key, unit.steps):
            by_arm[unit.arm].append(points)
    if not by_arm:
        return None
    every = [point for curves in by_arm.values() for points in curves for point in points]
    low, high = padded_range([value for _, value in every])
    chart = Chart(
        label=f"{title} over the steps",
        x=step_axis([step for step, _ in every]),
        y=Axis(low=low, high=high),
        width=340,
        height=230,
        left=52,
    )
    legend: list[LegendEntry] = []
    for arm, curves in by_arm.items():
        colour, label = arm_colour(arm), arm_label(arm)
        for points in curves if len(curves) > 1 else []:
            chart.line(points, colour, width=0.8, tip=f"{label}, one seed")
        mean = mean_curve(curves)
        chart.line(mean, colour, width=2.6, tip=f"{label}, {len(curves)} seed(s)")
        if len(mean) == 1:  # a line needs two
            chart.dot(*mean[0], colour, tip=f"{label}, step {mean[0][0]:g}")
        legend.append(LegendEntry(label=f"{label} ({len(curves)})", colour=colour))
    return Figure(title=title, svg=chart.render(), legend=tuple(legend))


def mean_curve(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Mean over the curves at the steps that all of them have."""
    values = [dict(points) for points in curves]
    shared = sorted(set.intersection(*(set(each) for each in values)))
    return [(step, fmean(each[step] for each in values)) for step in shared]


def _rows_chart(label: str, low: float, high: float, rows: Sequence[str]) -> Chart:
    names = [shortened(name, 40) for name in rows]
    return Chart(
        label=label,
        x=Axis(low=low, high=high),
        y=categories(names),
        height=_ROW_HEIGHT * len(names) + 40,
        left=max(text_width(name) for name in names) + 14,
        bottom=26,
    )


def _interval(chart: Chart, found: Mapping[str, Any], row: float, colour: str, tip: str) -> None:
    low, high = finite_number(found.get("low")), finite_number(found.get("high"))
    if low is not None and high is not None:
        chart.line([(low, row), (high, row)], colour, width=3, tip=tip)
    chart.dot(finite_number(found["value"]) or 0.0, row, colour, radius=5, tip=tip)


def _numbers(found: Mapping[str, Any], keys: Sequence[str]) -> list[float]:
    return [value for key in keys if (value := finite_number(found.get(key))) is not None]


def _detectable(row: Mapping[str, Any]) -> float:
    return finite_number(row["minimal_detectable"]) or 0.0
