"""What search trees say in numbers: the usefulness vote, usefulness against value, depths, visits.

Everything is counted from the saved trees, one tree at a time, so that a large cohort needs no
more memory than its numbers.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from training.readable import finite_number
from training.report.search_tree import TreeNode

NUM_RESAMPLES = 1_000
"""Bootstrap resamples of patients."""

MIN_PATIENTS = 5
"""With fewer patients an interval over patients says nothing."""


@dataclass(slots=True, kw_only=True)
class SiblingPairs:
    """Pairs of visited siblings with scores that the model wrote, by usefulness and by Q."""

    concordant: int = 0
    """The more useful one has the higher Q."""
    discordant: int = 0
    tied_usefulness: int = 0
    """Only the usefulness is the same."""
    tied_value: int = 0
    """Only Q is the same."""
    tied_both: int = 0

    @property
    def num_pairs(self) -> int:
        """All of them."""
        ties = self.tied_usefulness + self.tied_value + self.tied_both
        return self.concordant + self.discordant + ties

    def add(self, first: TreeNode, second: TreeNode) -> None:
        """Counts two visited siblings."""
        by_usefulness = _sign((first.usefulness or 0.0) - (second.usefulness or 0.0))
        by_value = _sign((first.value or 0.0) - (second.value or 0.0))
        if not by_usefulness and not by_value:
            self.tied_both += 1
        elif not by_usefulness:
            self.tied_usefulness += 1
        elif not by_value:
            self.tied_value += 1
        elif by_usefulness == by_value:
            self.concordant += 1
        else:
            self.discordant += 1

    def counts(self) -> tuple[int, int, int, int, int]:
        """Concordant, discordant, tied in usefulness, in Q, in both."""
        return (
            self.concordant,
            self.discordant,
            self.tied_usefulness,
            self.tied_value,
            self.tied_both,
        )


@dataclass(slots=True, kw_only=True)
class TreeNumbers:
    """The numbers of one patient's tree."""

    num_nodes: int
    num_visited: int
    num_simulations: int
    """Visits of the root."""
    num_expansions: int = 0
    """Nodes with children."""
    num_with_final: int = 0
    """Expansions with a scored final among the candidates."""
    num_contested: int = 0
    """Of these, the ones in which a question stood against the final."""
    num_lost: int = 0
    """Of these, the ones in which the vote took a question."""
    num_lost_finals: int = 0
    """Scored finals in those expansions."""
    num_lost_finals_visited: int = 0
    """Of these, the ones that a simulation took all the same."""
    found_depths: list[int] = field(default_factory=list)
    """Depth of every terminal that was visited and chosen from candidates."""
    forced_depths: list[int] = field(default_factory=list)
    """Depth of every visited terminal that had no rival: the forced finals."""
    visited_usefulness: list[float] = field(default_factory=list)
    """Readable scores of the candidates that were visited."""
    unvisited_usefulness: list[float] = field(default_factory=list)
    num_neutral: int = 0
    """Candidates whose score could not be read."""
    pairs: SiblingPairs = field(default_factory=SiblingPairs)
    differences: list[tuple[float, float]] = field(default_factory=list)
    """Usefulness and Q of visited candidates, each less the mean of its visited siblings."""

    @property
    def num_terminals(self) -> int:
        """Terminals that a simulation reached."""
        return len(self.found_depths) + len(self.forced_depths)


def tree_numbers(nodes: Sequence[TreeNode]) -> TreeNumbers:
    """The numbers of one tree.

    Args:
        nodes: as `training.report.search_tree.read_tree` gives them, the root at least.
    """
    numbers = TreeNumbers(
        num_nodes=len(nodes),
        num_visited=sum(node.visit_count > 0 for node in nodes),
        num_simulations=nodes[0].visit_count,
    )
    for node in nodes:
        if node.is_terminal and node.visit_count:
            depths = numbers.forced_depths if node.usefulness is None else numbers.found_depths
            depths.append(node.depth)
        if node.usefulness is not None and not node.is_score_neutral:
            scores = (
                numbers.visited_usefulness if node.visit_count else numbers.unvisited_usefulness
            )
            scores.append(node.usefulness)
        numbers.num_neutral += int(node.is_score_neutral)
        if node.children:
            numbers.num_expansions += 1
            _count_vote(numbers, node.children)
            _count_siblings(numbers, node.children)
    return numbers


def most_useful(children: Sequence[TreeNode]) -> TreeNode | None:
    """The child that the usefulness vote takes, the first of equals; None if none has a score."""
    scored = [child for child in children if child.usefulness is not None]
    return max(scored, key=lambda child: child.usefulness or 0.0, default=None)


def _count_vote(numbers: TreeNumbers, children: Sequence[TreeNode]) -> None:
    scored = [child for child in children if child.usefulness is not None]
    finals = [child for child in scored if child.is_terminal]
    winner = most_useful(children)
    if not finals or winner is None:
        return
    numbers.num_with_final += 1
    numbers.num_contested += int(len(finals) < len(scored))
    if not winner.is_terminal:
        numbers.num_lost += 1
        numbers.num_lost_finals += len(finals)
        numbers.num_lost_finals_visited += sum(final.visit_count > 0 for final in finals)


def _count_siblings(numbers: TreeNumbers, children: Sequence[TreeNode]) -> None:
    compared = [
        child
        for child in children
        if child.visit_count
        and child.value is not None
        and child.usefulness is not None
        and not child.is_score_neutral
    ]
    if len(compared) < 2:
        return
    for first, second in combinations(compared, 2):
        numbers.pairs.add(first, second)
    usefulness = np.array([child.usefulness for child in compared], dtype=float)
    values = np.array([child.value for child in compared], dtype=float)
    numbers.differences += list(
        zip(
            (usefulness - usefulness.mean()).tolist(),
            (values - values.mean()).tolist(),
            strict=True,
        )
    )


def _sign(difference: float) -> int:
    """-1, 0 or 1; means of equal rewards may differ in their last bits."""
    return 0 if abs(difference) < 1e-9 else 1 if difference > 0 else -1


@dataclass(frozen=True, slots=True, kw_only=True)
class RankCorrelation:
    """Kendall's tau-b of usefulness and Q over pairs of siblings, all trees together."""

    tau: float | None
    """In [-1, 1]; None where every pair is tied in one of the two."""
    interval: tuple[float, float] | None
    """95 %, over resampled patients; None with fewer than `MIN_PATIENTS`."""
    num_pairs: int
    num_patients: int
    """Patients that have a pair."""


def rank_correlation(trees: Iterable[SiblingPairs]) -> RankCorrelation:
    """Whether usefulness ranks siblings as their values do.

    Only siblings are compared: scores of different states answer different questions. Kendall's
    tau-b, (C - D) / sqrt((P - T_u)(P - T_q)) over P pairs of which C agree, D disagree and T are
    tied in usefulness or in Q; pairs are summed over all trees before the division.

    Args:
        trees: the pairs of each patient.
    """
    counts = np.array([pairs.counts() for pairs in trees if pairs.num_pairs], dtype=float)
    if not len(counts):
        return RankCorrelation(tau=None, interval=None, num_pairs=0, num_patients=0)
    tau = _tau(counts.sum(axis=0)[None])[0]
    interval = None
    if len(counts) >= MIN_PATIENTS:
        draws = np.random.default_rng(0).multinomial(
            len(counts), np.full(len(counts), 1 / len(counts)), size=NUM_RESAMPLES
        )
        resampled = _tau(draws @ counts)
        known = resampled[np.isfinite(resampled)]
        if len(known) >= 0.95 * NUM_RESAMPLES:
            low, high = np.quantile(known, (0.025, 0.975))
            interval = (float(low), float(high))
    return RankCorrelation(
        tau=float(tau) if np.isfinite(tau) else None,
        interval=interval if np.isfinite(tau) else None,
        num_pairs=int(counts.sum()),
        num_patients=len(counts),
    )


def _tau(counts: np.ndarray) -> np.ndarray:
    """Tau-b of rows of counts in the order of `SiblingPairs.counts`, NaN where undefined."""
    agree, disagree, tied_usefulness, tied_value, tied_both = counts.T
    pairs = counts.sum(axis=1)
    untied = (pairs - tied_usefulness - tied_both) * (pairs - tied_value - tied_both)
    return np.divide(
        agree - disagree, np.sqrt(untied), out=np.full(len(counts), np.nan), where=untied > 0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryCounts:
    """How many trajectories patients have; each list has one entry a patient."""

    found: tuple[int, ...]
    """Unique trajectories."""
    readable: tuple[int, ...] | None
    """Of these, the ones with a probability and features; None where the table does not say."""
    kept: tuple[int, ...]
    """Of these, the ones in the SFT set."""

    @property
    def num_without_kept(self) -> int:
        """Patients that the SFT set does not have."""
        return sum(count == 0 for count in self.kept)


def trajectory_counts(rows: Sequence[Mapping[str, Any]]) -> TrajectoryCounts:
    """Trajectories of each patient that has one, patients in the order of the table.

    Args:
        rows: of `search/trajectories.parquet`; an old one may lack `readable`.
    """
    patients = list(dict.fromkeys(str(row["patient_id"]) for row in rows))
    place = {patient: index for index, patient in enumerate(patients)}
    counts = np.zeros((3, len(patients)), dtype=int)
    for row in rows:
        flags = (True, bool(row.get("readable")), bool(row["kept"]))
        counts[:, place[str(row["patient_id"])]] += np.array(flags, dtype=int)
    found, readable, kept = (tuple(line.tolist()) for line in counts)
    is_known = any(row.get("readable") is not None for row in rows)
    return TrajectoryCounts(found=found, readable=readable if is_known else None, kept=kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """One kind of thing that the model did wrong."""

    label: str
    count: int
    of: float | None
    """What the count is a share of; None where the run folder does not tell."""
    what: str
    """The plural of `of`."""

    @property
    def rate(self) -> float | None:
        """Share, or occurrences for each; None without a denominator."""
        return self.count / self.of if self.of else None


MISTAKES = (
    ("invalid_scores", "usefulness score unreadable twice, 50 stands for it", "scores"),
    ("duplicate_questions", "question repeated, dropped", "questions"),
    ("dropped_questions", "no usable question, dropped", "questions"),
    ("cut_questions", "question cut at the token limit", "questions"),
    ("untagged_openings", "step without its opening tag", "questions"),
    ("misnumbered_openings", "step with another step's number", "questions"),
    ("cut_answers", "answer cut at the token limit", "answers"),
    ("empty_answers", "answer empty", "answers"),
    ("non_latin_texts", "mostly in letters that are not Latin", "questions and answers"),
    ("exhausted_expansions", "final forced: no new question came", "expansions"),
    ("context_finals", "final forced: the context was full", "expansions"),
    ("final_retries", "final asked for again", "finals"),
    ("unreadable_finals", "final unreadable twice, floor reward", "finals"),
    ("resample_requests", "request for other questions", "expansions"),
    ("resamples", "request for other questions", "expansions"),
    ("retry_requests", "request that repeats an unreadable one", "requests"),
)
"""Keys of the ledger, what they count, and what each is a share of; `resamples` is the old name of
`resample_requests`."""


def mistakes(ledger: Mapping[str, Any], trees: Sequence[TreeNumbers]) -> list[Mistake]:
    """What the model did wrong, with rates; keys that the ledger lacks are left out.

    Args:
        ledger: `search/ledger.json`.
        trees: the numbers of all trees of the same search; shares of expansions and finals are
            unknown unless there is one for every patient of the ledger.
    """
    of = _denominators(ledger, trees)
    return [
        Mistake(label=label, count=int(count), of=of.get(what), what=what)
        for key, label, what in MISTAKES
        if (count := finite_number(ledger.get(key))) is not None
    ]


def _denominators(ledger: Mapping[str, Any], trees: Sequence[TreeNumbers]) -> dict[str, float]:
    by_kind = ledger.get("requests_by_kind")
    answers = finite_number(by_kind.get("answer")) if isinstance(by_kind, dict) else None
    # every sampled question was scored, a duplicate, or dropped
    sampled = [
        finite_number(ledger.get(key))
        for key in ("scores", "duplicate_questions", "dropped_questions")
    ]
    known: dict[str, float | None] = {
        "scores": sampled[0],
        "questions": sum(value or 0.0 for value in sampled) if None not in sampled else None,
        "answers": answers,
        "requests": finite_number(ledger.get("requests")),
    }
    if sampled[0] is not None and answers is not None:
        known["questions and answers"] = sampled[0] + answers
    if trees and finite_number(ledger.get("patients")) == len(trees):
        known["expansions"] = sum(tree.num_expansions for tree in trees)
        known["finals"] = sum(tree.num_terminals for tree in trees)
    return {name: value for name, value in known.items() if value is not None}
