"""RUN/learn.html of an experiment over numbers of training patients: curves beside the expert's."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.experiments.curve import (
    REFERENCES,
    Curve,
    curve_difference_rows,
    curve_notes,
    curve_rows,
    measured,
    methods,
)
from training.experiments.figures import REFERENCE_COLOURS, arm_colour
from training.experiments.measures import MEASURES
from training.experiments.page import DARK_COLOURS
from training.experiments.table import estimate_text, measure_headings
from training.readable import finite_number
from training.report.chart import (
    Axis,
    Chart,
    Figure,
    LegendEntry,
    padded_range,
    present,
)
from training.report.html import write_page
from training.report.text import shown

_AIR = 0.35
"""Beside the smallest and the largest number of patients, as log to the base e."""

_APART = 0.03
"""Between the intervals of one number of patients."""


def write_curve_page(run_dir: Path, name: str, curve: Curve) -> Path:
    """Writes `RUN/learn.html` from the sizes that have results, and returns its path."""
    return write_page(run_dir / "learn.html", "learn_curve.html.j2", _context(name, curve))


def _context(name: str, curve: Curve) -> dict[str, Any]:
    sizes = curve["sizes"]
    tables = [rows for measure in MEASURES if len(rows := curve_rows(curve, measure)) > 1]
    differences = curve_difference_rows(curve)
    return {
        "name": shown(name),
        "dark_colours": DARK_COLOURS,
        "facts": [*sizes[0]["facts"], *curve_notes(curve)] if sizes else [],
        "missing": [
            *curve["problems"],
            *(
                f"{size['train_patients']} training patients: {line}"
                for size in sizes
                for line in size["missing"]
            ),
        ],
        "curves": present([size_figure(curve, measure) for measure in MEASURES]),
        "tables": [*tables[:1], *([differences] if differences else []), *tables[1:]],
        "sizes": [
            {
                "patients": f"{size['train_patients']:,}",
                "positives": f"{size['train_positives']:,}",
                "page": f"{size['folder']}/learn.html",
            }
            for size in sizes
        ],
    }


def size_figure(curve: Curve, measure: str) -> Figure | None:
    """A measure over the number of training patients; None where no arm has it."""
    sizes, labels = curve["sizes"], methods(curve)
    found = {
        name: points
        for name in labels
        if (points := [(size, each) for size in sizes if (each := measured(size, name, measure))])
    }
    if all(name in REFERENCES for name in found):
        return None
    every = [
        value
        for points in found.values()
        for _, each in points
        for key in ("value", "low", "high")
        if (value := finite_number(each.get(key))) is not None
    ]
    numbers = [size["train_patients"] for size in sizes]
    low, high = padded_range(every)
    title = measure_headings(sizes[0])[measure]
    chart = Chart(
        label=f"{title} over the number of training patients",
        x=Axis(
            low=math.log(min(numbers)) - _AIR,
            high=math.log(max(numbers)) + _AIR,
            label="training patients",
            ticks=tuple(math.log(number) for number in numbers),
            tick_labels=tuple(f"{number:,}" for number in numbers),
        ),
        y=Axis(low=low, high=high),
    )
    legend: list[LegendEntry] = []
    for place, (name, points) in enumerate(found.items()):
        colour = REFERENCE_COLOURS[name] if name in REFERENCES else arm_colour(name)
        label = labels[name]
        shift = _APART * (place - (len(found) - 1) / 2)
        spots = [
            (math.log(size["train_patients"]) + shift, float(each["value"]))
            for size, each in points
        ]
        chart.line(spots, colour, is_dashed=name in REFERENCES, tip=label)
        for (x, y), (size, each) in zip(spots, points, strict=True):
            tip = f"{label}, {size['train_patients']:,} patients: {estimate_text(each, measure)}"
            _interval(chart, x, each, colour, tip)
            chart.dot(x, y, colour, tip=tip)
        legend.append(LegendEntry(label=label, colour=colour, is_dashed=name in REFERENCES))
    return Figure(title=title, svg=chart.render(), legend=tuple(legend))


def _interval(chart: Chart, x: float, found: Mapping[str, Any], colour: str, tip: str) -> None:
    low, high = finite_number(found.get("low")), finite_number(found.get("high"))
    if low is not None and high is not None:
        chart.line([(x, low), (x, high)], colour, width=1.5, tip=tip)
