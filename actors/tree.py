"""The search tree: selection and backpropagation, Eq. 1 and Algorithm 1, without a model in it.

Paper gaps: read literally, Algorithm 1 never leaves the root (its N(s_0) is never incremented) and
divides by the zero visits of an unvisited child. Here unvisited children come first, and every
node of a path, root included, is counted once per simulation. No random number decides anything.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

ContentT = TypeVar("ContentT")


@dataclass(slots=True, eq=False)
class Node(Generic[ContentT]):
    """A reasoning state: everything asked and answered on the way from the root."""

    content: ContentT
    """What this step says; the tree never looks at it."""
    path: tuple[int, ...] = ()
    """Child index at each level from the root, whose path is empty."""
    usefulness: float = 0.0
    """r of Eq. 3 in [0, 1]; orders children and never enters a value."""
    parent: "Node[ContentT] | None" = field(default=None, repr=False)
    children: "list[Node[ContentT]] | None" = field(default=None, repr=False)
    """None until the node is expanded; a terminal never is."""
    terminal: bool = False
    reward: float | None = None
    """R of a terminal, set once."""
    visit_count: int = 0
    value_sum: float = 0.0

    @property
    def depth(self) -> int:
        """Steps from the root."""
        return len(self.path)

    @property
    def value(self) -> float:
        """Q: mean reward of the simulations that passed here.

        Raises:
            ZeroDivisionError: if the node has not been visited.
        """
        return self.value_sum / self.visit_count

    def lineage(self) -> "list[Node[ContentT]]":
        """The path from the root to this node, both included."""
        nodes: list[Node[ContentT]] = []
        node: Node[ContentT] | None = self
        while node is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    def subtree(self) -> "Iterator[Node[ContentT]]":
        """This node and everything below it, parents first, in child order."""
        waiting: list[Node[ContentT]] = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(reversed(node.children or ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate(Generic[ContentT]):
    """A scored step that is about to become a child."""

    content: ContentT
    usefulness: float
    terminal: bool


def expand(node: Node[ContentT], candidates: Sequence[Candidate[ContentT]]) -> None:
    """Make every candidate a child of `node`, in order.

    Raises:
        ValueError: if the node is terminal or expanded already, or there is no candidate.
    """
    if node.terminal or node.children is not None or not candidates:
        raise ValueError(
            f"expected an unexpanded, non-terminal node and at least one candidate; node "
            f"{node.path} terminal={node.terminal}, {len(candidates)} candidates"
        )
    node.children = [
        Node(
            content=candidate.content,
            path=(*node.path, index),
            usefulness=candidate.usefulness,
            parent=node,
            terminal=candidate.terminal,
        )
        for index, candidate in enumerate(candidates)
    ]


def most_useful(children: Sequence[Node[ContentT]]) -> Node[ContentT]:
    """The child with the largest usefulness; ties go to the smaller index."""
    return max(children, key=lambda child: (child.usefulness, -child.path[-1]))


def select_child(node: Node[ContentT], exploration_weight: float) -> Node[ContentT]:
    """The child a simulation visits next, Eq. 1.

    Args:
        node: an expanded node.
        exploration_weight: lambda of Eq. 1.

    Returns:
        The most useful unvisited child, or else the argmax of
        Q + exploration_weight * sqrt(ln n(node) / n(child)); ties by usefulness, then index.
    """
    children = node.children or []
    unvisited = [child for child in children if child.visit_count == 0]
    if unvisited:
        return most_useful(unvisited)
    log_visits = math.log(node.visit_count)

    def score(child: Node[ContentT]) -> tuple[float, float, int]:
        bonus = exploration_weight * math.sqrt(log_visits / child.visit_count)
        return (child.value + bonus, child.usefulness, -child.path[-1])

    return max(children, key=score)


def select_leaf(root: Node[ContentT], exploration_weight: float) -> Node[ContentT]:
    """The node where the next simulation starts: a terminal, or one without children."""
    node = root
    while node.children is not None:
        node = select_child(node, exploration_weight)
    return node


def backpropagate(terminal: Node[ContentT]) -> None:
    """Count the terminal's reward once at every node of its path, root included.

    Raises:
        ValueError: if the node is no terminal or has no reward.
    """
    if not terminal.terminal or terminal.reward is None:
        raise ValueError(f"expected a terminal with a reward, got node {terminal.path}")
    for node in terminal.lineage():
        node.visit_count += 1
        node.value_sum += terminal.reward
