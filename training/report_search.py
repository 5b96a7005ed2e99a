"""The search in the report: distributions of rewards, best trajectories, and one tree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup

from training.report_chart import (
    ACCENT,
    GREY,
    INK,
    MUTED,
    WARM,
    Axis,
    Chart,
    Figure,
    LegendEntry,
    document,
    mixed,
    padded_range,
    shortened,
    title,
)
from training.report_data import Rows
from training.report_text import TextBlock, printable, text_blocks
from training.result_table import finite_number, format_number

NUM_BINS = 14

NUM_BEST = 3
"""Trajectories that are shown as text."""

COLUMN_WIDTH, ROW_HEIGHT = 188, 34
"""Distance between depths and between leaves of a drawn tree."""

MAX_DRAWN_NODES = 240
"""The paper's sizes stay below this; a larger tree is drawn without its unvisited nodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BestTrajectory:
    """A trajectory to read."""

    patient_id: str
    reward: float | None
    reward_cls: float | None
    reward_att: float | None
    blocks: tuple[TextBlock, ...]


def reward_figure(trajectories: Rows, column: str, heading: str) -> Figure | None:
    """Distribution of one reward over the search's trajectories; None if it has no numbers."""
    known = [
        (value, bool(row["kept"]))
        for row in trajectories
        if (value := finite_number(row[column])) is not None
    ]
    if not known:
        return None
    values = np.array([value for value, _ in known])
    kept = np.array([is_kept for _, is_kept in known])
    low, high = padded_range(values.tolist())
    edges = np.linspace(low, high, NUM_BINS + 1)
    every, _ = np.histogram(values, edges)
    chosen, _ = np.histogram(values[kept], edges)
    chart = Chart(
        label=f"Distribution of {heading}",
        x=Axis(low=low, high=high),
        y=Axis(low=0, high=1.08 * float(every.max()), label="trajectories"),
        width=340,
        height=200,
        left=48,
        bottom=26,
    )
    for index in range(NUM_BINS):
        span = (float(edges[index]), float(edges[index + 1]))
        tip = f"{span[0]:.2f} to {span[1]:.2f}: {every[index]}, of which {chosen[index]} kept"
        if every[index]:
            chart.bar(span, (0, float(every[index])), "#c4ccd6", tip=tip)
        if chosen[index]:
            chart.bar(span, (0, float(chosen[index])), ACCENT, tip=tip)
    note = f"mean {values.mean():.3f}"
    if kept.any():
        note += f", of the kept {values[kept].mean():.3f}"
    legend = (
        LegendEntry(label="all", colour="#c4ccd6"),
        LegendEntry(label="kept for SFT", colour=ACCENT),
    )
    return Figure(title=heading, svg=chart.render(), legend=legend, note=note)


def best_trajectories(trajectories: Rows) -> list[BestTrajectory]:
    """The best trajectory of each of the patients with the highest rewards."""
    best_of_patient: dict[str, dict[str, Any]] = {}
    for row in sorted(trajectories, key=_reward, reverse=True):
        best_of_patient.setdefault(str(row["patient_id"]), row)
    best = list(best_of_patient.values())[:NUM_BEST]
    return [
        BestTrajectory(
            patient_id=printable(row["patient_id"]),
            reward=finite_number(row["reward"]),
            reward_cls=finite_number(row["reward_cls"]),
            reward_att=finite_number(row["reward_att"]),
            blocks=tuple(text_blocks(row["text"] if isinstance(row["text"], str) else "")),
        )
        for row in best
    ]


def _reward(row: Mapping[str, Any]) -> float:
    reward = finite_number(row["reward"])
    return -np.inf if reward is None else reward


def ledger_tiles(ledger: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Label, number and remark of what the search spent."""
    prefill = finite_number(ledger.get("prefill_tokens"))
    computed = finite_number(ledger.get("prefill_computed_tokens"))
    hits = (
        f"{100 * (1 - computed / prefill):.1f} %" if prefill and computed is not None else "\u2013"
    )
    return [
        ("Patients", _whole(ledger.get("patients")), ""),
        ("Requests", _whole(ledger.get("requests")), ""),
        ("Prompt tokens", _whole(prefill), "sent"),
        ("Cache hit rate", hits, f"{_whole(computed)} tokens computed"),
        ("Decoded tokens", _whole(ledger.get("decode_tokens")), ""),
        ("Invalid scores", _whole(ledger.get("invalid_scores")), "usefulness"),
        ("Time", f"{_whole(ledger.get('seconds'))} s", ""),
    ]


@dataclass(slots=True, kw_only=True)
class TreeNode:
    """One node as the page draws and lists it."""

    number: int
    depth: int
    question: str
    answer: str
    visit_count: int
    value: float | None
    """Q; None for a node that was never visited."""
    usefulness: float | None
    reward: float | None
    is_terminal: bool
    is_on_best_path: bool
    is_score_neutral: bool
    """The usefulness score could not be read, and 50 of 100 stands for it."""
    children: "list[TreeNode]" = field(default_factory=list)
    x: float = 0.0
    y: float = 0.0

    @property
    def kind(self) -> str:
        """What the node is, in a word."""
        return "case" if not self.depth else "final" if self.is_terminal else "question"


def read_tree(record: Mapping[str, Any]) -> list[TreeNode]:
    """The nodes of a saved tree, parents first in child order; the first one is the root.

    Nodes that no path from the root reaches are left out.
    """
    rows = [row for row in record.get("nodes") or () if isinstance(row, dict)]
    below: dict[object, list[dict[str, Any]]] = {}
    for row in rows:
        below.setdefault(row.get("parent"), []).append(row)
    if not below.get(None):
        return []
    nodes: list[TreeNode] = []
    seen: set[object] = set()

    def visit(row: dict[str, Any], depth: int) -> TreeNode:
        seen.add(row.get("id"))
        node = _tree_node(row, len(nodes), depth)
        nodes.append(node)
        for child in below.get(row.get("id"), ()):
            if child.get("id") not in seen and child.get("id") is not None:
                node.children.append(visit(child, depth + 1))
        return node

    visit(below[None][0], 0)
    return nodes


def tree_figure(nodes: Sequence[TreeNode]) -> Figure:
    """A search tree, root at the left; hovering over a node tells its question."""
    is_cut = len(nodes) > MAX_DRAWN_NODES
    drawn = [node for node in nodes if not is_cut or node.visit_count or not node.depth]
    visible = {node.number for node in drawn}
    num_leaves = _place(nodes[0], visible, 0)
    deepest = max(node.depth for node in drawn)
    edges: list[Markup] = []
    marks: list[Markup] = []
    for node in drawn:
        for child in node.children:
            if child.number in visible:
                edges.append(_edge(node, child))
        marks.append(_mark(node, max(nodes[0].visit_count, 1)))
    # the best path is drawn last: over the others where they cross
    edges.sort(key=lambda edge: ACCENT in edge)
    svg = document(
        COLUMN_WIDTH * (deepest + 1) + 10,
        ROW_HEIGHT * num_leaves + 24,
        "Search tree",
        [*edges, *marks],
    )
    note = (
        "n visits, Q mean reward, r usefulness (? where the score was unreadable), R reward of a "
        "final. Squares are finals, hollow nodes were never visited, darker is a higher Q. Hover "
        "over a node for its question."
    )
    if is_cut:
        note += f" {len(nodes) - len(drawn)} unvisited nodes are not drawn."
    legend = (
        LegendEntry(label="path to the best final", colour=ACCENT),
        LegendEntry(label="other paths", colour="#c4ccd6"),
    )
    return Figure(title="One search tree", svg=svg, legend=legend, note=note, is_wide=True)


def _tree_node(row: Mapping[str, Any], number: int, depth: int) -> TreeNode:
    count = int(finite_number(row.get("visit_count")) or 0)
    return TreeNode(
        number=number,
        depth=depth,
        question=printable(row.get("question") or ""),
        answer=printable(row.get("answer") or ""),
        visit_count=count,
        value=finite_number(row.get("q")) if count else None,
        usefulness=finite_number(row.get("usefulness")),
        reward=finite_number(row.get("reward")),
        is_terminal=bool(row.get("terminal")),
        is_on_best_path=bool(row.get("on_best_path")),
        is_score_neutral=bool(row.get("score_is_neutral")),
    )


def _place(node: TreeNode, visible: set[int], next_row: int) -> int:
    children = [child for child in node.children if child.number in visible]
    node.x = 22 + COLUMN_WIDTH * node.depth
    if not children:
        node.y = 30 + ROW_HEIGHT * next_row
        return next_row + 1
    for child in children:
        next_row = _place(child, visible, next_row)
    node.y = (children[0].y + children[-1].y) / 2
    return next_row


def _edge(node: TreeNode, child: TreeNode) -> Markup:
    is_best = child.is_on_best_path
    # leaves flat and turns late, so that the label beside the node stays above its own line
    bend = child.x - 0.28 * COLUMN_WIDTH
    return Markup(
        '<path d="M{:.0f} {:.0f}H{:.0f}C{:.0f} {:.0f} {:.0f} {:.0f} {:.0f} {:.0f}" fill="none" '
        'stroke="{}" stroke-width="{}"/>'
    ).format(
        node.x,
        node.y,
        bend - 10,
        bend + 16,
        node.y,
        bend + 4,
        child.y,
        child.x,
        child.y,
        ACCENT if is_best else "#c4ccd6",
        2.5 if is_best else 1.2,
    )


def _mark(node: TreeNode, most_visits: int) -> Markup:
    radius = 4.5 + 5 * (node.visit_count / most_visits) ** 0.5
    # R lies in [-2.8, 0.7] with the default weights: this spreads what is common
    share = 0.0 if node.value is None else 1 / (1 + np.exp(-2 * node.value))
    fill = mixed((214, 226, 240), (16, 60, 116), float(share)) if node.visit_count else "#fff"
    stroke = ACCENT if node.is_on_best_path else MUTED if node.visit_count else GREY
    if node.is_terminal:
        shape = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="2"').format(
            node.x - radius, node.y - radius, 2 * radius, 2 * radius
        )
    else:
        shape = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{:.1f}"').format(node.x, node.y, radius)
    label = _label(node)
    text = Markup('<text class="halo" x="{:.0f}" y="{:.0f}" fill="{}">{}</text>').format(
        node.x + (radius + 4 if not node.children else radius - 2),
        node.y + (4 if not node.children else -radius - 2),
        WARM if node.is_on_best_path and node.is_terminal else INK if node.visit_count else MUTED,
        label,
    )
    tip = f"#{node.number} {shortened(node.question, 400)}" if node.question else label
    return Markup('<g>{} fill="{}" stroke="{}" stroke-width="1.5"/>{}{}</g>').format(
        shape, fill, stroke, text, title(tip)
    )


def _label(node: TreeNode) -> str:
    parts = [f"#{node.number}"]
    if node.visit_count:
        parts.append(f"n {node.visit_count}")
    if node.is_terminal and node.reward is not None:
        parts.append(f"R {node.reward:.2f}")
    elif node.value is not None:
        parts.append(f"Q {node.value:.2f}")
    if node.usefulness is not None and node.depth:
        parts.append(f"r {node.usefulness:.2f}{'?' if node.is_score_neutral else ''}")
    return "  ".join(parts)


def _whole(value: object) -> str:
    return format_number(value, 0, "\u2013")
