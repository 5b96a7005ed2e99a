"""How much two selections of salient features agree, corrected for chance.

Plain Jaccard misleads: features that matter for everybody make any two selections agree. So the
mean Jaccard stands beside what permuted patients reach and what one constant set reaches.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from math import comb

import numpy as np
from jaxtyping import Bool, Float

from ehr.errors import DataError

MOST_CONSTANT_SETS = 10_000
"""Candidates that the search for the best constant set tries: all 5-subsets of 18 features."""

_BLOCK = 1024
"""Rows of a pairwise table computed at once, to bound memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Agreement of two selections for the same patients."""

    jaccard: float
    """J: mean Jaccard of the two sets of each patient."""
    jaccard_permuted: float | None
    """Mean Jaccard of sets of different patients (all pairs); null for a single patient."""
    jaccard_constant: float
    """Mean Jaccard of the best constant set, averaged over the two selections."""
    kappa: float | None
    """(J - J_perm) / (1 - J_perm); null where chance alone already agrees fully."""
    num_patients: int


def jaccard(first: Collection[str], second: Collection[str]) -> float:
    """Jaccard index of two sets of names; 0 if both are empty."""
    union = set(first) | set(second)
    return len(set(first) & set(second)) / len(union) if union else 0.0


def mean_jaccard(first: Sequence[Collection[str]], second: Sequence[Collection[str]]) -> float:
    """Mean Jaccard of the two sets of each patient, in the same order.

    Raises:
        DataError: if there is no patient, or the lists differ in length.
    """
    _check_paired(first, second)
    return float(np.mean([jaccard(a, b) for a, b in zip(first, second, strict=True)]))


def agreement(
    first: Sequence[Collection[str]], second: Sequence[Collection[str]], size: int
) -> Agreement:
    """Chance-corrected agreement of two selections for the same patients.

    Args:
        first: one set of names per patient.
        second: the other selection's sets, same patients in the same order.
        size: number of features of the constant set that both are compared with.

    Raises:
        DataError: if there is no patient, or the lists differ in length.
    """
    observed = mean_jaccard(first, second)
    names = sorted(set().union(*first, *second))
    permuted = _jaccard_of_others(_membership(first, names), _membership(second, names))
    constants = [best_constant_set(sets, size)[1] for sets in (first, second)]
    kappa = None
    if permuted is not None and permuted < 1:
        kappa = (observed - permuted) / (1 - permuted)
    return Agreement(
        jaccard=observed,
        jaccard_permuted=permuted,
        jaccard_constant=float(np.mean(constants)),
        kappa=kappa,
        num_patients=len(first),
    )


def best_constant_set(sets: Sequence[Collection[str]], size: int) -> tuple[frozenset[str], float]:
    """The set of `size` names with the largest mean Jaccard to all `sets`, and that mean.

    The search is exhaustive over the most frequent names, as many as give at most
    `MOST_CONSTANT_SETS` candidates; fewer names than `size` are all taken.

    Raises:
        DataError: if `sets` is empty.
    """
    if not sets:
        raise DataError("A best constant set needs at least one patient, got none.")
    names = sorted(set().union(*sets))
    if not names:
        return frozenset(), 0.0
    table = _membership(sets, names)
    by_frequency = sorted(range(len(names)), key=lambda column: (-table[:, column].sum(), column))
    size = min(size, len(names))
    pool_size = size
    while pool_size < len(names) and comb(pool_size + 1, size) <= MOST_CONSTANT_SETS:
        pool_size += 1
    distinct, counts = np.unique(table, axis=0, return_counts=True)
    best: tuple[int, ...] = ()
    best_mean = -1.0
    for block in _blocks(combinations(by_frequency[:pool_size], size)):
        candidates = np.zeros((len(block), len(names)), dtype=bool)
        candidates[np.arange(len(block))[:, None], np.array(block)] = True
        means = _pairwise_jaccard(candidates, distinct) @ counts / len(sets)
        leader = int(means.argmax())
        if means[leader] > best_mean:
            best, best_mean = block[leader], float(means[leader])
    return frozenset(names[column] for column in best), best_mean


def _check_paired(first: Sequence[object], second: Sequence[object]) -> None:
    if len(first) != len(second) or not first:
        raise DataError(
            f"Two selections for the same patients are needed, got {len(first)} and {len(second)} "
            "sets. Pass one set per patient, in the same order."
        )


def _membership(
    sets: Sequence[Collection[str]], names: Sequence[str]
) -> Bool[np.ndarray, "patients names"]:
    column = {name: index for index, name in enumerate(names)}
    table = np.zeros((len(sets), len(names)), dtype=bool)
    for row, members in enumerate(sets):
        table[row, [column[name] for name in members]] = True
    return table


def _pairwise_jaccard(
    first: Bool[np.ndarray, "rows names"], second: Bool[np.ndarray, "columns names"]
) -> Float[np.ndarray, "rows columns"]:
    intersection = first.astype(np.float32) @ second.T.astype(np.float32)
    union = first.sum(1)[:, None] + second.sum(1)[None, :] - intersection
    return np.divide(intersection, union, out=np.zeros(union.shape), where=union > 0)


def _jaccard_of_others(
    first: Bool[np.ndarray, "patients names"], second: Bool[np.ndarray, "patients names"]
) -> float | None:
    """Mean over all ordered pairs of different patients: the expectation over derangements."""
    num_patients = len(first)
    if num_patients < 2:
        return None
    total = 0.0
    for start in range(0, num_patients, _BLOCK):
        table = _pairwise_jaccard(first[start : start + _BLOCK], second)
        total += table.sum() - table.diagonal(offset=start).sum()
    return float(total / (num_patients * (num_patients - 1)))


def _blocks(items: Iterator[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    while block := list(islice(items, _BLOCK)):
        yield block
