"""The table of an experiment: for the terminal, and as Markdown for the documents."""

from collections.abc import Mapping, Sequence
from typing import Any

from training.result_table import finite_number, format_number, method_label

Row = Mapping[str, Any]

MEASURE_LABELS: dict[str, str] = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "ece": "ECE",
    "reward": "R",
    "reward_cls": "R_cls",
    "reward_att": "R_att",
    "reward_att_excess": "Excess",
    "true_overlap": "True overlap",
    "parse_failure_rate": "Unreadable",
}
"""Columns, in order. ECE is before any recalibration; generated cohorts know the true overlap."""

REFERENCE_LABELS: dict[str, str] = {
    "true_risk": "True risk",
    "constant_set": "Best constant set",
    "expert_salience": "Expert's salience",
}


def learn_table(results: Row) -> list[str]:
    """Every seed of every arm, the means, and the differences, as plain lines."""
    body = [row for part in table_parts(results) for row in part]
    lines = _aligned([["Arm", "Seed", *MEASURE_LABELS.values()], *body])
    lines += difference_lines(results)
    return [*lines, *unfinished_lines(results)]


def learn_markdown(results: Row) -> str:
    """The same as Markdown: seeds, means with intervals, differences with intervals."""
    model, patients = results["model"] or {}, results["patients"]
    head = ["Arm", "Seed", *MEASURE_LABELS.values()]
    body = [row for part in table_parts(results) for row in part]
    rows = [head, ["---", "---", *["---:"] * len(MEASURE_LABELS)], *body]
    about = (
        f"{model.get('name', 'unknown model')} ({model.get('description', 'no description')}); "
        f"{patients['n']} test patients, {patients['num_positives']} positive; brackets are 95 % "
        "intervals over test patients and seeds."
    )
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    notes = [f"- {line}" for line in (*difference_lines(results), *unfinished_lines(results))]
    return "\n\n".join([about, table, "\n".join(notes)]) + "\n"


def table_parts(results: Row) -> tuple[list[list[str]], ...]:
    """Cells of the units' rows, of the arms' means, and of what they are read against."""
    return _unit_cells(results), _mean_cells(results), _reference_cells(results)


def difference_lines(results: Row) -> list[str]:
    """A line a paired difference: point, interval, what could have been seen, each seed."""
    lines = []
    for row in results["differences"]:
        seeds = ", ".join(_signed(value) for value in row["by_seed"])
        lines.append(
            f"{arm_label(row['arm'])} minus {arm_label(row['minus'])}, "
            f"{MEASURE_LABELS[row['measure']]}: {_signed(row['difference'])} "
            f"[{_signed(row['low'])}, {_signed(row['high'])}]"
            f", detectable {format_number(row['minimal_detectable'])}; by seed {seeds}"
        )
    return lines


def unfinished_lines(results: Row) -> list[str]:
    """Units that are in no figure, and how far they are."""
    return [
        f"unfinished, in no figure: {arm_label(unit['arm'])} seed {unit['seed']} "
        f"({unit['steps']} steps committed)"
        for unit in results["unfinished"]
    ]


def arm_label(arm: object) -> str:
    """An arm as tables name it."""
    return "Untrained" if arm == "untrained" else method_label(arm)


def _unit_cells(results: Row) -> list[list[str]]:
    return [[arm_label(unit["arm"]), str(unit["seed"]), *_cells(unit)] for unit in results["units"]]


def _mean_cells(results: Row) -> list[list[str]]:
    return [
        [f"{arm_label(row['arm'])}, mean of {len(row['seeds'])}", "", *_cells(row)]
        for row in results["arms"]
    ]


def _reference_cells(results: Row) -> list[list[str]]:
    return [
        [REFERENCE_LABELS.get(row["name"], method_label(row["name"])), "", *_cells(row)]
        for row in results["references"]
    ]


def _signed(value: object) -> str:
    number = finite_number(value)
    return "-" if number is None else f"{number:+.3f}"


def _cells(row: Row) -> list[str]:
    cells = []
    for name in MEASURE_LABELS:
        text = format_number(row.get(name))
        low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
        bounds = f" [{format_number(low)}, {format_number(high)}]" if low is not None else ""
        cells.append(text + bounds)
    return cells


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
