"""Other orders of the features in the report: the language model rows over the shares moved."""

from typing import Any

from training.evaluation.table import ORDER_COLUMNS, order_cells
from training.readable import MISSING
from training.report.records import RunRecords
from training.report.text import shown
from training.run.files import as_object


def feature_order_section(records: RunRecords) -> dict[str, Any] | None:
    """Means over seeds; None where no other order was asked about."""
    found = records.feature_order
    if found is None:
        return None
    means = found.get("means")
    rows = [as_object(mean) for mean in means] if isinstance(means, list) else []
    return {
        "columns": ORDER_COLUMNS,
        "rows": [
            [shown(cell) for cell in order_cells(row, found.get("num_features"), MISSING)]
            for row in rows
            if row
        ],
    }
