"""Selection and backpropagation against values worked out by hand."""

import math

import pytest

from actors.tree import (
    Candidate,
    Node,
    backpropagate,
    expand,
    most_useful,
    select_child,
    select_leaf,
)
from tests.typed import known


def _root(*usefulness: float) -> Node[str]:
    root = Node(content="root")
    expand(
        root,
        [Candidate(content=str(i), usefulness=r, terminal=False) for i, r in enumerate(usefulness)],
    )
    return root


def _visit(node: Node[str], count: int, value: float) -> None:
    node.visit_count, node.value_sum = count, count * value


def test_the_most_useful_unvisited_child_comes_first() -> None:
    root = _root(0.2, 0.9, 0.9)
    _visit(root, 1, 5.0)
    _visit(known(root.children)[0], 1, 5.0)

    assert select_child(root, 1.0).path == (1,)


def test_ties_in_usefulness_go_to_the_smaller_index() -> None:
    assert most_useful(known(_root(0.5, 0.5, 0.5).children)).path == (0,)


def test_visited_children_are_ranked_by_value_plus_exploration() -> None:
    root = _root(0.0, 0.0)
    _visit(root, 5, 0.0)
    _visit(known(root.children)[0], 4, 0.3)  # 0.3 + sqrt(ln 5 / 4) = 0.934
    _visit(known(root.children)[1], 1, -0.3)  # -0.3 + sqrt(ln 5) = 0.969

    assert select_child(root, 1.0).path == (1,)
    assert select_child(root, 0.9).path == (0,)  # 0.871 against 0.842


def test_without_exploration_the_best_value_wins() -> None:
    root = _root(0.0, 1.0)
    _visit(root, 100, 0.0)
    _visit(known(root.children)[0], 99, 0.2)
    _visit(known(root.children)[1], 1, 0.1)

    assert select_child(root, 0.0).path == (0,)


def test_equal_scores_are_decided_by_usefulness_then_index() -> None:
    root = _root(0.1, 0.7, 0.7)
    _visit(root, 3, 0.5)
    for child in known(root.children):
        _visit(child, 1, 0.5)

    assert select_child(root, 1.0).path == (1,)


def test_usefulness_never_enters_the_value() -> None:
    root = Node(content="root")
    expand(root, [Candidate(content="final", usefulness=1.0, terminal=True)])
    final = known(root.children)[0]
    final.reward = -2.0

    backpropagate(final)

    assert (final.value, root.value) == (-2.0, -2.0)


def test_backpropagation_counts_every_node_of_the_path_once_root_included() -> None:
    root = _root(0.5, 0.1)
    expand(known(root.children)[0], [Candidate(content="final", usefulness=0.0, terminal=True)])
    final = known(known(root.children)[0].children)[0]
    final.reward = 0.25

    backpropagate(final)
    backpropagate(final)

    counts = [node.visit_count for node in root.subtree()]
    assert counts == [2, 2, 2, 0]
    assert root.value_sum == 0.5


def test_selection_stops_at_a_terminal_or_an_unexpanded_node() -> None:
    root = _root(0.9, 0.1)
    expand(known(root.children)[0], [Candidate(content="final", usefulness=0.0, terminal=True)])

    assert select_leaf(root, 1.0).path == (0, 0)
    assert select_leaf(Node(content="alone"), 1.0).path == ()


def test_the_exploration_bonus_of_the_only_visited_child_is_zero_at_first() -> None:
    assert math.log(1) == 0.0  # ln n(parent) after one simulation
    root = _root(0.5)
    _visit(root, 1, 1.0)
    _visit(known(root.children)[0], 1, 1.0)

    assert select_child(root, 10.0).path == (0,)


@pytest.mark.parametrize("terminal", [True, False])
def test_terminals_and_expanded_nodes_cannot_be_expanded(terminal: bool) -> None:
    node = Node(content="x", terminal=terminal)
    candidate = Candidate(content="y", usefulness=0.0, terminal=False)
    if not terminal:
        expand(node, [candidate])

    with pytest.raises(ValueError, match="unexpanded"):
        expand(node, [candidate])


def test_expansion_needs_a_candidate() -> None:
    with pytest.raises(ValueError, match="at least one candidate"):
        expand(Node(content="x"), [])


def test_only_rewarded_terminals_are_backpropagated() -> None:
    with pytest.raises(ValueError, match="terminal with a reward"):
        backpropagate(Node(content="x", terminal=True))
