"""The search in the report: what it found, what the tree says in numbers, what went wrong."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.readable import MISSING, finite_number, format_number, format_percentage
from training.report.chart import Figure, present
from training.report.records import RunRecords
from training.report.search_explorer import Explorer, ExplorerTrees
from training.report.search_figures import (
    count_figure,
    depth_figure,
    reward_figure,
    usefulness_against_value_figure,
    usefulness_figure,
)
from training.report.search_numbers import (
    TreeNumbers,
    mistakes,
    rank_correlation,
    trajectory_counts,
    tree_numbers,
)
from training.report.search_trajectories import best_rows, best_trajectories, salient_of
from training.report.search_tree import TreeNode, read_tree, tree_figure
from training.report.text import shown
from training.run.files import Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchValue:
    """What the search maximised, and what the page calls it."""

    is_label_free: bool
    """No label entered: the number is no reward of Eq. 4, and cannot be compared with one."""
    is_sampled: bool = False
    """Plain answers, without a tree: no usefulness, no vote."""

    @property
    def letter(self) -> str:
        """Beside a node."""
        return "V" if self.is_label_free else "R"

    @property
    def name(self) -> str:
        """Of an axis or a picture."""
        if self.is_label_free:
            return "value (usefulness + expert agreement), no label used"
        return "R"

    @property
    def kept(self) -> str:
        """What the chosen trajectories are called: nothing is trained on those without a label."""
        return "kept" if self.is_label_free else "kept for SFT"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchTree:
    """The tree that the page shows without a script."""

    patient_id: str
    nodes: tuple[TreeNode, ...]
    figure: Figure


@dataclass(slots=True)
class ReadTrees:
    """What is left of the trees after each was read once."""

    numbers: list[TreeNumbers]
    largest: tuple[str, list[TreeNode]] | None
    """The patient and nodes of the tree with the most visited nodes."""
    explorer: Explorer | None


def search_section(records: RunRecords) -> tuple[dict[str, Any] | None, list[str]]:
    """What the page says of the search, None before its stage; and what could not be read."""
    if records.trajectories is None and records.ledger is None and not records.trees.names:
        return None, []
    problems: list[str] = []
    value = search_value(records)
    rows = records.trajectories or ()
    trees = _read_trees(records.trees.read(problems), rows, value)
    ledger = records.ledger or {}
    section = {
        "value": value,
        "tiles": [] if records.ledger is None else ledger_tiles(records.ledger),
        "figures": _figures(rows, trees.numbers, value),
        "empty": _empty(records, trees),
        "patients": _patients(rows, ledger),
        "vote": [] if value.is_sampled else vote_tiles(trees.numbers),
        "shape": _shape(trees.numbers),
        "mistakes": [
            (
                mistake.label,
                format_number(mistake.count, 0, MISSING),
                _share(mistake.rate),
                _of(mistake.of, mistake.what),
            )
            for mistake in mistakes(ledger, trees.numbers)
        ],
        "tree": _static_tree(trees.largest, value),
        "num_trees": len(trees.numbers),
        "explorer": trees.explorer,
        "best": best_trajectories(
            rows, salient_of(records, [str(row["patient_id"]) for row in best_rows(rows)])
        ),
    }
    return section, problems


def search_value(records: RunRecords) -> SearchValue:
    """What this run's search maximised; run folders that do not say had rewards."""
    said = {row.get("value_kind") for row in records.trajectories or ()}
    said |= {(records.ledger or {}).get("value"), records.setting("search", "value")}
    methods = {(records.ledger or {}).get("method"), records.setting("search", "method")}
    return SearchValue(is_label_free="label_free" in said, is_sampled="samples" in methods)


def ledger_tiles(ledger: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Label, number and remark of what the search spent."""
    prefill = finite_number(ledger.get("prefill_tokens"))
    computed = finite_number(ledger.get("prefill_computed_tokens"))
    hits = (
        f"{100 * (1 - computed / prefill):.1f} %" if prefill and computed is not None else MISSING
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


def vote_tiles(trees: Sequence[TreeNumbers]) -> list[tuple[str, str, str]]:
    """Label, number and remark of how finals fare in the usefulness vote."""
    if not trees:
        return []
    expansions = sum(tree.num_expansions for tree in trees)
    with_final = sum(tree.num_with_final for tree in trees)
    contested = sum(tree.num_contested for tree in trees)
    lost = sum(tree.num_lost for tree in trees)
    lost_finals = sum(tree.num_lost_finals for tree in trees)
    visited = sum(tree.num_lost_finals_visited for tree in trees)
    terminals = sum(tree.num_terminals for tree in trees)
    forced = sum(len(tree.forced_depths) for tree in trees)
    simulations = sum(tree.num_simulations for tree in trees)
    again = max(0, simulations - terminals)
    return [
        ("Finals proposed", _part(with_final, expansions), f"of {expansions} expansions"),
        (
            "Finals that lost the vote",
            _part(lost, with_final),
            f"of {with_final} expansions with a final, {contested} of them with a question too",
        ),
        ("Lost, visited later", _part(visited, lost_finals), f"of {lost_finals} finals that lost"),
        ("Forced finals", _part(forced, terminals), f"of {terminals} finals reached"),
        (
            "Nothing new",
            _part(again, simulations),
            f"of {simulations} simulations ended in a known final",
        ),
    ]


def _read_trees(
    records: Iterator[dict[str, Any]], trajectories: Rows, value: SearchValue
) -> ReadTrees:
    numbers: list[TreeNumbers] = []
    largest: tuple[str, list[TreeNode]] | None = None
    most = -1
    explorer = ExplorerTrees(trajectories, letter=value.letter, name=value.name, kept=value.kept)
    for record in records:
        nodes = read_tree(record)
        if not nodes:
            continue
        patient_id = str(record.get("patient_id"))
        numbers.append(tree_numbers(nodes))
        is_largest = numbers[-1].num_visited > most
        explorer.add(patient_id, nodes, is_first=is_largest)
        if is_largest:
            largest, most = (patient_id, nodes), numbers[-1].num_visited
    return ReadTrees(numbers, largest, explorer.finish())


def _figures(
    rows: Rows, trees: Sequence[TreeNumbers], value: SearchValue
) -> dict[str, list[Figure]]:
    axis = "value, no label used" if value.is_label_free else ""
    rewards = [reward_figure(rows, "reward", value.name, kept=value.kept, axis=axis)]
    if value.is_label_free:
        rewards.append(
            reward_figure(rows, "reward_att", "expert agreement (R_att)", kept=value.kept)
        )
    else:
        rewards.append(
            reward_figure(rows, "reward_cls", "R_cls, of the prediction", kept=value.kept)
        )
        rewards.append(
            reward_figure(rows, "reward_att", "R_att, of the named features", kept=value.kept)
        )
    correlation = rank_correlation(tree.pairs for tree in trees)
    return {
        "rewards": present(rewards),
        "usefulness": present(
            [
                usefulness_figure(trees),
                usefulness_against_value_figure(
                    trees, correlation, is_part_of_value=value.is_label_free
                ),
            ]
        ),
        "counts": present(
            [
                count_figure(trajectory_counts(rows), kept=value.kept) if rows else None,
                depth_figure(trees),
            ]
        ),
    }


def _empty(records: RunRecords, trees: ReadTrees) -> list[str]:
    """A sentence for each part that is there and holds nothing."""
    said: list[str] = []
    if records.trajectories is not None:
        if not records.trajectories:
            said.append("The trajectories table has no rows.")
        elif all(finite_number(row["reward"]) is None for row in records.trajectories):
            said.append("No trajectory in the table has a number as its reward.")
    if records.trees.names and not trees.numbers:
        said.append("No tree in search/trees/ has a root, so there is nothing to draw or count.")
    return said


def _patients(rows: Rows, ledger: Mapping[str, Any]) -> str:
    """How many patients the SFT set lacks, in a sentence; empty where nothing says."""
    counts = trajectory_counts(rows)
    without = finite_number(ledger.get("patients_without_kept"))
    total = finite_number(ledger.get("patients"))
    if without is None and rows:
        without, total = counts.num_without_kept, len(counts.kept)
    if without is None or total is None:
        return ""
    return f"{_whole(without)} of {_whole(total)} patients have no kept trajectory."


def _shape(trees: Sequence[TreeNumbers]) -> str:
    """The size of the trees in a sentence; empty without trees."""
    if not trees:
        return ""
    nodes = sum(tree.num_nodes for tree in trees)
    visited = sum(tree.num_visited for tree in trees)
    depths = [depth for tree in trees for depth in (*tree.found_depths, *tree.forced_depths)]
    sentence = (
        f"{len(trees)} trees with {nodes / len(trees):.1f} nodes on average, of which "
        f"{visited / len(trees):.1f} were visited"
    )
    if depths:
        sentence += f"; finals lie {sum(depths) / len(depths):.1f} steps deep (most {max(depths)})"
    return f"{sentence}."


def _static_tree(
    largest: tuple[str, list[TreeNode]] | None, value: SearchValue
) -> SearchTree | None:
    """The tree with the most visited nodes: the others are smaller, not worse."""
    if largest is None:
        return None
    patient_id, nodes = largest
    return SearchTree(
        patient_id=shown(patient_id),
        nodes=tuple(nodes),
        figure=tree_figure(nodes, reward_letter=value.letter),
    )


def _part(count: int, whole: int) -> str:
    return f"{count} ({format_percentage(count / whole, MISSING)})" if whole else str(count)


def _share(rate: float | None) -> str:
    if rate is None:
        return MISSING
    # more than one each is no share
    return f"{rate:.2f} each" if rate > 1 else format_percentage(rate, MISSING)


def _of(whole: float | None, what: str) -> str:
    return MISSING if whole is None else f"{_whole(whole)} {what}"


def _whole(value: object) -> str:
    return format_number(value, 0, MISSING)
