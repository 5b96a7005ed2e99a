"""From answers to the result table: predictions, metrics with intervals, paired differences.

A language model's unreadable answer is never silently 0.5: it is counted, and for ranking it
stands at the training split's base rate.
"""

from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from ehr import tables
from ehr.answers.grounding import grounding_error_rate
from ehr.language.json_answer import json_reasoning_of
from ehr.language.trajectory import (
    reasoning_of,
)
from ehr.metrics import Metric, paired_difference, performance
from ehr.salience.agreement import excess_jaccard
from ehr.seeds import holm
from training.evaluation.methods import RECORD_METHODS
from training.evaluation.predictions import reading_of

_PROSE: dict[str, Callable[[str], str]] = {
    "question_decomposition": reasoning_of,
    "think_then_answer": reasoning_of,
    "think_then_answer_json": json_reasoning_of,
}
"""Reads the sentences to check, of the prompt kinds whose answers have some."""


def unreadable_shares(predictions: pd.DataFrame) -> Float[np.ndarray, " patients"]:
    """Share of each patient's answers that could not be read: their mean is that of all answers."""
    failed = predictions["parse_failed"].to_numpy(float)
    if "sample_failed" not in predictions:
        return failed
    samples = predictions["sample_failed"]
    return np.array(
        [
            whole if each is None or np.ndim(each) == 0 else np.mean(each)
            for whole, each in zip(failed, samples, strict=True)
        ]
    )


def readable_probability(answer: Mapping[str, Any]) -> float | None:
    """Mean over a patient's answers that could be read, which is what was said; None without one.

    Args:
        answer: a row of `AnswerParser.rows`.
    """
    if answer["parse_failed"]:
        return None
    pairs = zip(answer["sample_probabilities"], answer["sample_failed"], strict=True)
    return fmean(probability for probability, is_unreadable in pairs if not is_unreadable)


def result_rows(
    predictions: pd.DataFrame,
    num_salient_features: int,
    num_resamples: int,
    seed: int,
    faithfulness: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """One row a method, in order of appearance: metrics, intervals, failures, R_att, grounding.

    Args:
        predictions: of all methods, with `PREDICTION_COLUMNS`.
        num_salient_features: size of the constant set behind the excess.
        num_resamples: bootstrap resamples of patients.
        seed: of the resamples.
        faithfulness: summary of the methods whose named features were tested, else null.
    """
    rows = []
    asked = _asked_patients(predictions)
    for method, table in predictions.groupby("method", sort=False):
        labels = table["label"].to_numpy(int)
        probabilities = table["probability"].to_numpy(float)
        row: dict[str, Any] = {
            "method": method,
            **performance(labels, probabilities, num_resamples, seed),
            "parse_failure_rate": float(unreadable_shares(table).mean()),
            "reward_att": None,
            "reward_att_constant": None,
            "reward_att_excess": None,
            **_grounding(table),
            "faithfulness": (faithfulness or {}).get(str(method)),
        }
        if method not in RECORD_METHODS:
            row["reading"] = reading_of(table)
        named = tables.rows(table, table["reward_att"].notna())
        if len(named):
            excess = excess_jaccard(*_named_and_salient(named), num_salient_features)
            row |= {
                "reward_att": excess.jaccard,
                "reward_att_constant": excess.constant,
                "reward_att_excess": excess.excess,
            }
        if method in RECORD_METHODS and asked and len(asked) < len(table):
            same = tables.rows(table, table["patient_id"].isin(list(asked)))
            row["same_patients"] = performance(
                same["label"].to_numpy(int),
                same["probability"].to_numpy(float),
                num_resamples,
                seed,
            )
        rows.append(row)
    return rows


def difference_rows(
    predictions: pd.DataFrame, reference: str, num_resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Paired differences `reference` minus each other method, on the patients both answered.

    `minimal_detectable` is the smallest true difference that so many patients would show. `p` is
    of each difference alone, `p_holm` adjusted for all rows that are returned.
    """
    tables = {
        method: table.set_index("patient_id") for method, table in predictions.groupby("method")
    }
    if reference not in tables:
        return []
    rows = []
    ours = tables[reference]
    for method in predictions["method"].unique():
        if method == reference:
            continue
        patients = [patient for patient in ours.index if patient in tables[method].index]
        if not patients:
            continue
        labels = ours.loc[patients, "label"].to_numpy(int)
        for metric in (Metric.AUROC, Metric.AUPRC):
            found = paired_difference(
                labels,
                ours.loc[patients, "probability"].to_numpy(float),
                tables[method].loc[patients, "probability"].to_numpy(float),
                metric,
                num_resamples,
                seed,
            )
            rows.append(
                {
                    "method": reference,
                    "minus": method,
                    "metric": str(metric),
                    "difference": found.difference,
                    "low": found.low,
                    "high": found.high,
                    "minimal_detectable": found.minimal_detectable,
                    "p": found.p,
                    "n": len(patients),
                }
            )
    adjusted = holm([row["p"] for row in rows])
    return [{**row, "p_holm": p} for row, p in zip(rows, adjusted, strict=True)]


def _grounding(table: pd.DataFrame) -> dict[str, Any]:
    """Checked and wrong claims of one method's answers; None where its answers have no prose."""
    answers = tables.rows(table, table["num_claims"].notna())
    if not len(answers):
        return {
            "grounding_error_rate": None,
            "num_checked_claims": None,
            "num_wrong_claims": None,
            "num_unsupported_numbers": None,
        }
    checked = int(tables.column(answers, "num_claims").sum())
    wrong = sum(len(claims) for claims in answers["wrong_claims"])
    return {
        "grounding_error_rate": grounding_error_rate(wrong, checked),
        "num_checked_claims": checked,
        "num_wrong_claims": wrong,
        "num_unsupported_numbers": sum(len(found) for found in answers["unsupported_numbers"]),
    }


def _named_and_salient(
    table: pd.DataFrame,
) -> tuple[list[frozenset[str]], list[frozenset[str]]]:
    """Named and salient features of every answer: a patient's own set stands beside each."""
    if "sample_features" not in table or np.any(table["sample_features"].isna()):
        every = [[names] for names in table["features"]]
    else:
        every = list(table["sample_features"])
    pairs = [
        (frozenset(names), frozenset(salient))
        for answers, salient in zip(every, table["salient"], strict=True)
        for names in answers
    ]
    return [named for named, _ in pairs], [salient for _, salient in pairs]


def _asked_patients(predictions: pd.DataFrame) -> set[str]:
    language_model = predictions[~predictions["method"].isin(RECORD_METHODS)]
    return set(language_model["patient_id"])
