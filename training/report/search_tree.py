"""A search tree in the report: read from its file, and drawn as one static picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup

from training.readable import finite_number
from training.report.chart import (
    ACCENT,
    GREY,
    INK,
    MUTED,
    WARM,
    Figure,
    LegendEntry,
    document,
    mixed,
    shortened,
    title,
)
from training.report.text import printable, untagged

COLUMN_WIDTH, ROW_HEIGHT = 188, 34
"""Distance between depths and between leaves of a drawn tree."""

MAX_DRAWN_NODES = 240
"""The paper's sizes stay below this; a larger tree is drawn without its unvisited nodes."""

MAX_DEPTH = 200
"""A search goes some ten steps deep; what a damaged file hangs below this is left out."""


@dataclass(slots=True, kw_only=True, eq=False)
class TreeNode:
    """One node as the page draws, lists and counts it."""

    number: int
    """Place in the tree, parents first; the root is 0."""
    depth: int
    path: str
    """Child indices from the root, as in "0/2/1": the key of a terminal's trajectory."""
    question: str
    answer: str
    """Readable: closing tags are gone, opening ones are words."""
    visit_count: int
    value: float | None
    """Q; None for a node that was never visited."""
    usefulness: float | None
    """None for the root and for a forced final, which has no rivals."""
    reward: float | None
    is_terminal: bool
    is_on_best_path: bool
    is_score_neutral: bool
    """The usefulness score could not be read, and 50 of 100 stands for it."""
    parent: "TreeNode | None" = field(default=None, repr=False)
    children: "list[TreeNode]" = field(default_factory=list, repr=False)
    x: float = 0.0
    y: float = 0.0


def read_tree(record: Mapping[str, Any]) -> list[TreeNode]:
    """The nodes of a saved tree, parents first in child order; the first one is the root.

    Nodes that no path from the root reaches are left out.
    """
    nodes = record.get("nodes")
    rows = [
        row
        for row in (nodes if isinstance(nodes, list) else ())
        if isinstance(row, dict) and isinstance(row.get("parent"), int | str | None)
    ]
    below: dict[object, list[dict[str, Any]]] = {}
    for row in rows:
        below.setdefault(row.get("parent"), []).append(row)
    if not below.get(None):
        return []
    found: list[TreeNode] = []
    seen: set[object] = set()
    waiting: list[tuple[dict[str, Any], TreeNode | None]] = [(below[None][0], None)]
    while waiting:
        row, parent = waiting.pop()
        name = row.get("id")
        if name in seen or (parent is not None and parent.depth >= MAX_DEPTH):
            continue
        seen.add(name)
        node = _tree_node(row, len(found), parent)
        found.append(node)
        children = [
            child
            for child in below.get(name, ())
            if isinstance(child.get("id"), int | str) and child.get("id") not in seen
        ]
        # the last one that waits goes first
        waiting += [(child, node) for child in reversed(children)]
    return found


def _tree_node(row: Mapping[str, Any], number: int, parent: TreeNode | None) -> TreeNode:
    count = int(finite_number(row.get("visit_count")) or 0)
    is_terminal = bool(row.get("terminal"))
    path = row.get("path")
    node = TreeNode(
        number=number,
        depth=0 if parent is None else parent.depth + 1,
        path="/".join(map(str, path)) if isinstance(path, list) else str(path or ""),
        question=printable(row.get("question") or ""),
        answer=untagged(row.get("answer") or ""),
        visit_count=count,
        value=finite_number(row.get("q")) if count else None,
        usefulness=finite_number(row.get("usefulness")),
        reward=finite_number(row.get("reward")),
        is_terminal=is_terminal,
        is_on_best_path=bool(row.get("on_best_path")),
        is_score_neutral=bool(row.get("score_is_neutral")),
        parent=parent,
    )
    if parent is not None:
        parent.children.append(node)
    return node


def tree_figure(nodes: Sequence[TreeNode], *, reward_letter: str = "R") -> Figure:
    """A search tree, root at the left; hovering over a node tells its question.

    Args:
        nodes: as `read_tree` gives them, the root at least.
        reward_letter: what a final's number is called in the picture.
    """
    is_cut = len(nodes) > MAX_DRAWN_NODES
    drawn = [node for node in nodes if not is_cut or node.visit_count or not node.depth]
    visible = {node.number for node in drawn}
    num_leaves = _place(drawn, visible)
    deepest = max(node.depth for node in drawn)
    edges: list[Markup] = []
    marks: list[Markup] = []
    for node in drawn:
        for child in node.children:
            if child.number in visible:
                edges.append(_edge(node, child))
        marks.append(_mark(node, max(nodes[0].visit_count, 1), reward_letter))
    # the best path is drawn last: over the others where they cross
    edges.sort(key=lambda edge: ACCENT in edge)
    svg = document(
        COLUMN_WIDTH * (deepest + 1) + 10,
        ROW_HEIGHT * num_leaves + 24,
        "Search tree",
        [*edges, *marks],
    )
    note = (
        f"n visits, Q mean {reward_letter}, r usefulness (? where the score was unreadable), "
        f"{reward_letter} of a final. Squares are finals, hollow nodes were never visited, darker "
        "is a higher Q. Hover over a node for its question."
    )
    if is_cut:
        note += f" {len(nodes) - len(drawn)} unvisited nodes are not drawn."
    legend = (
        LegendEntry(label="path to the best final", colour=ACCENT),
        LegendEntry(label="other paths", colour="#c4ccd6"),
    )
    return Figure(title="One search tree", svg=svg, legend=legend, note=note, is_wide=True)


def _place(nodes: Sequence[TreeNode], visible: set[int]) -> int:
    """Sets the coordinates of the nodes, parents first, and returns how many rows they take."""
    num_rows = 0
    for node in nodes:
        node.x = 22 + COLUMN_WIDTH * node.depth
        if not any(child.number in visible for child in node.children):
            node.y = 30 + ROW_HEIGHT * num_rows
            num_rows += 1
    for node in reversed(nodes):
        rows = [child.y for child in node.children if child.number in visible]
        if rows:
            node.y = (rows[0] + rows[-1]) / 2
    return num_rows


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


def _mark(node: TreeNode, most_visits: int, reward_letter: str) -> Markup:
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
    label = _label(node, reward_letter)
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


def _label(node: TreeNode, reward_letter: str) -> str:
    parts = [f"#{node.number}"]
    if node.visit_count:
        parts.append(f"n {node.visit_count}")
    if node.is_terminal and node.reward is not None:
        parts.append(f"{reward_letter} {node.reward:.2f}")
    elif node.value is not None:
        parts.append(f"Q {node.value:.2f}")
    if node.usefulness is not None and node.depth:
        parts.append(f"r {node.usefulness:.2f}{'?' if node.is_score_neutral else ''}")
    return "  ".join(parts)
