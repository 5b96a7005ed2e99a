"""What the cohort's tables on disk look like: checked on writing and on reading."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from pandas.api import types

from ehr.errors import DataError

VALUE_PREFIX = "value/"
"""Starts the visit-table column of a feature, so that no feature name can meet another column."""

CONTRIBUTION_PREFIX = "contribution/"
"""Starts the truth-table column with a feature's true contribution to the log-odds."""

NUM_TRUE_SALIENT = 5
"""Columns `salient_1` to `salient_5` of the truth table, as many as C_exp has by default."""

SALIENT_COLUMNS = tuple(f"salient_{rank}" for rank in range(1, NUM_TRUE_SALIENT + 1))
"""Columns of the truth table with the features that truly carry a patient's risk, in order."""

_CHECKS = {
    "text": types.is_string_dtype,
    "number": types.is_float_dtype,
    "integer": types.is_integer_dtype,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSchema:
    """Columns of one table and the kind of each."""

    name: str
    """What an error calls the table."""
    columns: tuple[tuple[str, str], ...]
    """Column and kind: "text", "number" (float) or "integer"."""


def patients_schema() -> TableSchema:
    """One row a patient: background and label."""
    return TableSchema(
        name="patients",
        columns=(("patient_id", "text"), ("sex", "text"), ("age", "number"), ("label", "integer")),
    )


def visits_schema(features: Sequence[str]) -> TableSchema:
    """One row a visit, in time order within a patient."""
    return TableSchema(
        name="visits",
        columns=(
            ("patient_id", "text"),
            ("visit_label", "text"),
            ("visit_day", "number"),
            *((VALUE_PREFIX + feature, "number") for feature in features),
        ),
    )


def truth_schema(features: Sequence[str]) -> TableSchema:
    """One row a patient of a generated cohort; `features` includes the demographic one."""
    return TableSchema(
        name="truth",
        columns=(
            ("patient_id", "text"),
            ("true_risk", "number"),
            ("base_log_odds", "number"),
            *((column, "text") for column in SALIENT_COLUMNS),
            *((CONTRIBUTION_PREFIX + feature, "number") for feature in features),
        ),
    )


def check_table(table: pd.DataFrame, schema: TableSchema) -> None:
    """Nothing, if a table has exactly the schema's columns with their kinds.

    Raises:
        DataError: naming the columns that lack, are too many, or hold another kind.
    """
    expected = [column for column, _ in schema.columns]
    missing = [column for column in expected if column not in table.columns]
    extra = [str(column) for column in table.columns if column not in set(expected)]
    if missing or extra:
        raise DataError(
            f"the {schema.name} table must have {len(expected)} columns; missing: {missing[:5]}, "
            f"not expected: {extra[:5]}"
        )
    wrong = [
        f"{column} ({table[column].dtype}, expected {kind})"
        for column, kind in schema.columns
        if not _CHECKS[kind](table[column])
    ]
    if wrong:
        raise DataError(
            f"columns of the {schema.name} table hold another kind of value: {wrong[:5]}"
        )
