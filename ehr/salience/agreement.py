"""How much two selections of salient features agree, corrected for chance.

Plain Jaccard misleads: features that matter for everybody make any two selections agree. So the
mean Jaccard stands beside what permuted patients reach and what one constant set reaches.
"""

from collections.abc import Collection, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import combinations, islice
from math import comb

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from ehr.errors import DataError
from ehr.rewards import MAX_FEATURE_NAMES

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ExcessJaccard:
    """Agreement with the salient features beyond what one constant answer reaches."""

    jaccard: float
    constant: float
    """Mean Jaccard of the best constant set on the same patients."""
    excess: float


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
    _check_paired(first, second)
    names = sorted(set().union(*first, *second))
    return agreement_of_tables(_membership(first, names), _membership(second, names), size)


def agreement_of_tables(
    first: Bool[np.ndarray, "patients names"], second: Bool[np.ndarray, "patients names"], size: int
) -> Agreement:
    """Chance-corrected agreement of two selections that are given as tables of membership.

    Args:
        first: which of the names each patient's set holds.
        second: the other selection, same patients and names in the same order.
        size: number of features of the constant set that both are compared with.

    Raises:
        DataError: if there is no patient, or the tables differ in patients.
    """
    _check_paired(first, second)
    observed = float(_jaccard_of_pairs(first, second).mean())
    permuted = _jaccard_of_others(first, second)
    constants = [_best_constant(table, size)[1] for table in (first, second)]
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


def jaccard_above_others(
    answers: Sequence[Sequence[Collection[str]]],
    salient: Sequence[Collection[str]],
    weights: Float[np.ndarray, "rows patients"],
) -> Float[np.ndarray, " rows"]:
    """How much more sets overlap with what is named of their own patient than of others.

    J - J_perm, as the mean of J(j, j) - J(i, j) over all ordered pairs of different patients, where
    J(i, j) takes the names said of i and the set of j. A resample weighs both patients of a pair,
    and a patient drawn twice is no other patient to itself. One set of names for everybody, however
    good, has exactly 0 in every resample; names drawn anew for each patient have it in expectation.

    Args:
        answers: for each answer, one set of names per patient; J is the mean over the answers.
        salient: the other selection's sets, same patients in the same order.
        weights: times each patient counts; a row of ones is the value itself.

    Returns:
        A value per row of weights; NaN where a row has fewer than two different patients.

    Raises:
        DataError: if there is no patient or no answer, or the lists differ in length.
    """
    if not answers:
        raise DataError("Overlaps need at least one answer a patient, got none.")
    for each in answers:
        _check_paired(each, salient)
    names = sorted(set().union(*salient, *(names for each in answers for names in each)))
    rows = [_membership(each, names).astype(float) for each in answers]
    columns = _membership(salient, names).astype(float)
    own = np.add.reduce([_jaccard_of_pairs(each > 0, columns > 0) for each in rows]) / len(rows)
    total = np.zeros(len(weights))
    for start in range(0, len(columns), _BLOCK):
        block = slice(start, start + _BLOCK)
        others = np.zeros((len(columns[block]), len(columns)))
        for each in rows:
            others += _jaccard_table(each[block], columns)
        others /= len(rows)
        total += (weights[:, block] * (weights @ (own - others).T)).sum(axis=1)
    num_pairs = weights.sum(axis=1) ** 2 - np.square(weights).sum(axis=1)
    return np.divide(total, num_pairs, out=np.full(len(total), np.nan), where=num_pairs > 0)


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
    columns, mean = _best_constant(_membership(sets, names), size)
    return frozenset(names[column] for column in columns), mean


def excess_jaccard(
    predicted: Sequence[Collection[str]], salient: Sequence[Collection[str]], size: int
) -> ExcessJaccard:
    """Mean Jaccard of predicted and salient features beyond the best constant set's.

    The constant set has any number of names up to what the method gave: with five salient features
    a constant answer of eight can overlap more than the best one of five, and one of three more
    where the features beside them vary. So no constant answer has a positive excess.

    Args:
        predicted: names that a method gave for each patient (may be empty).
        salient: the patients' salient features, same order.
        size: names of the largest constant set at least.
    """
    reached = mean_jaccard(predicted, salient)
    # An answer with more names is a format failure.
    most = min(max(size, *map(len, predicted)), max(size, MAX_FEATURE_NAMES))
    constant = max(best_constant_set(salient, num)[1] for num in range(1, most + 1))
    return ExcessJaccard(jaccard=reached, constant=constant, excess=reached - constant)


def _best_constant(
    table: Bool[np.ndarray, "patients names"], size: int
) -> tuple[tuple[int, ...], float]:
    """Columns of the best constant set, and its mean Jaccard."""
    used = np.flatnonzero(table.any(axis=0))
    if not len(used):
        return (), 0.0
    frequency = table.sum(axis=0)
    by_frequency = sorted((int(column) for column in used), key=lambda c: (-frequency[c], c))
    size = min(size, len(used))
    pool_size = size
    while pool_size < len(used) and comb(pool_size + 1, size) <= MOST_CONSTANT_SETS:
        pool_size += 1
    pool = by_frequency[:pool_size]
    # A patient's other names count, but which they are does not.
    sizes = table.sum(axis=1)
    inside, counts = _distinct(np.column_stack([sizes, table[:, pool]]))
    shares = (counts / len(table)).astype(np.float32)
    best: tuple[int, ...] = ()
    best_mean = -1.0
    for block in _blocks(combinations(range(pool_size), size)):
        candidates = np.zeros((len(block), pool_size), dtype=np.float32)
        candidates[np.arange(len(block))[:, None], np.array(block)] = 1
        means = _quotients(candidates, inside[:, 1:], candidates.sum(axis=1), inside[:, 0]) @ shares
        leader = int(means.argmax())
        if means[leader] > best_mean:
            best = tuple(pool[index] for index in block[leader])
            best_mean = float(means[leader])
    chosen = np.isin(np.arange(table.shape[1]), best)
    everybody = np.broadcast_to(chosen, table.shape)
    return best, float(_jaccard_of_pairs(table, everybody).mean())


def _check_paired(first: Sized, second: Sized) -> None:
    if len(first) != len(second) or not len(first):
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


def _distinct(
    rows: Shaped[np.ndarray, "patients columns"],
) -> tuple[Float[np.ndarray, "distinct columns"], Int[np.ndarray, " distinct"]]:
    """The different rows of a table of small counts, and how often each occurs."""
    distinct, counts = np.unique(rows.astype(np.uint16), axis=0, return_counts=True)
    return distinct.astype(np.float32), counts


def _quotients(
    first: Float[np.ndarray, "rows names"],
    second: Float[np.ndarray, "columns names"],
    first_sizes: Float[np.ndarray, " rows"],
    second_sizes: Float[np.ndarray, " columns"],
) -> Float[np.ndarray, "rows columns"]:
    """Jaccard index of every row with every column; 0 if both are empty.

    Float32 is enough: counts are exact in it, and the memory decides the time.
    """
    shared = first @ second.T
    union = first_sizes[:, None] + second_sizes - shared
    np.maximum(union, 1, out=union)
    return np.divide(shared, union, out=shared)


def _jaccard_table(
    first: Float[np.ndarray, "rows names"], second: Float[np.ndarray, "columns names"]
) -> Float[np.ndarray, "rows columns"]:
    return _quotients(first, second, first.sum(axis=1), second.sum(axis=1))


def _jaccard_of_others(
    first: Bool[np.ndarray, "patients names"], second: Bool[np.ndarray, "patients names"]
) -> float | None:
    """Mean over all ordered pairs of different patients: the expectation over derangements."""
    num_patients = len(first)
    if num_patients < 2:
        return None
    rows, row_counts = _distinct(first)
    total = float(row_counts @ _sums_with(rows, second))
    own = _jaccard_of_pairs(first, second).sum()
    return float((total - own) / (num_patients * (num_patients - 1)))


def _sums_with(
    rows: Shaped[np.ndarray, "rows names"], sets: Bool[np.ndarray, "patients names"]
) -> Float[np.ndarray, " rows"]:
    """Sum of each row's Jaccard indices with all patients' sets."""
    columns, counts = _distinct(sets)
    sums = np.empty(len(rows))
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK].astype(np.float32)
        table = _quotients(block, columns, block.sum(axis=1), columns.sum(axis=1))
        sums[start : start + _BLOCK] = table @ counts
    return sums


def _jaccard_of_pairs(
    first: Bool[np.ndarray, "patients names"], second: Bool[np.ndarray, "patients names"]
) -> Float[np.ndarray, " patients"]:
    """Jaccard index of the two sets of each patient; 0 if both are empty."""
    union = (first | second).sum(axis=1)
    return (first & second).sum(axis=1) / np.maximum(union, 1)


def _blocks(items: Iterator[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    while block := list(islice(items, _BLOCK)):
        yield block
