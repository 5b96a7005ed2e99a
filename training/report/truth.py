"""The expert beside a generated cohort's truth: features, and risk where it is known."""

from collections.abc import Sequence

import numpy as np

from ehr.cohorts.schema import SALIENT_COLUMNS
from ehr.metrics import auroc
from ehr.salience.agreement import agreement, best_constant_set
from training.readable import finite_number, format_number
from training.report.chart import (
    ACCENT,
    GREEN,
    GREY,
    INK,
    Axis,
    Chart,
    Figure,
    LegendEntry,
    text_width,
)
from training.report.records import Scores
from training.report.salience import Salience, risks_and_labels
from training.run.files import Rows


def truth_figures(salience: Salience, truth: Rows, expert: Scores | None) -> list[Figure | None]:
    """The expert beside the synthetic cohort's truth: features, and risk where it is known."""
    figures = [_truth_features_figure(salience, truth)]
    if expert is not None:
        figures.append(_truth_risk_figure(truth, expert))
    return figures


def _truth_features_figure(salience: Salience, truth: Rows) -> Figure | None:
    true_sets = {
        str(row["patient_id"]): frozenset(
            str(value) for column, value in row.items() if column in SALIENT_COLUMNS and value
        )
        for row in truth
    }
    patients = [patient for patient in salience.top if true_sets.get(patient)]
    if not patients:
        return None
    targets = [true_sets[patient] for patient in patients]
    named = [salience.top[patient] for patient in patients]
    size = max(len(names) for names in targets)
    compared = agreement(named, targets, size)
    values = [
        ("the expert", compared.jaccard, GREEN),
        ("best constant set", best_constant_set(targets, size)[1], GREY),
        ("patients permuted", compared.jaccard_permuted, GREY),
    ]
    note = (
        f"Overlap with the features that truly carry the risk of {len(patients)} test patients: "
        "the cohort is generated, so they are known."
    )
    return _jaccard_figure("Does the expert name the true features?", values, note)


def _truth_risk_figure(truth: Rows, expert: Scores) -> Figure | None:
    true_risks = {
        str(row["patient_id"]): risk
        for row in truth
        if (risk := finite_number(row["true_risk"])) is not None
    }
    risks, labels = risks_and_labels(expert)
    patients = [patient for patient in risks if patient in true_risks]
    outcomes = np.array([labels[patient] for patient in patients])
    if len(set(outcomes.tolist())) < 2:
        return None
    reachable = auroc(outcomes, np.array([true_risks[patient] for patient in patients]))
    reached = auroc(outcomes, np.array([risks[patient] for patient in patients]))
    chart = Chart(
        label="True risk and the expert's risk of the test patients",
        x=Axis(low=-0.02, high=1.02, label="true risk", ticks=(0, 0.25, 0.5, 0.75, 1)),
        y=Axis(low=-0.02, high=1.02, label="the expert's risk", ticks=(0, 0.25, 0.5, 0.75, 1)),
        width=340,
        height=300,
    )
    chart.line([(0, 0), (1, 1)], GREY, width=1, is_dashed=True)
    for patient, outcome in zip(patients, outcomes, strict=True):
        tip = f"patient {patient}: true {true_risks[patient]:.2f}, expert {risks[patient]:.2f}"
        colour = ACCENT if outcome else GREY
        chart.dot(true_risks[patient], risks[patient], colour, radius=3.5, tip=tip)
    note = (
        f"AUROC of the true risk, the best that any method can reach on these patients: "
        f"{format_number(reachable)}; of the expert: {format_number(reached)}."
    )
    legend = (
        LegendEntry(label="event", colour=ACCENT),
        LegendEntry(label="no event", colour=GREY),
    )
    return Figure(title="Risk against the truth", svg=chart.render(), legend=legend, note=note)


def _jaccard_figure(
    heading: str, values: Sequence[tuple[str, float | None, str]], note: str
) -> Figure | None:
    """Jaccard values as dots on one scale; None if none is a number."""
    known = [(label, value, colour) for label, value, colour in values if value is not None]
    if not known:
        return None
    chart = Chart(
        label=heading,
        x=Axis(low=0, high=1, label="mean Jaccard", ticks=(0, 0.25, 0.5, 0.75, 1)),
        y=Axis(
            low=len(known) - 0.5,
            high=-0.5,
            ticks=tuple(range(len(known))),
            tick_labels=tuple(label for label, _, _ in known),
        ),
        width=340,
        height=30.0 * len(known) + 52,
        left=max(text_width(label) for label, _, _ in known) + 14,
    )
    for index, (label, value, colour) in enumerate(known):
        chart.line([(0, index), (value, index)], colour, width=3)
        chart.dot(value, index, colour, radius=6, tip=f"{label}: {value:.3f}")
        is_at_the_edge = value > 0.85
        chart.text(
            value + (-0.03 if is_at_the_edge else 0.045),
            index - (0.32 if is_at_the_edge else 0),
            f"{value:.2f}",
            colour=INK,
            anchor="end" if is_at_the_edge else "start",
        )
    return Figure(title=heading, svg=chart.render(), note=note)
