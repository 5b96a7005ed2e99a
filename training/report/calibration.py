"""Calibration in the report: reliability curves with intervals and counts."""

from collections.abc import Mapping

import numpy as np

from ehr.calibration import MIN_BIN_PATIENTS, reliability_curve
from ehr.metrics import brier, calibration_intercept, calibration_slope, ece
from training.evaluation.methods import method_label
from training.readable import MISSING, format_number
from training.report.chart import (
    GREY,
    Axis,
    Chart,
    Figure,
)
from training.report.figures import method_colour
from training.report.records import Scores

MIN_PATIENTS = 2 * MIN_BIN_PATIENTS
"""With fewer readable answers there is one bin, which is no curve."""

NUM_BARS = 20
"""Equal-width bars of the distribution below a curve."""

STRIP_TOP, STRIP_BOTTOM = -0.08, -0.32
"""Where that distribution stands, on the axis of observed shares."""


def calibration_figures(scores: Mapping[str, Scores]) -> list[Figure]:
    """One reliability curve a method with enough readable answers."""
    return [
        _calibration_figure(method, of_method)
        for method, of_method in scores.items()
        if _num_readable(of_method) >= MIN_PATIENTS
    ]


def too_few_note(scores: Mapping[str, Scores]) -> str:
    """Which methods have no curve, and why; empty if all have one."""
    few = [
        f"{method_label(method)} ({_num_readable(of_method)})"
        for method, of_method in scores.items()
        if _num_readable(of_method) < MIN_PATIENTS
    ]
    if not few:
        return ""
    return f"Fewer than {MIN_PATIENTS} readable answers, so no curve: {', '.join(few)}."


def _num_readable(scores: Scores) -> int:
    return int(scores.is_readable.sum())


def _calibration_figure(method: str, scores: Scores) -> Figure:
    labels = scores.labels[scores.is_readable]
    probabilities = np.clip(scores.probabilities[scores.is_readable], 0, 1)
    colour = method_colour(method)
    chart = Chart(
        label=f"Calibration of {method_label(method)}",
        x=Axis(low=-0.02, high=1.02, label="predicted", ticks=(0, 0.5, 1)),
        y=Axis(low=STRIP_BOTTOM, high=1.02, label="observed", ticks=(0, 0.5, 1)),
        width=220,
        height=250,
        left=44,
        bottom=36,
    )
    _add_distribution(chart, labels, probabilities, colour)
    chart.line([(0, 0), (1, 1)], GREY, width=1, is_dashed=True)
    bins = reliability_curve(labels, probabilities)
    chart.line([(each.predicted, each.observed) for each in bins], colour, width=1.2)
    for each in bins:
        tip = (
            f"predicted {each.predicted:.2f}, observed {each.observed:.2f} "
            f"[{each.low:.2f}, {each.high:.2f}]: {each.num_events} of {each.num_patients}"
        )
        chart.line([(each.predicted, each.low), (each.predicted, each.high)], colour, tip=tip)
        chart.dot(each.predicted, each.observed, colour, radius=3.5, tip=tip)
    counts = [each.num_patients for each in bins]
    sizes = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    values = {
        "Brier": brier(labels, probabilities),
        "ECE": ece(labels, probabilities),
        "slope": calibration_slope(labels, probabilities),
        "intercept": calibration_intercept(labels, probabilities),
    }
    numbers = ", ".join(
        f"{name} {format_number(value, 2, MISSING)}" for name, value in values.items()
    )
    note = f"n {len(labels)}, {sizes} a bin. {numbers}."
    return Figure(title=method_label(method), svg=chart.render(), note=note)


def _add_distribution(
    chart: Chart, labels: np.ndarray, probabilities: np.ndarray, colour: str
) -> None:
    """Patients by prediction in a strip below the curve, events in the method's colour."""
    edges = np.linspace(0, 1, NUM_BARS + 1)
    every, _ = np.histogram(probabilities, edges)
    events, _ = np.histogram(probabilities[labels == 1], edges)
    scale = (STRIP_TOP - STRIP_BOTTOM) / every.max()
    for index in np.flatnonzero(every):
        low, high = float(edges[index]), float(edges[index + 1])
        span = (low + 0.004, high - 0.004)
        tip = f"predicted {low:.2f} to {high:.2f}: {every[index]}, of which {events[index]} events"
        top = STRIP_BOTTOM + scale * every[index]
        between = STRIP_BOTTOM + scale * events[index]
        if every[index] > events[index]:
            chart.bar(span, (between, top), "#c4ccd6", tip=tip)
        if events[index]:
            chart.bar(span, (STRIP_BOTTOM, between), colour, tip=tip)
