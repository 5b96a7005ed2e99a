"""The results in the report: the table, rankings, paired differences and calibration."""

from typing import Any

from training.evaluation.methods import EHR_MODEL_METHODS, LANGUAGE_MODEL_METHODS
from training.evaluation.predictions import reading_text
from training.evaluation.table import (
    COLUMNS,
    FAITHFULNESS_COLUMNS,
    GROUNDING_COLUMNS,
    faithfulness_cells,
    grounding_cells,
    table_cells,
    table_rows,
)
from training.readable import MISSING, finite_number
from training.report.calibration import calibration_figures, too_few_note
from training.report.chart import present
from training.report.figures import (
    METHOD_COLOURS,
    base_rates,
    difference_figure,
    interval_figure,
    precision_recall_figure,
    roc_figure,
)
from training.report.records import RunRecords, scores_by_method
from training.report.text import shown
from training.run.files import as_object


def results_section(records: RunRecords) -> dict[str, Any] | None:
    """The result table with its figures; None before an evaluation."""
    if not records.results:
        return None
    rows = table_rows(records.results)
    scores = scores_by_method(records.predictions or ())
    rates = base_rates(scores)
    figures = [
        *(interval_figure(records.results, metric, rates) for metric in ("auroc", "auprc")),
        roc_figure(scores),
        precision_recall_figure(scores),
    ]
    grounded = [row for row in rows if finite_number(row.get("num_checked_claims")) is not None]
    tested = [row for row in rows if as_object(row.get("faithfulness"))]
    # With the expert stage's predictions, EHR models have their curves where the expert is shown.
    elsewhere = EHR_MODEL_METHODS if records.expert_predictions else {}
    calibrated = {method: each for method, each in scores.items() if method not in elsewhere}
    differences = [difference_figure(records.differences, metric) for metric in ("auroc", "auprc")]
    readings = dict.fromkeys(row["reading"] for row in records.results if row.get("reading"))
    return {
        "columns": COLUMNS,
        "reading": "; ".join(map(reading_text, readings)),
        "rows": [
            {
                "cells": [shown(cell) for cell in table_cells(row, MISSING)],
                "colour": METHOD_COLOURS.get(str(row.get("method")), "#97a3b0"),
                "is_language_model": row.get("method") in LANGUAGE_MODEL_METHODS,
            }
            for row in rows
        ],
        "figures": present(figures),
        "grounding": [[shown(cell) for cell in grounding_cells(row, MISSING)] for row in grounded],
        "grounding_columns": GROUNDING_COLUMNS,
        "faithfulness": [
            [shown(cell) for cell in faithfulness_cells(row, MISSING)] for row in tested
        ],
        "faithfulness_columns": FAITHFULNESS_COLUMNS,
        "differences": present(differences),
        "calibration": calibration_figures(calibrated),
        "calibration_note": too_few_note(calibrated),
    }
