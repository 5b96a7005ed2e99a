"""The expert in the report: discrimination, calibration, salience, stability and deletion."""

from typing import Any

from ehr.errors import DataError
from ehr.salience.stability import stability_curve
from training.evaluation.table import COLUMNS, table_cells
from training.readable import MISSING
from training.report.calibration import calibration_figures, too_few_note
from training.report.chart import Figure, present
from training.report.deletion import deletion_figures
from training.report.records import RunRecords, Scores, scores_by_method
from training.report.salience import Salience, heat_map_figure, salience_of_test_patients
from training.report.stability import stability_figure
from training.report.text import shown
from training.report.truth import truth_figures
from training.run.files import as_object


def expert_section(records: RunRecords) -> tuple[dict[str, Any] | None, list[str]]:
    """What the page says of the expert, None before its stage; and what could not be read."""
    if records.expert is None and records.salience is None:
        return None, []
    metrics = records.expert or {}
    models = {"concare": metrics.get("test"), **as_object(metrics.get("baselines"))}
    rows = [
        {"method": method, **as_object(values)}
        for method, values in models.items()
        if as_object(values)
    ]
    of_test = _test_scores(records)
    scores = of_test.get("concare")
    salience = _salience(records)
    stability, problems = _stability(records)
    figures = [stability, *deletion_figures(records.deletion or {})]
    if salience is not None and records.truth is not None:
        figures += truth_figures(salience, records.truth, scores)
    heat_map = None if salience is None else heat_map_figure(salience, scores)
    of_stage = of_test if records.expert_predictions else {}
    section = {
        "rows": [[shown(cell) for cell in table_cells(row, MISSING)[:3]] for row in rows],
        "columns": COLUMNS[:3],
        "figures": present(figures),
        "heat_map": heat_map,
        "calibration": calibration_figures(of_stage),
        "calibration_note": too_few_note(of_stage),
        "members": records.setting("expert", "members"),
        "num_ensembles": records.setting("expert", "num_ensembles"),
        "salience": shown(records.setting("expert", "salience") or "attention").replace("_", " "),
    }
    return section, problems


def _test_scores(records: RunRecords) -> dict[str, Scores]:
    """Test predictions: the expert stage's own, which exist before an evaluation, or its."""
    of_stage = [row for row in records.expert_predictions or () if row["split"] == "test"]
    return scores_by_method(of_stage or records.predictions or ())


def _stability(records: RunRecords) -> tuple[Figure | None, list[str]]:
    if records.salience is None:
        return None, []
    try:
        points = stability_curve(records.salience, *records.salient_choice())
    except DataError as error:
        return None, [f"expert/salience.parquet has no stability curve: {error}"]
    kappa_of_test = as_object((records.expert or {}).get("test")).get("kappa")
    return stability_figure(points, kappa_of_test), []


def _salience(records: RunRecords) -> Salience | None:
    if records.salience is None:
        return None
    return salience_of_test_patients(records.salience, *records.salient_choice())
