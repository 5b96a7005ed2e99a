"""Another test cohort in the report: its result rows, and the map that tables were read through."""

from typing import Any

from training.evaluation.other_patients import own_patients_sentence
from training.evaluation.table import COLUMNS, table_cells, table_rows
from training.readable import MISSING, finite_number, whole
from training.report.records import RunRecords, name_list
from training.report.text import shown
from training.run.files import as_object


def other_cohort_section(records: RunRecords) -> dict[str, Any] | None:
    """Results on `evaluate.other_cohort`; None where no other cohort was asked about."""
    found = records.other_cohort
    if found is None:
        return None
    cohort, schema = as_object(found.get("cohort")), as_object(found.get("map"))
    rows = [row for row in _list(found.get("rows")) if isinstance(row, dict)]
    pairs = [as_object(pair) for pair in _list(schema.get("pairs"))]
    return {
        "name": shown(cohort.get("name") or MISSING),
        "trained_on": shown(found.get("trained_on") or MISSING),
        "test_patients": whole(finite_number(cohort.get("test_patients"))),
        "asked_patients": whole(finite_number(cohort.get("asked_patients"))),
        "own_patients": own_patients_sentence(cohort),
        "columns": COLUMNS,
        "rows": [[shown(cell) for cell in table_cells(row, MISSING)] for row in table_rows(rows)],
        "pairs": [(shown(pair.get("rule") or MISSING), shown(pair.get("note"))) for pair in pairs],
        "missing": [shown(name) for name in name_list(schema.get("missing"))],
        "refused": [shown(line) for line in name_list(schema.get("refused"))],
        "num_unused": len(name_list(schema.get("unused"))),
    }


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
