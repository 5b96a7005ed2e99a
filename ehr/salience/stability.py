"""How agreement on salient features grows with the number of members behind them.

Attention of one member is mostly noise, and a mean over members is less so. Whether more members
would help, or what they agree on is what everybody has in common, shows when the agreement of two
disjoint ensembles is drawn against their size, beside the levels of chance: permuted patients and
the best constant set, which move with the size too.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from ehr.catalogue import AGE_AND_SEX
from ehr.errors import DataError
from ehr.salience.agreement import Agreement, agreement_of_tables

MOST_CHOICES = 3
"""Choices of pairs that are averaged at each size: a single one is a noisy point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StabilityPoint:
    """Agreement of two disjoint ensembles of one size."""

    num_members: int
    """Members of each ensemble, of which half saw a training patient."""
    num_choices: int
    """Choices of that many members behind the means."""
    agreement: Agreement
    """Means over the choices; kappa is that of the means."""
    jaccard_low: float
    """Smallest J of a choice."""
    jaccard_high: float
    """Largest J of a choice."""


def stability_curve(
    table: pd.DataFrame, num_features: int, candidates: str, split: str = "train"
) -> list[StabilityPoint]:
    """Agreement of the first two ensembles with 1, 2, ... all of their pairs of members.

    With p of n pairs, up to `MOST_CHOICES` choices are averaged: p pairs that follow each other in
    the order of their numbers, round and round, the same numbers in both ensembles. So each pair
    counts about equally often; with all pairs there is one choice, and the point is what
    `ehr.salience.agreement.agreement` says of `ehr.salience.table.salient_sets`. A patient's scores
    are the mean over the chosen members that did not see it; over all chosen ones if all did.

    Args:
        table: as `ehr.salience.table.salience_table` makes it.
        num_features: size of a patient's salient set, and of the best constant set.
        candidates: `observed` or `paper`, as in the expert section.
        split: whose patients; of `train` the scores are out of fold.

    Returns:
        One point a size, smallest first; none if there is one ensemble only, or no such patient.

    Raises:
        DataError: if a member's score of a patient is missing.
    """
    chosen = table.loc[(table["split"] == split) & (table["ensemble"] < 2)]
    if chosen["ensemble"].nunique() < 2:
        return []
    patients = tuple(pd.unique(chosen["patient_id"]))
    tokens = tuple(pd.unique(chosen["feature"]))
    first, second = (
        _Ensemble.read(chosen.loc[chosen["ensemble"] == number], patients, tokens, candidates)
        for number in (0, 1)
    )
    pairs = [ensemble.pairs() for ensemble in (first, second)]
    num_pairs = min(map(len, pairs))
    points: list[StabilityPoint] = []
    for size in range(1, num_pairs + 1):
        num_choices = 1 if size == num_pairs else min(num_pairs, MOST_CHOICES)
        measured: list[Agreement] = []
        num_members = 0
        for choice in range(num_choices):
            start = choice * num_pairs // num_choices
            members = [
                [row for step in range(size) for row in part[(start + step) % num_pairs]]
                for part in pairs
            ]
            num_members = len(members[0])
            measured.append(
                agreement_of_tables(
                    first.salient(members[0], num_features),
                    second.salient(members[1], num_features),
                    num_features,
                )
            )
        points.append(_mean_point(num_members, measured))
    return points


def _mean_point(num_members: int, measured: list[Agreement]) -> StabilityPoint:
    observed = float(np.mean([each.jaccard for each in measured]))
    levels = [each.jaccard_permuted for each in measured if each.jaccard_permuted is not None]
    permuted = float(np.mean(levels)) if levels else None
    kappa = None
    if permuted is not None and permuted < 1:
        kappa = (observed - permuted) / (1 - permuted)
    return StabilityPoint(
        num_members=num_members,
        num_choices=len(measured),
        agreement=Agreement(
            jaccard=observed,
            jaccard_permuted=permuted,
            jaccard_constant=float(np.mean([each.jaccard_constant for each in measured])),
            kappa=kappa,
            num_patients=measured[0].num_patients,
        ),
        jaccard_low=min(each.jaccard for each in measured),
        jaccard_high=max(each.jaccard for each in measured),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Ensemble:
    """One ensemble's part of a salience table as arrays; tokens in the table's order."""

    members: list[int]
    scores: Float[np.ndarray, "members patients tokens"]
    outside: Bool[np.ndarray, "members patients"]
    allowed: Bool[np.ndarray, "patients tokens"]

    @classmethod
    def read(
        cls,
        table: pd.DataFrame,
        patients: tuple[str, ...],
        tokens: tuple[str, ...],
        candidates: str,
    ) -> "_Ensemble":
        patient = pd.Categorical(table["patient_id"], categories=patients).codes
        token = pd.Categorical(table["feature"], categories=tokens).codes
        member, members = pd.factorize(table["member"], sort=True)
        scores = np.full((len(members), len(patients), len(tokens)), np.nan)
        scores[member, patient, token] = table["score"].to_numpy(dtype=float)
        if not np.isfinite(scores).all():
            at = np.argwhere(~np.isfinite(scores))[0]
            raise DataError(
                "A salience table must have a finite score of every member for every patient and "
                f"feature, but member {members[at[0]]} has none of {tokens[at[2]]!r} for patient "
                f"{patients[at[1]]!r}. Run the expert stage again (--redo expert)."
            )
        outside = np.zeros(scores.shape[:2], dtype=bool)
        outside[member, patient] = table["out_of_fold"].to_numpy(dtype=bool)
        allowed = np.ones(scores.shape[1:], dtype=bool)
        if candidates == "observed":
            is_known = (table["observed"] | (table["feature"] == AGE_AND_SEX)).to_numpy(dtype=bool)
            allowed[patient, token] = is_known
        return cls(
            members=[int(number) for number in members],
            scores=scores,
            outside=outside,
            allowed=allowed,
        )

    def pairs(self) -> list[list[int]]:
        """Rows of the members of each pair: numbers 2k and 2k + 1 share a split into halves."""
        rows: dict[int, list[int]] = {}
        for row, number in enumerate(self.members):
            rows.setdefault(number // 2, []).append(row)
        return list(rows.values())

    def salient(self, rows: list[int], num_features: int) -> Bool[np.ndarray, "patients tokens"]:
        """Each patient's salient set by these members, as `salient_sets` chooses it."""
        outside = self.outside[rows]
        weights = (outside | ~outside.any(axis=0)).astype(np.float64)
        means = np.einsum("mpt,mp->pt", self.scores[rows], weights)
        means = np.where(self.allowed, means, -np.inf)  # dividing by the number orders nothing
        heaviest = np.argsort(-means, axis=1, kind="stable")[:, :num_features]
        chosen = np.zeros(means.shape, dtype=bool)
        np.put_along_axis(chosen, heaviest, True, axis=1)
        return chosen & self.allowed
