"""What an experiment has shown, in one sentence: as much as its table says, and no more."""

from collections.abc import Mapping, Sequence
from typing import Any

from training.experiments.results import Results, arm_label
from training.readable import finite_number

SIGNIFICANT = 0.05
"""Largest p, adjusted for all differences of the table, of what is called shown."""

_ASKED = (
    ("reward_att", "names nearer to the expert's (R_att excess)"),
    ("auroc_one", "better risks (AUROC of one answer)"),
)
"""Measures that the sentence is about, and what more of each means."""

_ASKED_ONCE = {"auroc_one": "auroc"}
"""Where patients were asked once, the mean of their answers is the one answer."""


def shown_sentence(results: Results) -> str | None:
    """What the reference arm is shown to do that other arms do not, and what is not shown.

    Shown is only what has an interval clear of zero and a p below `SIGNIFICANT`, adjusted by
    Holm's method for all differences of the table.

    Args:
        results: of the experiment.

    Returns:
        None where no two arms were compared.
    """
    arms = {arm["arm"] for arm in results["arms"]}
    rows = [row for row in results["differences"] if row["minus"] in arms]
    rows = [row for row in rows if row["arm"] == results["reference"]]
    if not rows:
        return None
    said: dict[str, list[str]] = {"more": [], "less": [], "open": []}
    for measure, meaning in _ASKED:
        for verdict, others in _by_verdict(_of_measure(rows, measure)).items():
            said[verdict].append(f"{meaning} than {_listed(others)}")
    label = arm_label(results["reference"])
    shown = [*said["more"], *(f"the opposite of {each}" for each in said["less"])]
    parts = [f"Shown (p by Holm below .05): {label} has {'; '.join(shown) or 'nothing'}."]
    if said["open"]:
        parts.append(f"Not shown, in either direction: {'; '.join(said['open'])}.")
    return f"{' '.join(parts)} {_reach(results, rows)}"


def _of_measure(rows: Sequence[Mapping[str, Any]], measure: str) -> list[Mapping[str, Any]]:
    found = [row for row in rows if row["measure"] == measure]
    once = _ASKED_ONCE.get(measure)
    return found or [row for row in rows if row["measure"] == once]


def _by_verdict(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Labels of the other arms with their differences, by what the table says."""
    found: dict[str, list[str]] = {}
    for row in rows:
        low, high = finite_number(row["low"]), finite_number(row["high"])
        value = finite_number(row["difference"])
        if value is None or low is None or high is None:
            continue
        p = finite_number(row.get("p_holm"))
        is_clear = p is not None and p < SIGNIFICANT and (low > 0 or high < 0)
        verdict = "open" if not is_clear else "more" if low > 0 else "less"
        text = f"{arm_label(row['minus'])} ({value:+.3f} [{low:+.3f}, {high:+.3f}])"
        found.setdefault(verdict, []).append(text)
    return found


def _listed(texts: Sequence[str]) -> str:
    *first, last = texts
    return f"{', '.join(first)} and {last}" if first else last


def _reach(results: Results, rows: Sequence[Mapping[str, Any]]) -> str:
    num_seeds = max(len(row["seeds"]) for row in rows)
    seeds = "one seed of training" if num_seeds == 1 else f"{num_seeds} seeds of training"
    return (
        f"That is about {results['num_patients']:,} test patients of one cohort, {seeds} and this "
        "one model; nothing here is about larger models or real care."
    )
