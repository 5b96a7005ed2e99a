"""Pictures of a search: rewards, usefulness scores, depths, trajectories per patient."""

from collections.abc import Sequence

import numpy as np

from training.readable import finite_number
from training.report.chart import (
    ACCENT,
    GREEN,
    GREY,
    Axis,
    Chart,
    Figure,
    LegendEntry,
    nice_ticks,
    padded_range,
    text_width,
)
from training.report.search_numbers import RankCorrelation, TrajectoryCounts, TreeNumbers
from training.run.files import Rows

NUM_BINS = 14

MAX_DOTS = 600
"""Dots of the scatter; more only make one blot and a large page."""

MAX_COUNTS = 12
"""Distinct numbers of trajectories that get a bar each; the rest share the last one."""

COMMON_SCORE = 0.2
"""Share of all candidates from which a score that they have in common is told."""

PALE = "#c4ccd6"


def reward_figure(
    trajectories: Rows, column: str, heading: str, *, kept: str, axis: str = ""
) -> Figure | None:
    """Distribution of one reward over the search's trajectories; None if it has no numbers.

    Args:
        trajectories: rows of the trajectories table.
        column: the reward.
        heading: what the picture is called.
        kept: what the chosen trajectories are called.
        axis: what its axis is called, where the heading above it is not enough.
    """
    known = [
        (value, bool(row["kept"]))
        for row in trajectories
        if (value := finite_number(row[column])) is not None
    ]
    if not known:
        return None
    values = np.array([value for value, _ in known])
    is_kept = np.array([chosen for _, chosen in known])
    chart = _histogram(
        f"Distribution of {heading}",
        (values, values[is_kept]),
        padded_range(values.tolist()),
        ("trajectories", "kept"),
        axis,
    )
    note = f"mean {values.mean():.3f}"
    if is_kept.any():
        note += f", of the kept {values[is_kept].mean():.3f}"
    if len(known) < len(trajectories):
        note += f"; {len(trajectories) - len(known)} without a number"
    legend = (
        LegendEntry(label="all", colour=PALE),
        LegendEntry(label=kept, colour=ACCENT),
    )
    return Figure(title=heading, svg=chart.render(), legend=legend, note=note)


def usefulness_figure(trees: Sequence[TreeNumbers]) -> Figure | None:
    """Distribution of the usefulness scores that could be read; None if there are none."""
    visited = [score for tree in trees for score in tree.visited_usefulness]
    every = np.array([*visited, *(score for tree in trees for score in tree.unvisited_usefulness)])
    if not len(every):
        return None
    chart = _histogram(
        "Distribution of the usefulness scores",
        (every, np.array(visited)),
        (0.0, 1.0),
        ("candidates", "visited"),
    )
    note = f"{len(every)} scores, mean {every.mean():.2f}."
    common, counts = np.unique(every.round(4), return_counts=True)
    if counts.max() >= COMMON_SCORE * len(every):
        note += (
            f" {counts.max() / len(every):.0%} are {common[counts.argmax()]:.2f}: between "
            "candidates that share a score the vote decides nothing, the first one is taken."
        )
    neutral = sum(tree.num_neutral for tree in trees)
    if neutral:
        note += f" {neutral} unreadable ones, for which 50 of 100 stands, are not drawn."
    legend = (
        LegendEntry(label="all candidates", colour=PALE),
        LegendEntry(label="visited", colour=ACCENT),
    )
    return Figure(title="Usefulness r", svg=chart.render(), legend=legend, note=note)


def usefulness_against_value_figure(
    trees: Sequence[TreeNumbers], correlation: RankCorrelation, *, is_part_of_value: bool
) -> Figure | None:
    """Usefulness against Q among siblings; None if no two siblings were visited.

    Args:
        trees: their numbers.
        correlation: over the same trees.
        is_part_of_value: whether the usefulness is itself part of Q, as in a label-free search.
    """
    points = [point for tree in trees for point in tree.differences]
    if not points:
        return None
    spread = np.linspace(0, len(points) - 1, min(len(points), MAX_DOTS)).round().astype(int)
    drawn = [points[index] for index in spread]
    chart = Chart(
        label="Usefulness against Q, each less the mean of the visited siblings",
        x=_symmetric(max(abs(x) for x, _ in drawn), "r less the siblings' mean"),
        y=_symmetric(
            max(abs(y) for _, y in drawn),
            f"Q{', no label,' if is_part_of_value else ''} less the siblings' mean",
        ),
        width=340,
        height=240,
        left=58,
    )
    chart.line([(0, chart.y.low), (0, chart.y.high)], GREY, width=1)
    chart.line([(chart.x.low, 0), (chart.x.high, 0)], GREY, width=1)
    for x, y in drawn:
        chart.dot(x, y, ACCENT, radius=3, tip=f"r {x:+.2f}, Q {y:+.3f}")
    note = _correlation_text(correlation)
    if is_part_of_value:
        note += " The value of this search contains the usefulness, so they agree by construction."
    if len(drawn) < len(points):
        note += f" {len(drawn)} of {len(points)} nodes are drawn."
    return Figure(title="Does usefulness predict Q?", svg=chart.render(), note=note)


def depth_figure(trees: Sequence[TreeNumbers]) -> Figure | None:
    """How deep the finals lie that simulations reached; None if there are none."""
    found = [depth for tree in trees for depth in tree.found_depths]
    forced = [depth for tree in trees for depth in tree.forced_depths]
    if not found and not forced:
        return None
    deepest = max([*found, *forced])
    chosen = np.bincount(found, minlength=deepest + 1)
    added = np.bincount(forced, minlength=deepest + 1)
    chart = _bars("Depth of the finals", deepest, float((chosen + added).max()), "steps", "finals")
    for depth in range(deepest + 1):
        tip = f"{depth} steps: {chosen[depth]} chosen, {added[depth]} forced"
        if chosen[depth]:
            chart.bar((depth - 0.36, depth + 0.36), (0, float(chosen[depth])), ACCENT, tip=tip)
        if added[depth]:
            top = float(chosen[depth] + added[depth])
            chart.bar((depth - 0.36, depth + 0.36), (float(chosen[depth]), top), PALE, tip=tip)
    legend = (
        LegendEntry(label="proposed by the model", colour=ACCENT),
        LegendEntry(label="forced", colour=PALE),
    )
    note = (
        "Steps from the case to a final that a simulation reached. A final is forced at the last "
        "depth, and where no new question came or fitted."
    )
    return Figure(title="Depth of the finals", svg=chart.render(), legend=legend, note=note)


def count_figure(counts: TrajectoryCounts, *, kept: str) -> Figure | None:
    """How many trajectories patients have; None without a patient."""
    if not counts.found:
        return None
    kinds = [("found", counts.found, PALE), (kept, counts.kept, ACCENT)]
    if counts.readable is not None:
        kinds.insert(1, ("readable", counts.readable, GREEN))
    most = min(max(counts.found), MAX_COUNTS)
    tallies = [
        (label, np.bincount(np.minimum(numbers, most), minlength=most + 1), colour)
        for label, numbers, colour in kinds
    ]
    highest = float(max(tally.max() for _, tally, _ in tallies))
    chart = _bars("Trajectories per patient", most, highest, "trajectories", "patients")
    width = 0.8 / len(tallies)
    for place, (label, tally, colour) in enumerate(tallies):
        for number in range(most + 1):
            if tally[number]:
                left = number - 0.4 + width * place
                more = " or more" if number == MAX_COUNTS else ""
                tip = f"{tally[number]} patients have {number}{more} {label}"
                chart.bar((left, left + width), (0, float(tally[number])), colour, tip=tip)
    means = ", ".join(f"{np.mean(numbers):.1f} {label}" for label, numbers, _ in kinds)
    note = f"Unique trajectories of {len(counts.found)} patients; each has on average {means}."
    if max(counts.found) > MAX_COUNTS:
        note += f" The last bars hold {MAX_COUNTS} and more."
    legend = tuple(LegendEntry(label=label, colour=colour) for label, _, colour in kinds)
    return Figure(title="Trajectories per patient", svg=chart.render(), legend=legend, note=note)


def _correlation_text(correlation: RankCorrelation) -> str:
    tail = (
        f"{correlation.num_pairs} pairs of visited siblings of {correlation.num_patients} patients"
    )
    if correlation.tau is None:
        return f"No rank correlation: all of {tail} are tied in one of the two."
    interval = ""
    if correlation.interval is not None:
        low, high = correlation.interval
        interval = f" [{low:.2f}, {high:.2f}]"
    return (
        f"Kendall's tau-b {correlation.tau:.2f}{interval} over {tail}. The more useful sibling is "
        "visited first, so low scores are rarer here than among all candidates."
    )


def _histogram(
    label: str,
    values: tuple[np.ndarray, np.ndarray],
    span: tuple[float, float],
    names: tuple[str, str],
    x_label: str = "",
) -> Chart:
    """All values in grey, some of them in colour before it."""
    edges = np.linspace(*span, NUM_BINS + 1)
    every, some = (np.histogram(part, edges)[0] for part in values)
    chart = Chart(
        label=label,
        x=Axis(low=span[0], high=span[1], label=x_label),
        y=(y := Axis(low=0, high=1.08 * float(max(every.max(), 1)), label=names[0])),
        width=340,
        height=214 if x_label else 200,
        left=_room(y),
        bottom=40 if x_label else 26,
    )
    for index in range(NUM_BINS):
        bin_span = (float(edges[index]), float(edges[index + 1]))
        span_text = f"{bin_span[0]:.2f} to {bin_span[1]:.2f}"
        tip = f"{span_text}: {every[index]}, of which {some[index]} {names[1]}"
        if every[index]:
            chart.bar(bin_span, (0, float(every[index])), PALE, tip=tip)
        if some[index]:
            chart.bar(bin_span, (0, float(some[index])), ACCENT, tip=tip)
    return chart


def _bars(label: str, most: int, highest: float, x: str, y: str) -> Chart:
    whole = tuple(tick for tick in nice_ticks(0, max(highest, 1)) if float(tick).is_integer())
    y_axis = Axis(low=0, high=1.08 * max(highest, 1), label=y, ticks=whole)
    ticks = tuple(tick for tick in nice_ticks(0, max(most, 1), 14) if float(tick).is_integer())
    return Chart(
        label=label,
        x=Axis(low=-0.6, high=most + 0.6, label=x, ticks=ticks),
        y=y_axis,
        width=340,
        height=240,
        left=_room(y_axis),
    )


def _room(y: Axis) -> float:
    """Left of a chart whose vertical axis has this label and these numbers."""
    return max(48.0, 26 + max((text_width(label) for label in y.labels()), default=0.0))


def _symmetric(reach: float, label: str) -> Axis:
    reach = 1.08 * reach or 1.0
    return Axis(low=-reach, high=reach, label=label)
