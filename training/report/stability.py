"""Stability in the report: do two disjoint ensembles name the same features, and with how many?"""

from collections.abc import Sequence

from ehr.salience.stability import StabilityPoint
from training.readable import MISSING, format_number
from training.report.chart import (
    GREEN,
    GREY,
    PURPLE,
    WARM,
    Axis,
    Chart,
    Figure,
    LegendEntry,
    padded_range,
)


def stability_figure(points: Sequence[StabilityPoint], kappa_of_test: object) -> Figure | None:
    """Agreement, its levels of chance and kappa by the size of the ensembles; None without any.

    Args:
        points: of the training patients.
        kappa_of_test: kappa of the test patients with all members, if it is known.
    """
    if not points:
        return None
    sizes = [point.num_members for point in points]
    curves = (
        ("two disjoint ensembles", GREEN, False, [each.agreement.jaccard for each in points]),
        ("best constant set", WARM, True, [each.agreement.jaccard_constant for each in points]),
        ("patients permuted", GREY, True, [each.agreement.jaccard_permuted for each in points]),
        ("kappa", PURPLE, False, [each.agreement.kappa for each in points]),
    )
    spread = [value for each in points for value in (each.jaccard_low, each.jaccard_high)]
    known = [value for _, _, _, values in curves for value in values if value is not None]
    low, high = padded_range([*spread, *known], include=[0.0])
    air = 0.06 * (max(sizes) - min(sizes)) or 1
    heading = "Do two experts name the same features?"
    chart = Chart(
        label=heading,
        x=Axis(
            low=min(sizes) - air,
            high=max(sizes) + air,
            label="members of each ensemble",
            ticks=tuple(sizes if len(sizes) <= 8 else sizes[1::2]),
        ),
        y=Axis(low=low, high=high, label="mean Jaccard, kappa"),
        width=340,
        height=240,
    )
    for each in points:
        ends = [(each.num_members, each.jaccard_low), (each.num_members, each.jaccard_high)]
        chart.line(ends, "#9fcabf", width=4, tip=f"{each.num_choices} choices of members")
    for name, colour, is_dashed, values in curves:
        drawn = [(x, y) for x, y in zip(sizes, values, strict=True) if y is not None]
        chart.line(drawn, colour, is_dashed=is_dashed)
        for x, y in drawn:
            chart.dot(
                x,
                y,
                colour,
                radius=3 if len(points) > 1 else 5,
                tip=f"{x} members each, {name}: {y:.3f}",
            )
    legend = tuple(
        LegendEntry(label=name, colour=colour, is_dashed=is_dashed)
        for name, colour, is_dashed, _ in curves
    )
    note = _note(points, kappa_of_test)
    return Figure(title=heading, svg=chart.render(), legend=legend, note=note)


def _note(points: Sequence[StabilityPoint], kappa_of_test: object) -> str:
    """What the figure is about, and the numbers of all members."""
    last = points[-1].agreement
    number = {
        name: format_number(value, 2, MISSING)
        for name, value in (
            ("jaccard", last.jaccard),
            ("constant", last.jaccard_constant),
            ("permuted", last.jaccard_permuted),
            ("kappa", last.kappa),
            ("test", kappa_of_test),
        )
    }
    whose = (
        "each by members that did not see it"
        if points[-1].num_members > 1
        else "seen by the one member"
    )
    note = f"{last.num_patients} training patients, {whose}. "
    if any(each.num_choices > 1 for each in points):
        note += "Pale bars span the choices of members behind a mean. "
    return note + (
        f"With all members: Jaccard {number['jaccard']}, best constant set "
        f"{number['constant']}, permuted "
        f"{number['permuted']}. Only what lies above the permuted patients is about the patient: "
        f"kappa {number['kappa']}, of test patients {number['test']}."
    )
