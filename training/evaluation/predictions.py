"""The table of predictions: its columns, and the rows of models of the record."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from ehr.tables import column, rows

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


SAMPLE_COLUMNS = ("sample_probabilities", "sample_failed", "sample_features", "sample_spreads")
"""Of each sampled answer: its probability (the base rate if unreadable), whether it is unreadable,
the names in it (none if unreadable), and the standard deviation of the numbers that the model may
write, null where the risk was sampled. Tables of language models have them beside
`PREDICTION_COLUMNS`, whose text, features, R_att and claims are those of the first answer."""


def expert_rows(method: str, predictions: pd.DataFrame) -> pd.DataFrame:
    """Prediction rows of a model that reads the record, from the expert stage."""
    is_asked = (predictions["method"] == method) & (predictions["split"] == "test")
    found = rows(predictions, is_asked)
    patients, labels, risks = (
        column(found, name) for name in ("patient_id", "label", "probability")
    )
    return record_rows(method, patients, labels, risks)


def record_rows(
    method: str,
    patient_ids: Sequence[str] | pd.Series,
    labels: Sequence[int] | pd.Series,
    risks: Sequence[float] | pd.Series,
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


def reading_of(predictions: pd.DataFrame) -> Literal["expected", "sampled"]:
    """How the risks of a language model's predictions were read (`evaluate.reading`)."""
    has_spreads = "sample_spreads" in predictions and column(predictions, "sample_spreads").notna()
    return "expected" if np.any(has_spreads) else "sampled"


def reading_text(reading: object) -> str:
    """How the risk of an answer came about, for the line below a table."""
    if reading == "expected":
        return "the risk of an answer is the mean over the hundred numbers it may write"
    return "the risk of an answer is the number it writes"


def concatenate(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """All prediction rows, in the order given."""
    return pd.concat([table for table in tables if len(table)], ignore_index=True)
