"""The result table as text: for the terminal and for the documents."""

from collections.abc import Mapping, Sequence

from training.evaluation.methods import (
    method_label,
    ordered_rows,
    row_label,
)
from training.readable import (
    Row,
    aligned,
    format_interval,
    format_number,
    format_percentage,
)

COLUMNS: tuple[str, ...] = (
    "Method",
    "AUROC [95 %]",
    "AUPRC [95 %]",
    "Brier",
    "ECE",
    "Unreadable",
    "R_att",
    "Excess",
    "n",
)
"""Headings; `Unreadable` is the parse failure rate, `Excess` R_att above the best constant set."""


GROUNDING_COLUMNS: tuple[str, ...] = (
    "Method",
    "Checked claims",
    "Wrong claims",
    "Error rate",
    "Unsupported numbers",
)
"""Headings of the table that says how answers agree with the record."""

FAITHFULNESS_COLUMNS: tuple[str, ...] = (
    "Method",
    "Named deleted",
    "Unnamed deleted",
    "Difference [95 %]",
    "Named more",
    "Equal",
    "Patients",
    "Not judged",
)
"""Headings of the table that says whether answers hang on the features they name."""

ORDER_MEASURES: tuple[str, ...] = ("auroc", "auprc", "parse_failure_rate", "reward_att")
"""What is averaged over the seeds of an order of features."""

ORDER_COLUMNS: tuple[str, ...] = (
    "Method",
    "Features moved",
    "Seeds",
    "AUROC",
    "AUPRC",
    "Unreadable",
    "R_att",
)
"""Headings of the table of other orders of the features (EXP#2)."""


def table_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows of the printed table, in order.

    An EHR model answers every test patient; where a row also says how it does on the language
    model's patients only (`same_patients`), that becomes a row below it: the fair comparison.
    """
    shown: list[Row] = []
    for row in ordered_rows(rows):
        shown.append(row)
        same = row.get("same_patients")
        if isinstance(same, Mapping):
            label = f"{method_label(row.get('method'))}, same patients"
            shown.append({**same, "method": row.get("method"), "label": label})
    return shown


def table_cells(row: Row, missing: str = "-") -> list[str]:
    """One row's cells in the order of `COLUMNS`."""
    return [
        row_label(row),
        format_interval(row, "auroc", missing),
        format_interval(row, "auprc", missing),
        format_number(row.get("brier"), missing=missing),
        format_number(row.get("ece"), missing=missing),
        format_percentage(row.get("parse_failure_rate"), missing),
        format_number(row.get("reward_att"), missing=missing),
        format_number(row.get("reward_att_excess"), missing=missing),
        format_number(row.get("n"), 0, missing),
    ]


def grounding_cells(row: Row, missing: str = "-") -> list[str]:
    """One row's cells in the order of `GROUNDING_COLUMNS`."""
    return [
        row_label(row),
        format_number(row.get("num_checked_claims"), 0, missing),
        format_number(row.get("num_wrong_claims"), 0, missing),
        format_percentage(row.get("grounding_error_rate"), missing),
        format_number(row.get("num_unsupported_numbers"), 0, missing),
    ]


def faithfulness_cells(row: Row, missing: str = "-") -> list[str]:
    """One row's cells in the order of `FAITHFULNESS_COLUMNS`."""
    found = row.get("faithfulness")
    summary: Row = found if isinstance(found, Mapping) else {}
    reasons = summary.get("unjudged")
    counts = [
        f"{format_number(count, 0, missing)}: {reason}"
        for reason, count in (reasons.items() if isinstance(reasons, Mapping) else ())
    ]
    return [
        row_label(row),
        format_number(summary.get("named_change"), missing=missing),
        format_number(summary.get("unnamed_change"), missing=missing),
        format_interval(summary, "difference", missing),
        format_percentage(summary.get("share_named_more"), missing),
        format_percentage(summary.get("share_equal"), missing),
        format_number(summary.get("num_judged"), 0, missing),
        "; ".join(counts) or missing,
    ]


def order_cells(row: Row, num_features: object, missing: str = "-") -> list[str]:
    """One row's cells in the order of `ORDER_COLUMNS`: means over seeds with their deviations."""

    def over_seeds(name: str) -> str:
        mean, deviation = row.get(name), format_number(row.get(f"{name}_sd"), missing="")
        text = format_number(mean, missing=missing)
        return f"{text} +- {deviation}" if deviation else text

    moved = format_number(row.get("moved_features"), 0, missing)
    share = format_number(row.get("share"), 2, missing)
    return [
        row_label(row),
        f"{moved} of {format_number(num_features, 0, missing)} (p = {share})",
        format_number(row.get("num_seeds"), 0, missing),
        *(over_seeds(name) for name in ORDER_MEASURES),
    ]


def order_table(found: Row) -> str:
    """The means over seeds of `evaluate/feature_order.json` as aligned plain text."""
    cells = [order_cells(row, found.get("num_features")) for row in found.get("means", ())]
    return "\n".join(aligned([ORDER_COLUMNS, *cells]))


def result_table(rows: Sequence[Row]) -> str:
    """The rows as aligned plain text, for the terminal."""
    lines = [list(COLUMNS), *(table_cells(row) for row in table_rows(rows))]
    return "\n".join(aligned(lines))


def result_markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, for the documents."""
    lines = [list(COLUMNS), *(table_cells(row) for row in table_rows(rows))]
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    rule = ["---", *("---:" for _ in COLUMNS[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [escaped[0], rule, *escaped[1:]])
