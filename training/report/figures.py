"""Figures of the results: intervals, ROC curves, calibration, and where the time goes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from training.evaluation.methods import EHR_MODEL_METHODS, method_label, row_label
from training.evaluation.table import table_rows
from training.readable import (
    Row,
    finite_number,
    format_interval,
    format_number,
)
from training.report.chart import (
    ACCENT,
    GREEN,
    GREY,
    INK,
    Axis,
    Chart,
    Figure,
    LegendEntry,
    nice_ticks,
    padded_range,
    shortened,
    text_width,
)
from training.report.records import STAGES, Scores

METHOD_COLOURS: dict[str, str] = {
    "vanilla": "#8b96a3",
    "think_then_answer": "#b99a3b",
    "think_then_answer_json": "#8f7a2c",
    "question_decomposition": "#c8641a",
    "short_answer": "#d9874a",
    "sft": "#a77bca",
    "stage1": "#5aa5d6",
    "stage1_grpo": "#7a6fc4",
    "stage1_dapo": "#b0578d",
    "without_stage1": "#8c6d5a",
    "without_attention_reward": "#d08c60",
    "without_adaptive_clip": "#5f8fa3",
    "shuffled_salience": "#a34d4d",
    "rare_features": "#e0567a",
    "eag_rl_selected": "#2f7f9e",
    "eag_rl": ACCENT,
    "concare": GREEN,
    "logistic_regression": "#6fa35c",
    "gradient_boosting": "#40702f",
}
"""One colour a method wherever it appears; EHR models are green and dashed."""

UNDETECTABLE = "#e9edf1"
"""Behind differences that so few patients could hardly show."""

UNIT_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


def method_colour(method: str) -> str:
    """The colour of a method."""
    return METHOD_COLOURS.get(method, GREY)


def interval_figure(
    rows: Sequence[Row], metric: str, base_rates: Mapping[str, float]
) -> Figure | None:
    """One metric of every method as dots with intervals; None if no row has the metric.

    Args:
        rows: rows of the result table.
        metric: `auroc` or `auprc`.
        base_rates: share of positives of each method's patients, the AUPRC of a guess.
    """
    shown = [row for row in table_rows(rows) if finite_number(row.get(metric)) is not None]
    if not shown:
        return None
    labels = [shortened(row_label(row), 34) for row in shown]
    chart = Chart(
        label=f"{metric.upper()} of each method with its interval",
        x=Axis(low=0, high=1, ticks=UNIT_TICKS),
        y=categories(labels),
        height=26.0 * len(shown) + 40,
        left=max(text_width(label) for label in labels) + 14,
        bottom=26,
    )
    for index, row in enumerate(shown):
        method = str(row.get("method"))
        colour = method_colour(method)
        tip = f"{row_label(row)}: {format_interval(row, metric)}"
        rate = 0.5 if metric == "auroc" else base_rates.get(method)
        if rate is not None and not row.get("label"):
            chart.bar((rate - 0.002, rate + 0.002), (index - 0.34, index + 0.34), "#b3bdc8")
        low, high = (finite_number(row.get(f"{metric}_{bound}")) for bound in ("low", "high"))
        if low is not None and high is not None:
            chart.line([(low, index), (high, index)], colour, width=3, tip=tip)
        chart.dot(finite_number(row[metric]) or 0.0, index, colour, radius=5, tip=tip)
    note = "Bars are 95 % intervals over patients; the grey tick is what guessing reaches."
    return Figure(title=metric.upper(), svg=chart.render(), note=note)


def difference_figure(rows: Sequence[Row], metric: str) -> Figure | None:
    """Paired differences to the other methods as dots with intervals; None without any."""
    shown = [
        row
        for row in rows
        if row.get("metric") == metric and finite_number(row.get("difference")) is not None
    ]
    if not shown:
        return None
    reference = method_label(shown[0].get("method"))
    labels = [shortened(method_label(row.get("minus")), 34) for row in shown]
    chart = Chart(
        label=f"{metric.upper()} of {reference} minus each other method",
        x=Axis(low=-1, high=1, ticks=(-1, -0.5, 0, 0.5, 1)),
        y=categories(labels),
        height=26.0 * len(shown) + 40,
        left=max(text_width(label) for label in labels) + 14,
        bottom=26,
    )
    for index, row in enumerate(shown):
        reach = min(finite_number(row.get("minimal_detectable")) or 0.0, 1.0)
        if reach > 0:
            chart.bar((-reach, reach), (index - 0.34, index + 0.34), UNDETECTABLE)
    chart.line([(0, len(shown) - 0.5), (0, -0.5)], GREY, width=1.5)
    for index, row in enumerate(shown):
        colour = method_colour(str(row.get("minus")))
        low, high = finite_number(row.get("low")), finite_number(row.get("high"))
        tip = (
            f"minus {labels[index]}: {format_number(row['difference'])} "
            f"[{format_number(low)}, {format_number(high)}], n {format_number(row.get('n'), 0)}, "
            f"p by Holm {format_number(row.get('p_holm'))}, "
            f"detectable from {format_number(row.get('minimal_detectable'))}"
        )
        if low is not None and high is not None:
            chart.line([(low, index), (high, index)], colour, width=3, tip=tip)
        chart.dot(finite_number(row["difference"]) or 0.0, index, colour, radius=5, tip=tip)
    return Figure(
        title=f"{metric.upper()}: {reference} minus ...",
        svg=chart.render(),
        note="The same patients on both sides. An interval across 0 is no evidence. A true "
        "difference inside the pale band would be found by fewer than 80 % of such comparisons "
        "(5 %, two-sided). p by Holm (behind each row): adjusted for all rows of both metrics.",
    )


def roc_points(labels: np.ndarray, probabilities: np.ndarray) -> list[tuple[float, float]]:
    """False and true positive rate at every distinct threshold, from (0, 0) to (1, 1).

    Args:
        labels: 0 or 1.
        probabilities: predicted probability of 1, all finite.
    """
    positives, negatives = int((labels == 1).sum()), int((labels != 1).sum())
    if not positives or not negatives:
        return []
    order = np.argsort(-probabilities, kind="stable")
    sorted_labels, sorted_probabilities = labels[order] == 1, probabilities[order]
    # a threshold lies only where the probability changes: ties are one diagonal step
    last_of_tie = np.append(np.diff(sorted_probabilities) != 0, True)
    true_rates = np.cumsum(sorted_labels)[last_of_tie] / positives
    false_rates = np.cumsum(~sorted_labels)[last_of_tie] / negatives
    return [(0.0, 0.0), *zip(false_rates.tolist(), true_rates.tolist(), strict=True)]


def precision_recall_points(
    labels: np.ndarray, probabilities: np.ndarray
) -> list[tuple[float, float]]:
    """Recall and precision at every distinct threshold, from the highest one down.

    Args:
        labels: 0 or 1.
        probabilities: predicted probability of 1, all finite.
    """
    positives = int((labels == 1).sum())
    if not positives:
        return []
    order = np.argsort(-probabilities, kind="stable")
    hits = np.cumsum(labels[order] == 1)
    last_of_tie = np.append(np.diff(probabilities[order]) != 0, True)
    recalls = hits[last_of_tie] / positives
    precisions = (hits / np.arange(1, len(hits) + 1))[last_of_tie]
    points = list(zip(recalls.tolist(), precisions.tolist(), strict=True))
    return [(0.0, points[0][1]), *points]


def roc_figure(scores: Mapping[str, Scores]) -> Figure | None:
    """ROC curves of all methods; None if no method saw both classes."""
    chart = Chart(
        label="ROC curves of the methods",
        x=Axis(low=0, high=1, label="false positive rate", ticks=UNIT_TICKS),
        y=Axis(low=0, high=1, label="true positive rate", ticks=UNIT_TICKS),
        height=380,
    )
    chart.line([(0, 0), (1, 1)], GREY, width=1, is_dashed=True)
    note = "An unreadable answer ranks at the training patients' base rate."
    return _ranking_figure("ROC curves", chart, roc_points, scores, note)


def precision_recall_figure(scores: Mapping[str, Scores]) -> Figure | None:
    """Precision-recall curves of all methods; None if no method saw a positive."""
    chart = Chart(
        label="Precision-recall curves of the methods",
        x=Axis(low=0, high=1, label="recall", ticks=UNIT_TICKS),
        y=Axis(low=0, high=1, label="precision", ticks=UNIT_TICKS),
        height=380,
    )
    note = "A guess stays near the share of positives at every recall."
    return _ranking_figure("Precision-recall curves", chart, precision_recall_points, scores, note)


def _ranking_figure(
    heading: str,
    chart: Chart,
    points_of: Callable[[np.ndarray, np.ndarray], list[tuple[float, float]]],
    scores: Mapping[str, Scores],
    note: str,
) -> Figure | None:
    legend: list[LegendEntry] = []
    for method, of_method in scores.items():
        points = points_of(of_method.labels, of_method.probabilities)
        if points:
            is_dashed = method in EHR_MODEL_METHODS
            colour, label = (
                method_colour(method),
                f"{method_label(method)} (n {len(of_method.labels)})",
            )
            chart.line(thinned(points), colour, is_dashed=is_dashed, tip=label)
            legend.append(LegendEntry(label=label, colour=colour, is_dashed=is_dashed))
    if not legend:
        return None
    return Figure(title=heading, svg=chart.render(), legend=tuple(legend), note=note)


def base_rates(scores: Mapping[str, Scores]) -> dict[str, float]:
    """Share of positives among each method's patients."""
    return {method: float(of_method.labels.mean()) for method, of_method in scores.items()}


def categories(labels: Sequence[str]) -> Axis:
    """One row a label, downwards."""
    return Axis(
        low=len(labels) - 0.5,
        high=-0.5,
        ticks=tuple(range(len(labels))),
        tick_labels=tuple(labels),
    )


def thinned(points: list[tuple[float, float]], most: int = 300) -> list[tuple[float, float]]:
    """At most about `most` of the points, ends kept: finer than a screen can show."""
    if len(points) <= most:
        return points
    chosen = np.unique(np.linspace(0, len(points) - 1, most).round().astype(int))
    return [points[index] for index in chosen]


def bar_figure(
    title: str, values: Sequence[tuple[str, float]], *, colour: str = ACCENT, unit: str = "s"
) -> Figure | None:
    """Amounts as horizontal bars with their numbers; None if there are none."""
    if not values:
        return None
    labels = [shortened(label, 30) for label, _ in values]
    most = max(amount for _, amount in values)
    _, high = padded_range([0.0, most], include=[0.0])
    chart = Chart(
        label=title,
        # a fifth more than the longest bar: room for its number
        x=Axis(low=0, high=1.2 * high, ticks=nice_ticks(0, high, 5)),
        y=categories(labels),
        height=26.0 * len(values) + 40,
        left=max(text_width(label) for label in labels) + 14,
        bottom=26,
    )
    for index, (label, amount) in enumerate(values):
        digits = 0 if most >= 100 else 1 if most >= 10 else 2
        text = f"{format_number(amount, digits)} {unit}".strip()
        chart.bar((0, amount), (index - 0.3, index + 0.3), colour, tip=f"{label}: {text}")
        chart.text(amount + 0.015 * high, index, text, colour=INK)
    return Figure(title=title, svg=chart.render())


def stage_time_figure(stages: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """Seconds that each stage took; None if no stage says."""
    seconds = [
        (stage, value)
        for stage in STAGES
        if (value := finite_number(stages.get(stage, {}).get("seconds"))) is not None
    ]
    return bar_figure("Seconds per stage", seconds)
