"""The expert in the report: agreement, salience, and comparison with the synthetic truth."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from ehr.agreement import agreement, best_constant_set
from ehr.metrics import auroc
from ehr.salience import salient_sets
from ehr.schema import SALIENT_COLUMNS
from training.report_chart import (
    ACCENT,
    GREEN,
    GREY,
    INK,
    MUTED,
    Axis,
    Chart,
    Figure,
    LegendEntry,
    document,
    mixed,
    shortened,
    text_width,
    title,
)
from training.report_data import Rows, Scores, as_object
from training.result_table import finite_number, format_number

MAX_PATIENTS, MAX_FEATURES = 48, 20
"""Columns and rows of the heat map: what fits a page and an eye."""

CELL_WIDTH, CELL_HEIGHT = 13, 19


@dataclass(frozen=True, slots=True, kw_only=True)
class Salience:
    """The first ensemble's mean scores of the test patients."""

    patients: tuple[str, ...]
    features: tuple[str, ...]
    """In schema order."""
    scores: np.ndarray
    """Mean over the members, float [patients, features]."""
    top: dict[str, frozenset[str]]
    """Each patient's salient features."""


def salience_of_test_patients(
    table: pd.DataFrame, num_features: int, candidates: str
) -> Salience | None:
    """What the first ensemble says about the test patients; None if there are none.

    Args:
        table: `expert/salience.parquet`.
        num_features: size of a patient's salient set.
        candidates: `observed` or `paper`, as in the expert section.
    """
    chosen = table.loc[(table["split"] == "test") & (table["ensemble"] == 0)]
    if chosen.empty:
        return None
    means = chosen.pivot_table(
        index="patient_id", columns="feature", values="score", aggfunc="mean", sort=False
    )
    top = salient_sets(chosen, num_features, candidates)
    return Salience(
        patients=tuple(str(patient) for patient in means.index),
        features=tuple(str(feature) for feature in means.columns),
        scores=np.nan_to_num(means.to_numpy(dtype=float)),
        top={patient: frozenset(names) for patient, names in top.items()},
    )


def agreement_figure(metrics: Mapping[str, Any]) -> Figure | None:
    """Agreement of two disjoint ensembles on the salient features; None if it was not measured."""
    values = [
        ("two disjoint ensembles", finite_number(metrics.get("jaccard")), GREEN),
        ("best constant set", finite_number(metrics.get("jaccard_constant")), GREY),
        ("patients permuted", finite_number(metrics.get("jaccard_permuted")), GREY),
    ]
    kappa = format_number(metrics.get("kappa"), 2, "\u2013")
    kappa_test = format_number(as_object(metrics.get("test")).get("kappa"), 2, "\u2013")
    note = (
        "Training patients, by members that did not see them. Only what lies right of the "
        f"permuted patients is about the patient: kappa {kappa}, of test patients {kappa_test}."
    )
    return jaccard_figure("Do two experts name the same features?", values, note)


def jaccard_figure(
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


def heat_map_figure(salience: Salience, expert: Scores | None) -> Figure:
    """Salience of the test patients, by feature and patient."""
    risks, labels = _risks_and_labels(expert)
    share_in_top = Counter(name for names in salience.top.values() for name in names)
    means = dict(zip(salience.features, salience.scores.mean(axis=0), strict=True))
    features = sorted(means, key=lambda name: (-share_in_top[name], -means[name]))[:MAX_FEATURES]
    patients = sorted(salience.patients, key=lambda patient: risks.get(patient, 0.0))
    if len(patients) > MAX_PATIENTS:
        spread = np.linspace(0, len(patients) - 1, MAX_PATIENTS).round().astype(int)
        patients = [patients[index] for index in spread]
    rows = [salience.patients.index(patient) for patient in patients]
    columns = [salience.features.index(feature) for feature in features]
    shown = salience.scores[np.ix_(rows, columns)]
    # between quantiles: a few extreme cells would leave all others alike
    least, most = np.quantile(shown, (0.02, 0.98))
    span = float(most - least) or 1.0
    left = max(text_width(shortened(name, 36)) for name in features) + 12
    right = left + CELL_WIDTH * len(patients)
    parts: list[Markup] = [_text(right + 8, 12, "in the top", MUTED)]
    for row, feature in enumerate(features):
        y = 20 + CELL_HEIGHT * row
        parts.append(_text(left - 8, y + 13, shortened(feature, 36), INK, "end"))
        for column, patient in enumerate(patients):
            score = float(shown[column, row])
            parts.append(
                _cell(
                    left + CELL_WIDTH * column,
                    y,
                    mixed((238, 242, 246), (16, 84, 120), (score - least) / span),
                    f"patient {patient}: {feature} {score:.3f}",
                    is_marked=feature in salience.top[patient],
                )
            )
        share = share_in_top[feature] / len(salience.top)
        parts.append(_text(right + 8, y + 13, f"{100 * share:.0f} %", INK))
    bottom = 20 + CELL_HEIGHT * len(features)
    if labels:
        parts.append(_text(left - 8, bottom + 16, "outcome", MUTED, "end"))
        for column, patient in enumerate(patients):
            parts.append(
                _outcome(left + CELL_WIDTH * (column + 0.5), bottom + 12, labels.get(patient))
            )
    parts.append(
        _text(
            left,
            bottom + 36,
            "test patients by rising predicted risk" if risks else "test patients",
            MUTED,
        )
    )
    note = (
        f"{len(patients)} of {len(salience.top)} test patients, {len(features)} of "
        f"{len(salience.features)} features. Darker matters more; a dot marks a patient's "
        "salient features; the percentage counts all test patients."
    )
    svg = document(right + 74, bottom + 44, "Salience by patient and feature", parts)
    return Figure(title="What the expert looks at", svg=svg, note=note, is_wide=True)


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
    return jaccard_figure("Does the expert name the true features?", values, note)


def _truth_risk_figure(truth: Rows, expert: Scores) -> Figure | None:
    true_risks = {
        str(row["patient_id"]): risk
        for row in truth
        if (risk := finite_number(row["true_risk"])) is not None
    }
    risks, labels = _risks_and_labels(expert)
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


def _risks_and_labels(expert: Scores | None) -> tuple[dict[str, float], dict[str, int]]:
    if expert is None:
        return {}, {}
    risks = dict(zip(expert.patients, expert.probabilities.tolist(), strict=True))
    return risks, dict(zip(expert.patients, expert.labels.tolist(), strict=True))


def _cell(x: float, y: float, colour: str, tip: str, *, is_marked: bool) -> Markup:
    mark = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2" fill="#f2b134"/>').format(
        x + CELL_WIDTH / 2, y + CELL_HEIGHT / 2
    )
    return Markup(
        '<g><rect x="{:.0f}" y="{:.0f}" width="{}" height="{}" fill="{}"/>{}{}</g>'
    ).format(x, y, CELL_WIDTH - 1, CELL_HEIGHT - 1, colour, mark if is_marked else "", title(tip))


def _outcome(x: float, y: float, label: int | None) -> Markup:
    if label is None:
        return Markup("")
    return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3.5" fill="{}" stroke="{}"/>').format(
        x, y, ACCENT if label else "#fff", ACCENT if label else GREY
    )


def _text(x: float, y: float, text: str, colour: str, anchor: str = "start") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" fill="{}" text-anchor="{}">{}</text>').format(
        x, y, colour, anchor, text
    )
