"""The result table as text: for the terminal and for the documents."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
"""One object of `evaluate/results.json`: read from a file, so any value may be missing or odd."""

LANGUAGE_MODEL_METHODS: dict[str, str] = {
    "vanilla": "Vanilla",
    "think_then_answer": "Think-then-Answer",
    "think_then_answer_json": "Think-then-Answer, JSON",
    "question_decomposition": "Question Decomposition",
    "short_answer": "Short answer",
    "sft": "SFT",
    "stage1": "Stage-1",
    "stage1_grpo": "Stage-1 + GRPO",
    "stage1_dapo": "Stage-1 + DAPO",
    "without_stage1": "w/o Stage-1",
    "without_attention_reward": "w/o R_att",
    "without_adaptive_clip": "w/o adaptive clip",
    "shuffled_salience": "Shuffled salience",
    "rare_features": "Rare features count",
    "eag_rl_selected": "EAG-RL, selected step",
    "eag_rl": "EAG-RL",
}
"""Rows that a language model answers, in the order of the table, with the label of each."""

EHR_MODEL_METHODS: dict[str, str] = {
    "concare": "ConCare",
    "logistic_regression": "Logistic regression",
    "gradient_boosting": "Gradient boosting",
}
"""Rows of models trained on the record itself: what a hospital would use instead."""

TRANSFERRED_METHODS: dict[str, str] = {
    "logistic_regression_shared": "Logistic regression, shared features",
    "gradient_boosting_shared": "Gradient boosting, shared features",
}
"""Rows on another test cohort: trained on the features that both cohorts record."""

METHOD_LABELS: dict[str, str] = LANGUAGE_MODEL_METHODS | EHR_MODEL_METHODS | TRANSFERRED_METHODS

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


def finite_number(value: object) -> float | None:
    """The value as a float, or None where it is no finite number."""
    if isinstance(value, bool) or value is None or isinstance(value, str | bytes):
        return None
    try:
        number = float(value)  # pyright: ignore[reportArgumentType]  # numpy scalars included
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def format_number(value: object, digits: int = 3, missing: str = "-") -> str:
    """The value with `digits` decimals and thousands separators, or `missing`."""
    number = finite_number(value)
    return missing if number is None else f"{number:,.{digits}f}"


def format_percentage(value: object, missing: str = "-") -> str:
    """A fraction as a percentage with one decimal, or `missing`."""
    number = finite_number(value)
    return missing if number is None else f"{100 * number:.1f} %"


def format_interval(row: Row, metric: str, missing: str = "-") -> str:
    """`0.712 [0.511, 0.893]`, without the brackets where a bound is missing."""
    point = format_number(row.get(metric), missing=missing)
    low, high = finite_number(row.get(f"{metric}_low")), finite_number(row.get(f"{metric}_high"))
    if point == missing or low is None or high is None:
        return point
    return f"{point} [{low:.3f}, {high:.3f}]"


def method_label(method: object) -> str:
    """What the tables call a method; a method without an entry keeps its name."""
    return METHOD_LABELS.get(str(method), str(method))


def row_label(row: Row) -> str:
    """What the tables call a row."""
    return str(row.get("label") or method_label(row.get("method", "-")))


def ordered_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows in the order of the method tables; methods without an entry come last."""
    order = {name: index for index, name in enumerate(METHOD_LABELS)}
    return sorted(rows, key=lambda row: order.get(str(row.get("method")), len(order)))


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
    return aligned([ORDER_COLUMNS, *cells])


def result_table(rows: Sequence[Row]) -> str:
    """The rows as aligned plain text, for the terminal."""
    return aligned([list(COLUMNS), *(table_cells(row) for row in table_rows(rows))])


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, headings first, as columns of plain text: the first to the left."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rule = "  ".join("-" * width for width in widths)
    text = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([text[0], rule, *text[1:]])


def result_markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, for the documents."""
    lines = [list(COLUMNS), *(table_cells(row) for row in table_rows(rows))]
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    rule = ["---", *("---:" for _ in COLUMNS[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [escaped[0], rule, *escaped[1:]])
