"""The explorable tree of the report: its data as safe JSON, its script, and how much of it fits.

What models write gets into the page as data: JSON in a script element that no browser runs, with
every `<`, `>` and `&` escaped, which the script puts into the page as text only. The page's policy
lets exactly this script run, named by its hash.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from training.readable import finite_number
from training.report.records import name_list
from training.report.search_tree import TreeNode
from training.report.text import printable
from training.run.files import Rows

MAX_BYTES = 4_000_000
"""Of all trees in the page together: some hundred trees of the paper's size."""

MAX_TEXT = 2_000
"""Characters of one question or answer; the whole of it is in the run folder."""

TERMINAL, BEST_PATH, NEUTRAL_SCORE = 1, 2, 4
"""Flags of a node, as `templates/search_tree.js` reads them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explorer:
    """What the template puts into the page."""

    data: Markup
    """JSON, safe inside a script element."""
    script: Markup
    script_hash: str
    """For the page's policy, as in "sha256-...="."""
    num_trees: int
    num_left_out: int
    """Trees that did not fit."""
    max_bytes: int


class ExplorerTrees:
    """Gathers trees until the page is full.

    Args:
        trajectories: rows of the trajectories table; where they name their place in a tree, its
            final shows the parts of its reward.
        letter: of the reward beside a node.
        name: of the reward in words.
        kept: what chosen trajectories are called.
        max_bytes: of all trees together.
    """

    def __init__(
        self,
        trajectories: Rows,
        *,
        letter: str,
        name: str,
        kept: str,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._finals = {
            (str(row["patient_id"]), str(row["path"])): row
            for row in trajectories
            if row.get("path") is not None
        }
        self._names = {"letter": letter, "name": name, "kept": kept}
        self._max_bytes = max_bytes
        self._trees: list[tuple[str, str]] = []
        self._num_bytes = 0
        self._num_left_out = 0
        self._first: tuple[str, str] | None = None

    def add(self, patient_id: str, nodes: Sequence[TreeNode], *, is_first: bool = False) -> None:
        """Takes a tree if it fits.

        Args:
            patient_id: whose.
            nodes: parents first.
            is_first: whether the page opens with it unless a later one does; it stays in any case.
        """
        finals = {
            node.path: row
            for node in nodes
            if node.is_terminal and (row := self._finals.get((patient_id, node.path))) is not None
        }
        text = safe_json([printable(patient_id), [_node(node, finals) for node in nodes]])
        if is_first:
            self._first = (patient_id, text)
        size = len(text.encode())
        # once one is left out all later ones are: which are in does not depend on their sizes
        if self._num_left_out or self._num_bytes + size > self._max_bytes:
            self._num_left_out += 1
        else:
            self._trees.append((patient_id, text))
            self._num_bytes += size

    def finish(self) -> Explorer | None:
        """What the page gets; None without a tree."""
        if self._first is None and self._trees:
            self._first = self._trees[0]
        if self._first is None:
            return None
        trees = list(self._trees)
        if self._first not in trees:
            trees.insert(0, self._first)
            self._num_left_out -= 1
            while len(trees) > 1 and sum(len(text.encode()) for _, text in trees) > self._max_bytes:
                trees.pop()
                self._num_left_out += 1
        head = safe_json(self._names | {"first": trees.index(self._first)})
        data = f'{head[:-1]},"trees":[{",".join(text for _, text in trees)}]}}'
        script = explorer_script()
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        return Explorer(
            data=Markup(data),
            script=Markup(script),
            script_hash=f"sha256-{digest}",
            num_trees=len(trees),
            num_left_out=self._num_left_out,
            max_bytes=self._max_bytes,
        )


@cache
def explorer_script() -> str:
    """The script of the page, which is the same for every run."""
    text = (files("training.report") / "templates" / "search_tree.js").read_text("utf-8")
    assert "</" not in text, "a script element ends at its first closing tag"
    return text


def safe_json(value: object) -> str:
    """JSON that can stand inside a script element: nothing in it can close or open a tag."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _node(node: TreeNode, finals: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """A node as a list: parent, question, answer, n, Q, r, flags, R, and a final's parts."""
    flags = TERMINAL * node.is_terminal + BEST_PATH * node.is_on_best_path
    flags += NEUTRAL_SCORE * node.is_score_neutral
    listed: list[Any] = [
        None if node.parent is None else node.parent.number,
        _cut(node.question),
        _cut(node.answer),
        node.visit_count,
        _rounded(node.value),
        _rounded(node.usefulness),
        flags,
        _rounded(node.reward),
    ]
    row = finals.get(node.path) if node.is_terminal else None
    if row is not None:
        listed.append(
            {
                "cls": _rounded(finite_number(row["reward_cls"])),
                "att": _rounded(finite_number(row["reward_att"])),
                "probability": _rounded(finite_number(row.get("probability"))),
                "features": [printable(name) for name in name_list(row.get("features"))],
                "kept": bool(row["kept"]),
                "readable": row.get("readable") is None or bool(row["readable"]),
            }
        )
    return listed


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}\u2026"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
