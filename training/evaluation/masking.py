"""Asks again about masked records, and reads what the answers say about named features.

Pure but for the answers, which come from a function; `ehr.answers.faithfulness` has the method.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd

from ehr.answers.faithfulness import (
    MaskedPair,
    MaskedProbabilities,
    Unjudged,
    choose_pair,
    faithfulness,
)
from ehr.cohorts.cohort import PatientCase
from training.evaluation.answers import AnswerParser, Answers
from training.evaluation.results import readable_probability

MASKED_COLUMNS = (
    "method",
    "patient_id",
    "named",
    "unnamed",
    "num_named_values",
    "num_unnamed_values",
    "original",
    "without_named",
    "without_unnamed",
    "text_without_named",
    "text_without_unnamed",
    "unjudged",
)
"""Of `evaluate/faithfulness.parquet`: probabilities and texts, or why there are none."""

AskCases = Callable[[Mapping[str, PatientCase]], Answers]
"""Asks about changed records of some patients as the original answers were asked for."""


def masked_rows(
    reader: AnswerParser,
    original: pd.DataFrame,
    shown: Mapping[str, PatientCase],
    ask: AskCases,
    seed: int,
) -> pd.DataFrame:
    """One row a patient: the answers without a named and without an unnamed feature.

    Args:
        reader: reads answers of the cohort.
        original: prediction rows of one method, as `AnswerParser.rows` makes them.
        shown: what the original prompt showed of each patient to ask about again.
        ask: asked twice, for all patients together; not at all if no answer can be tested.
        seed: of the choice of features.
    """
    answers = original.set_index("patient_id")
    rows: dict[str, dict[str, Any]] = {}
    pairs: dict[str, MaskedPair] = {}
    for patient, case in shown.items():
        answer = answers.loc[patient]
        pair = Unjudged.UNREADABLE_ANSWER
        if not answer["sample_failed"][0]:  # the names are those of the first answer
            names = frozenset(answer["features"])
            pair = choose_pair(case, reader.cohort.features, names, seed)
        rows[patient] = {"method": answer["method"], "patient_id": patient}
        if isinstance(pair, Unjudged):
            rows[patient]["unjudged"] = str(pair)
            continue
        pairs[patient] = pair
        rows[patient] |= {
            "named": pair.named,
            "unnamed": pair.unnamed,
            "num_named_values": pair.num_named_values,
            "num_unnamed_values": pair.num_unnamed_values,
            "original": readable_probability(answer),
        }
    if pairs:
        _read(
            reader, rows, "named", ask({p: pair.without_named for p, pair in pairs.items()}), shown
        )
        _read(
            reader,
            rows,
            "unnamed",
            ask({p: pair.without_unnamed for p, pair in pairs.items()}),
            shown,
        )
    return pd.DataFrame(list(rows.values()), columns=list(MASKED_COLUMNS))


def faithfulness_summary(
    rows: pd.DataFrame, num_resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Each method's summary, for its row of the results."""
    summaries: dict[str, dict[str, Any]] = {}
    for method, table in rows.groupby("method", sort=False):
        is_judged = table["unjudged"].isna()
        judged = [
            MaskedProbabilities(original=original, without_named=named, without_unnamed=unnamed)
            for original, named, unnamed in table.loc[
                is_judged, ["original", "without_named", "without_unnamed"]
            ].to_numpy(float)
        ]
        unjudged = [Unjudged(reason) for reason in table.loc[~is_judged, "unjudged"]]
        summaries[str(method)] = asdict(faithfulness(judged, unjudged, num_resamples, seed))
    return summaries


def _read(
    reader: AnswerParser,
    rows: dict[str, dict[str, Any]],
    which: str,
    answers: Answers,
    shown: Mapping[str, PatientCase],
) -> None:
    """Adds the masked answers to the rows of their patients."""
    for answer in reader.rows("", answers).to_dict("records"):
        patient = answer["patient_id"]
        row = rows[patient]
        row[f"text_without_{which}"] = answer["text"]
        if answers.shown[patient].num_visits != shown[patient].num_visits:
            row["unjudged"] = str(Unjudged.OTHER_VISITS)
        elif answer["parse_failed"]:
            row["unjudged"] = str(Unjudged.UNREADABLE_MASKED)
        else:
            row[f"without_{which}"] = readable_probability(answer)
