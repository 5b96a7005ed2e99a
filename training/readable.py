"""Numbers and tables as people read them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
"""One object of `evaluate/results.json`: read from a file, so any value may be missing or odd."""


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


MISSING = "\u2013"
"""What the page shows for a value that is not there."""


def whole(value: object) -> str:
    """The number without decimals, or a dash."""
    return format_number(value, 0, MISSING)


def duration(seconds: float | None) -> str:
    """The time in the units that suit it, or a dash."""
    if seconds is None:
        return MISSING
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 120 else f"{minutes} min {rest} s"


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells as text in columns, the first to the left, a rule below the headings."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return [text[0], "  ".join("-" * width for width in widths), *text[1:]]


def markdown_list(lines: Sequence[str]) -> str:
    """Lines as the points of a Markdown list."""
    return "\n".join(f"- {line}" for line in lines)


def markdown_table(lines: Sequence[Sequence[str]], num_left: int) -> str:
    """Lines of cells as a Markdown table whose first columns are aligned to the left."""
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    rule = [*("---" for _ in range(num_left)), *("---:" for _ in lines[0][num_left:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [escaped[0], rule, *escaped[1:]])
