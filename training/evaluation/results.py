"""From answers to the result table: predictions, metrics with intervals, paired differences.

A language model's unreadable answer is never silently 0.5: it is counted, and for ranking it
stands at the training split's base rate.
"""
# pandas annotates results of indexing too widely for the checker.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from ehr.answers.grounding import GroundingChecker, grounding_error_rate
from ehr.catalogue.names import FeatureMatcher
from ehr.cohorts.cohort import Cohort, PatientCase
from ehr.language.json_answer import json_reasoning_of, parse_think_json
from ehr.language.trajectory import (
    ParsedTrajectory,
    parse_think,
    parse_trajectory,
    parse_vanilla,
    reasoning_of,
)
from ehr.metrics import Metric, paired_difference, performance
from ehr.rewards import MAX_FEATURE_NAMES, attention_reward
from ehr.salience.agreement import excess_jaccard
from ehr.seeds import holm

EXPERT_METHODS = ("concare", "logistic_regression", "gradient_boosting")
"""Rows of models that read the record itself; they need no language model."""

RECORD_METHODS = (
    *EXPERT_METHODS,
    "logistic_regression_shared",
    "gradient_boosting_shared",
)
"""With those that only another test cohort has (`ehr.expert.transfer`)."""

OTHER_COHORT_FILE = "other_cohort.json"
"""In RUN/evaluate: result rows on `evaluate.other_cohort`, and the map that models of the record
answered through."""

PREDICTION_COLUMNS = (
    "method",
    "patient_id",
    "label",
    "probability",
    "parse_failed",
    "text",
    "features",
    "salient",
    "reward_att",
    "num_claims",
    "wrong_claims",
    "unsupported_numbers",
)
"""The last three say how the answer's prose agrees with the record (`ehr.answers.grounding`)."""

SAMPLE_COLUMNS = ("sample_probabilities", "sample_failed", "sample_features")
"""Of each sampled answer: its probability (the base rate if unreadable), whether it is unreadable,
and the names in it (none if unreadable). Tables of language models have them beside
`PREDICTION_COLUMNS`, whose text, features, R_att and claims are those of the first answer."""

_PARSERS: dict[str, Callable[[str], ParsedTrajectory]] = {
    "vanilla": parse_vanilla,
    "think_then_answer": parse_think,
    "think_then_answer_json": parse_think_json,
    "question_decomposition": parse_trajectory,
    "short_answer": parse_trajectory,
}

NAMING_KINDS = ("question_decomposition", "short_answer")
"""Prompt kinds whose answers name important features."""

_PROSE: dict[str, Callable[[str], str]] = {
    "question_decomposition": reasoning_of,
    "think_then_answer": reasoning_of,
    "think_then_answer_json": json_reasoning_of,
}
"""Reads the sentences to check, of the prompt kinds whose answers have some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a language model answered about patients."""

    kind: str
    """Prompt kind that the answers reply to."""
    texts: Mapping[str, tuple[str, bool]]
    """Text of each patient's (first) answer, and whether it was cut off."""
    more: Mapping[str, tuple[tuple[str, bool], ...]] = field(default_factory=dict)
    """The other samples of each patient, where `evaluate.num_samples` asks for some."""
    shown: Mapping[str, PatientCase]
    """What each prompt showed of its patient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerReader:
    """Reads language model answers of one cohort into prediction rows."""

    cohort: Cohort
    matcher: FeatureMatcher
    salient: Mapping[str, frozenset[str]] | None
    """C_exp of each test patient; None where no expert was trained on the cohort."""
    trained_on: Cohort | None = None
    """Whose training split gives the base rate; None = the cohort itself."""

    @property
    def base_rate(self) -> float:
        """Share of positives in the training split."""
        cohort = self.trained_on or self.cohort
        train = cohort.splits["train"]
        return sum(cohort.labels[patient] for patient in train) / len(train)

    def rows(self, method: str, answers: Answers) -> pd.DataFrame:
        """Prediction rows of one method; its probability is the mean over a patient's samples.

        An unreadable sample stands in that mean at the base rate. The patient counts as failed only
        if no sample could be read; how many could not is in `sample_failed`.

        Args:
            method: name of the row in the result table.
            answers: of the language model.
        """
        checker = GroundingChecker(self.cohort.features, self.matcher)
        rows = []
        for patient, (text, truncated) in answers.texts.items():
            samples = [
                _read(answers.kind, *sample)
                for sample in ((text, truncated), *answers.more.get(patient, ()))
            ]
            failed = [is_unreadable for _, is_unreadable in samples]
            probabilities = [
                self.base_rate if each.probability is None or is_unreadable else each.probability
                for each, is_unreadable in samples
            ]
            names = [
                frozenset() if is_unreadable else self.matcher.canonical_set(each.features)
                for each, is_unreadable in samples
            ]
            salient = None if self.salient is None else self.salient[patient]
            is_rewarded = salient is not None and answers.kind in NAMING_KINDS
            has_prose = answers.kind in _PROSE
            prose = _PROSE.get(answers.kind, reasoning_of)(text)
            grounding = checker.check(prose, answers.shown[patient])
            rows.append(
                {
                    "method": method,
                    "patient_id": patient,
                    "label": self.cohort.labels[patient],
                    "probability": fmean(probabilities),
                    "parse_failed": all(failed),
                    "text": text,
                    "features": sorted(names[0]),
                    "salient": None if salient is None else sorted(salient),
                    "reward_att": attention_reward(names[0], salient) if is_rewarded else None,
                    "num_claims": len(grounding.claims) if has_prose else None,
                    "wrong_claims": [
                        f"{checked.claim.text}: {checked.problem}" for checked in grounding.wrong
                    ],
                    "unsupported_numbers": list(grounding.unsupported_numbers),
                    "sample_probabilities": probabilities,
                    "sample_failed": failed,
                    "sample_features": [sorted(each) for each in names],
                }
            )
        return pd.DataFrame(rows, columns=[*PREDICTION_COLUMNS, *SAMPLE_COLUMNS])


def _read(kind: str, text: str, truncated: bool) -> tuple[ParsedTrajectory, bool]:
    """An answer, and whether it counts as unreadable."""
    parsed = _PARSERS[kind](text)
    too_many = len(parsed.features) > MAX_FEATURE_NAMES
    return parsed, truncated or parsed.probability is None or too_many


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
        answer: a row of `AnswerReader.rows`.
    """
    if answer["parse_failed"]:
        return None
    pairs = zip(answer["sample_probabilities"], answer["sample_failed"], strict=True)
    return fmean(probability for probability, is_unreadable in pairs if not is_unreadable)


def expert_rows(method: str, predictions: pd.DataFrame) -> pd.DataFrame:
    """Prediction rows of a model that reads the record, from the expert stage."""
    found = predictions[(predictions["method"] == method) & (predictions["split"] == "test")]
    return record_rows(method, found["patient_id"], found["label"], found["probability"])


def record_rows(
    method: str, patient_ids: Sequence[str], labels: Sequence[int], risks: Sequence[float]
) -> pd.DataFrame:
    """Prediction rows of a model that reads the record: it writes no text and names no feature."""
    return pd.DataFrame(
        {
            "method": method,
            "patient_id": pd.Series(patient_ids).astype(str),
            "label": pd.Series(labels).astype(int),
            "probability": pd.Series(risks).astype(float),
            "parse_failed": False,
            "text": None,
            "features": None,
            "salient": None,
            "reward_att": None,
            "num_claims": None,
            "wrong_claims": None,
            "unsupported_numbers": None,
        },
        columns=list(PREDICTION_COLUMNS),
    )


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
        named = table[table["reward_att"].notna()]
        if len(named):
            excess = excess_jaccard(*_named_and_salient(named), num_salient_features)
            row |= {
                "reward_att": excess.jaccard,
                "reward_att_constant": excess.constant,
                "reward_att_excess": excess.excess,
            }
        if method in RECORD_METHODS and asked and len(asked) < len(table):
            same = table[table["patient_id"].isin(asked)]
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
    answers = table[table["num_claims"].notna()]
    if not len(answers):
        return {
            "grounding_error_rate": None,
            "num_checked_claims": None,
            "num_wrong_claims": None,
            "num_unsupported_numbers": None,
        }
    checked = int(answers["num_claims"].sum())
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


def concatenate(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """All prediction rows, in the order given."""
    return pd.concat([table for table in tables if len(table)], ignore_index=True)
