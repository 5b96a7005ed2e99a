"""Salience in the report: what the expert looks at, patient by patient."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from markupsafe import Markup

from ehr.catalogue import AGE_AND_SEX
from ehr.salience.table import salient_sets
from training.report.chart import (
    ACCENT,
    GREY,
    INK,
    MUTED,
    Figure,
    document,
    mixed,
    shortened,
    text_width,
    title,
)
from training.report.records import Scores

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
    is_candidate: np.ndarray
    """Whether the feature may be salient for the patient, bool [patients, features]."""
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
    seen = chosen.pivot_table(
        index="patient_id", columns="feature", values="observed", aggfunc="max", sort=False
    ).loc[means.index, means.columns]
    is_candidate = seen.to_numpy(dtype=bool) | (means.columns == AGE_AND_SEX)
    top = salient_sets(chosen, num_features, candidates)
    return Salience(
        patients=tuple(str(patient) for patient in means.index),
        features=tuple(str(feature) for feature in means.columns),
        scores=np.nan_to_num(means.to_numpy(dtype=float)),
        is_candidate=is_candidate if candidates == "observed" else np.ones(means.shape, dtype=bool),
        top={patient: frozenset(names) for patient, names in top.items()},
    )


def heat_map_figure(salience: Salience, expert: Scores | None) -> Figure:
    """Salience of the test patients, by feature and patient."""
    risks, labels = risks_and_labels(expert)
    share_in_top = Counter(name for names in salience.top.values() for name in names)
    means = dict(zip(salience.features, salience.scores.mean(axis=0), strict=True))
    ordered = sorted(means, key=lambda name: (-share_in_top[name], -means[name]))
    # A single feature left over gets its own line instead of one that stands for it.
    features = ordered if len(ordered) <= MAX_FEATURES + 1 else ordered[:MAX_FEATURES]
    others = frozenset(ordered[len(features) :])
    patients = _shown_patients(salience, risks)
    rows = [salience.patients.index(patient) for patient in patients]
    columns = [salience.features.index(feature) for feature in features]
    shown = salience.scores[np.ix_(rows, columns)]
    allowed = salience.is_candidate[np.ix_(rows, columns)]
    # between quantiles: a few extreme cells would leave all others alike
    least, most = np.quantile(shown[allowed] if allowed.any() else shown, (0.02, 0.98))
    span = float(most - least) or 1.0
    rest = f"{len(others)} other features"
    names = [shortened(feature, 36) for feature in features]
    left = max(text_width(name) for name in [*names, *([rest] if others else []), "outcome"]) + 12
    right = left + CELL_WIDTH * len(patients)
    parts: list[Markup] = [_text(right + 8, 12, "in the top", MUTED)]
    for row, feature in enumerate(features):
        y = 20 + CELL_HEIGHT * row
        parts.append(_text(left - 8, y + 13, names[row], INK, "end"))
        for column, patient in enumerate(patients):
            score = float(shown[column, row])
            is_candidate = bool(allowed[column, row])
            colour = mixed((226, 234, 241), (16, 84, 120), (score - least) / span)
            tip = f"{score:.3f}" if is_candidate else "never recorded"
            parts.append(
                _cell(
                    left + CELL_WIDTH * column,
                    y,
                    colour if is_candidate else "none",
                    f"patient {patient}: {feature} {tip}",
                    is_marked=feature in salience.top[patient],
                )
            )
        share = share_in_top[feature] / len(salience.top)
        parts.append(_text(right + 8, y + 13, f"{100 * share:.0f} %", INK))
    bottom = 20 + CELL_HEIGHT * len(features)
    if others:
        parts.append(_text(left - 8, bottom + 13, rest, MUTED, "end"))
        parts += _counts_of_others(salience, patients, others, left, bottom + 13)
        bottom += CELL_HEIGHT
    if labels:
        parts.append(_text(left - 8, bottom + 16, "outcome", MUTED, "end"))
        middles = [left + CELL_WIDTH * (column + 0.5) for column in range(len(patients))]
        parts += [
            _outcome(middle, bottom + 12, labels.get(patient))
            for middle, patient in zip(middles, patients, strict=True)
        ]
    axis = "test patients by rising predicted risk" if risks else "test patients"
    parts.append(_text(left, bottom + 36, axis, MUTED))
    svg = document(right + 74, bottom + 44, "Salience by patient and feature", parts)
    note = _heat_map_note(salience, len(patients), len(features))
    return Figure(title="What the expert looks at", svg=svg, note=note, is_wide=True)


def _shown_patients(salience: Salience, risks: Mapping[str, float]) -> list[str]:
    """By rising risk; of many patients so many that are spread evenly."""
    patients = sorted(salience.patients, key=lambda patient: risks.get(patient, 0.0))
    if len(patients) <= MAX_PATIENTS:
        return patients
    spread = np.linspace(0, len(patients) - 1, MAX_PATIENTS).round().astype(int)
    return [patients[index] for index in spread]


def _counts_of_others(
    salience: Salience, patients: Sequence[str], others: frozenset[str], left: float, y: float
) -> list[Markup]:
    """The line that stands for features without one: how many of them are salient."""
    parts: list[Markup] = []
    for column, patient in enumerate(patients):
        if count := len(others & salience.top[patient]):
            middle = left + CELL_WIDTH * (column + 0.5)
            parts.append(_text(middle, y, str(count), MUTED, "middle"))
    per_patient = np.mean([len(others & names) for names in salience.top.values()])
    right = left + CELL_WIDTH * len(patients)
    return [*parts, _text(right + 8, y, f"{per_patient:.1f} each", MUTED)]


def _heat_map_note(salience: Salience, num_patients: int, num_features: int) -> str:
    note = (
        f"{num_patients} of {len(salience.top)} test patients, {num_features} of "
        f"{len(salience.features)} features. Darker matters more; a dot marks a patient's "
        "salient features; the percentage counts all test patients."
    )
    if num_features < len(salience.features):
        note += " A number counts salient features among those without a line."
    counts = salience.is_candidate.sum(axis=1)
    if counts.min() < len(salience.features):
        note += (
            " An empty cell was never recorded and cannot be salient: a patient has "
            f"{counts.min()} to {counts.max()} candidates (median {np.median(counts):.0f})."
        )
    return note


def risks_and_labels(expert: Scores | None) -> tuple[dict[str, float], dict[str, int]]:
    """The expert's risk and the outcome of each patient; empty where there are no predictions."""
    if expert is None:
        return {}, {}
    risks = dict(zip(expert.patients, expert.probabilities.tolist(), strict=True))
    return risks, dict(zip(expert.patients, expert.labels.tolist(), strict=True))


def _cell(x: float, y: float, colour: str, tip: str, *, is_marked: bool) -> Markup:
    mark = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2" fill="#f2b134"/>').format(
        x + CELL_WIDTH / 2, y + CELL_HEIGHT / 2
    )
    return Markup(
        '<g pointer-events="all"><rect x="{:.0f}" y="{:.0f}" width="{}" height="{}" fill="{}"/>'
        "{}{}</g>"
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
