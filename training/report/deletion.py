"""Deletion and insertion curves in the report: does the expert's risk hang on what it names?"""

from collections.abc import Mapping
from typing import Any

from training.readable import MISSING, finite_number, format_number, whole
from training.report.chart import (
    GREEN,
    GREY,
    WARM,
    Axis,
    Chart,
    Figure,
    LegendEntry,
    padded_range,
    step_axis,
)
from training.report.text import shown
from training.run.files import as_object

KINDS = {
    "deletion": ("Deletion: first named masked first", "features masked"),
    "insertion": ("Insertion: first named given back first", "features given back"),
}
"""Heading and axis of each kind of curve."""

CURVES = (("method", GREEN, False), ("constant", WARM, True), ("random", GREY, True))


def deletion_figures(record: Mapping[str, Any]) -> list[Figure | None]:
    """The curves of `expert/deletion.json`; None for a kind that it lacks."""
    return [_figure(kind, as_object(record.get(kind)), record) for kind in KINDS]


def _figure(kind: str, curves: Mapping[str, Any], record: Mapping[str, Any]) -> Figure | None:
    labels = {
        "method": shown(record.get("method")).replace("_", " "),
        "constant": "best constant order",
        "random": "random orders",
    }
    steps = {name: _steps(as_object(curves.get(name))) for name, _, _ in CURVES}
    if not any(steps.values()):
        return None
    heading, axis = KINDS[kind]
    numbers = [step for points in steps.values() for step, _, _ in points]
    _, high = padded_range(
        [height for points in steps.values() for _, height, _ in points], include=[0.0]
    )
    chart = Chart(
        label=heading,
        x=step_axis(numbers, axis),
        y=Axis(low=0, high=high, label="|change of log-odds|"),
        width=340,
        height=230,
    )
    for name, colour, is_dashed in CURVES:
        points = steps[name]
        chart.line([(step, height) for step, height, _ in points], colour, is_dashed=is_dashed)
        for step, height, auroc in points:
            tip = f"{labels[name]}, {step:g}: {height:.3f}, AUROC {format_number(auroc)}"
            chart.dot(step, height, colour, radius=2.8, tip=tip)
    note = (
        f"Mean of {whole(record.get('num_patients'))} training patients, judged by members of the "
        "same method that did not see them. Higher is better. Area above random orders "
        f"{_area(curves.get('vs_random'))}, above the best constant order "
        f"{_area(curves.get('vs_constant'))} (95 % over patients)."
    )
    legend = tuple(
        LegendEntry(label=labels[name], colour=colour, is_dashed=is_dashed)
        for name, colour, is_dashed in CURVES
    )
    return Figure(title=heading, svg=chart.render(), legend=legend, note=note)


def _steps(curve: Mapping[str, Any]) -> list[tuple[float, float, object]]:
    """Number of features, height and AUROC, wherever the height is a number."""
    heights, aurocs = curve.get("mean_change_of_log_odds"), curve.get("auroc")
    if not isinstance(heights, list):
        return []
    known = aurocs if isinstance(aurocs, list) and len(aurocs) == len(heights) else None
    return [
        (float(step), value, known[step] if known else None)
        for step, height in enumerate(heights)
        if (value := finite_number(height)) is not None
    ]


def _area(value: object) -> str:
    area = as_object(value)
    texts = [format_number(area.get(name), 2, MISSING) for name in ("area", "low", "high")]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"
