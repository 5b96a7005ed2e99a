"""Salient features: every member's scores as a table, and C_exp read from it."""

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from ehr.catalogue import AGE_AND_SEX
from ehr.cohorts.cohort import Cohort, record_hash
from ehr.cohorts.truth import true_sets
from ehr.errors import DataError
from ehr.expert.ensemble import candidate_tokens, heaviest_tokens
from ehr.expert.opinions import Opinions, SalienceEnsemble, token_names
from ehr.expert.view import ExpertInput
from ehr.rewards import Salience
from ehr.salience.agreement import best_constant_set, mean_jaccard


def salience_table(
    cohort: Cohort,
    ensembles: Sequence[SalienceEnsemble],
    method: str = "attention",
    ask: Callable[[SalienceEnsemble, Sequence[ExpertInput]], Opinions] | None = None,
) -> pd.DataFrame:
    """Every member's scores of all tokens for every patient of every split, by one method.

    Columns: patient_id, split, ensemble, member, out_of_fold (the member was not trained on the
    patient), feature, score (sums to 1 over a member's features), observed (a feature seen at least
    once; `Age & Sex` always), rank (1 = the member's heaviest token of that patient), method (the
    same in all rows), record (`ehr.cohorts.cohort.record_hash` of what was scored). Features stand
    in schema order.

    Args:
        cohort: the patients.
        ensembles: number 0 first.
        method: by which they score.
        ask: how an ensemble is asked; in this process by default.
    """
    split_of = {patient: split for split, ids in cohort.splits.items() for patient in ids}
    ids = list(split_of)
    records = np.array([record_hash(cohort.cases[patient]) for patient in ids], dtype=np.int64)
    frames: list[pd.DataFrame] = []
    for index, ensemble in enumerate(ensembles):
        inputs = [ensemble.scaler.transform(cohort.cases[patient]) for patient in ids]
        opinions = ensemble.predict(inputs) if ask is None else ask(ensemble, inputs)
        tokens = token_names(ensemble.scaler)
        observed = np.array([candidate_tokens(entry.observed, "observed") for entry in inputs])
        shape = (len(ensemble.plans), len(ids), len(tokens))
        order = np.argsort(-opinions.scores, axis=-1, kind="stable")
        ranks = np.empty(shape, dtype=np.int32)
        np.put_along_axis(ranks, order, np.arange(1, len(tokens) + 1, dtype=np.int32), axis=-1)

        def spread(values: np.ndarray, shape: tuple[int, int, int] = shape) -> np.ndarray:
            return np.broadcast_to(values, shape).ravel()

        numbers = np.array([plan.member for plan in ensemble.plans])
        frames.append(
            pd.DataFrame(
                {
                    "patient_id": spread(np.array(ids, dtype=object)[None, :, None]),
                    "split": spread(np.array(list(split_of.values()), dtype=object)[None, :, None]),
                    "ensemble": index,
                    "member": spread(numbers[:, None, None]),
                    "out_of_fold": spread(~opinions.seen[:, :, None]),
                    "feature": spread(np.array(tokens, dtype=object)),
                    "score": opinions.scores.ravel(),
                    "observed": spread(observed),
                    "rank": ranks.ravel(),
                    "method": method,
                    "record": spread(records[None, :, None]),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def salient_sets(
    table: pd.DataFrame, num_features: int, candidates: str, ensemble: int = 0
) -> dict[str, tuple[str, ...]]:
    """C_exp of every patient in a salience table, heaviest feature first.

    Args:
        table: as `salience_table` makes it.
        num_features: size of C_exp; a patient with fewer candidates has fewer.
        candidates: `observed` or `paper`, as in the expert section.
        ensemble: whose opinion; members that were trained on the patient are left out unless all
            were.
    """
    chosen = table.loc[table["ensemble"] == ensemble]
    has_outsider = chosen.groupby("patient_id", observed=True)["out_of_fold"].transform("any")
    chosen = chosen.loc[chosen["out_of_fold"] | ~has_outsider]
    tokens = list(dict.fromkeys(chosen["feature"]))
    grouped = chosen.groupby(["patient_id", "feature"], sort=False, observed=True)
    scores = grouped["score"].mean().unstack("feature")[tokens]
    observed = grouped["observed"].first().unstack("feature")[tokens].to_numpy(dtype=bool)
    sets: dict[str, tuple[str, ...]] = {}
    for row, patient in enumerate(scores.index):
        allowed = candidate_tokens(observed[row, :-1], candidates)
        order = heaviest_tokens(scores.iloc[row].to_numpy(), allowed)
        sets[str(patient)] = tuple(tokens[token] for token in order[:num_features])
    return sets


def stored_salience(
    table: pd.DataFrame, patient_ids: Collection[str], num_features: int, candidates: str
) -> dict[str, Salience]:
    """C_exp of some patients in a salience table, with the stability of its features.

    Args:
        table: as `salience_table` makes it.
        patient_ids: whom it is about.
        num_features: size of C_exp.
        candidates: `observed` or `paper`, as in the expert section.
    """
    sets = salient_sets(table, num_features, candidates)
    asked = {patient: sets[patient] for patient in patient_ids}
    stability = stability_weights(table, asked, num_features, candidates)
    return {
        patient: Salience(features=frozenset(names), stability=stability[patient])
        for patient, names in asked.items()
    }


def weighed_by_rarity(salience: Mapping[str, Salience]) -> dict[str, Salience]:
    """The same C_exp, each feature weighed by how rarely it is salient among these patients.

    A feature's weight is 1 minus the share of the patients whose C_exp has it, so what holds for
    nearly everybody counts for little and what singles a patient out for much.

    Args:
        salience: of the patients who are learned from.

    Returns:
        For every patient its C_exp, with weights in [0, 1) in place of the stability.
    """
    counts = Counter(itertools.chain.from_iterable(each.features for each in salience.values()))
    weights = {name: 1 - count / len(salience) for name, count in counts.items()}
    return {
        patient: replace(each, stability={name: weights[name] for name in sorted(each.features)})
        for patient, each in salience.items()
    }


def stability_weights(
    table: pd.DataFrame,
    salient: Mapping[str, Sequence[str]],
    num_features: int,
    candidates: str,
    ensemble: int = 0,
) -> dict[str, dict[str, float]]:
    """How many members agree on each salient feature, as a share of them.

    The weight of a feature is the share of the patient's out-of-fold members (all members if all
    saw the patient) that have it among their own `num_features` heaviest candidates. The mean of
    the members can favour a feature that none of them puts there: it counts as half a member, so
    that every feature of C_exp keeps a weight above 0.

    Args:
        table: as `salience_table` makes it.
        salient: C_exp of the patients asked about, as `salient_sets` gives it for this table.
        num_features: size of C_exp and of every member's own choice.
        candidates: `observed` or `paper`, as in the expert section.
        ensemble: whose members vote.

    Returns:
        For every patient in `salient` the weight of each of its features, in (0, 1].

    Raises:
        DataError: if the table lacks a patient.
    """
    chosen = table.loc[table["ensemble"] == ensemble]
    patient, patients = pd.factorize(chosen["patient_id"])
    member, members = pd.factorize(chosen["member"])
    token, tokens = pd.factorize(chosen["feature"])
    row_of = {str(name): row for row, name in enumerate(patients)}
    missing = sorted(salient.keys() - row_of.keys())
    if missing:
        raise DataError(
            f"The salience table has no patients {missing[:5]}. Use the table of the same cohort."
        )
    allowed = np.ones(len(chosen), dtype=bool)
    if candidates == "observed":
        allowed = (chosen["observed"] | (chosen["feature"] == AGE_AND_SEX)).to_numpy(dtype=bool)
    scores = np.full((len(patients), len(members), len(tokens)), -np.inf)
    scores[patient, member, token] = np.where(allowed, chosen["score"], -np.inf)
    outside = np.zeros(scores.shape[:2], dtype=bool)
    outside[patient, member] = chosen["out_of_fold"]
    voters = outside | ~outside.any(axis=1, keepdims=True)
    heaviest = np.argsort(-scores, axis=-1, kind="stable")[..., :num_features]
    votes = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(votes, heaviest, True, axis=-1)
    votes &= np.isfinite(scores) & voters[:, :, None]
    num_voters = voters.sum(axis=1)[:, None]
    weights = np.maximum(votes.sum(axis=1), 0.5) / num_voters
    column_of = {str(name): column for column, name in enumerate(tokens)}
    return {
        name: {feature: float(weights[row_of[name], column_of[feature]]) for feature in features}
        for name, features in salient.items()
    }


def salient_features(
    table: pd.DataFrame, patient_id: str, num_features: int, candidates: str
) -> tuple[str, ...]:
    """C_exp of one patient, by the first ensemble; `salient_sets` gives all at once.

    Raises:
        DataError: if the table does not have the patient.
    """
    rows = table.loc[table["patient_id"] == patient_id]
    if rows.empty:
        raise DataError(
            f"The salience table has no patient {patient_id!r}. Use the table of the same cohort."
        )
    return salient_sets(rows, num_features, candidates)[patient_id]


def true_overlap(
    cohort: Cohort, salient: Mapping[str, Sequence[str]], ids: Sequence[str], size: int
) -> tuple[float, float]:
    """Mean Jaccard of C_exp with a generated cohort's true salient features.

    Args:
        cohort: has its truth.
        salient: C_exp of these patients.
        ids: patients to compare.
        size: of C_exp, of the true sets, and of the best constant set.

    Returns:
        The method's mean Jaccard, and that of the best constant set for everybody.
    """
    truly = true_sets(cohort, ids, size)
    reached = mean_jaccard([salient[patient] for patient in ids], truly)
    return reached, best_constant_set(truly, size)[1]
