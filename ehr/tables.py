"""Parts of tables under the types that they have.

pandas annotates what it selects as a union that holds arrays and scalars too. These functions say,
and check, that a selection of rows is a table and one of cells a column. A mask may be a column or
a list, and is not annotated: what pandas says of comparisons is a union too.
"""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import pandas as pd


def rows(table: pd.DataFrame, is_wanted: Any) -> pd.DataFrame:
    """The rows of a mask."""
    found = table[is_wanted]
    assert isinstance(found, pd.DataFrame)
    return found


def columns(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Columns as a table of their own, in the order of the names."""
    found = table[list(names)]
    assert isinstance(found, pd.DataFrame)
    return found


def column(table: pd.DataFrame, name: Hashable) -> pd.Series:
    """One column."""
    found = table[name]
    assert isinstance(found, pd.Series)
    return found


def cells(of: pd.Series, is_wanted: Any) -> pd.Series:
    """The cells of a mask."""
    found = of[is_wanted]
    assert isinstance(found, pd.Series)
    return found


def labels_where(is_wanted: pd.Series) -> pd.Index:
    """Labels of the rows where a mask is true."""
    return cells(is_wanted, is_wanted).index


def groups(table: pd.DataFrame, level: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Rows of each value of an index level that holds texts, in the order of the texts."""
    for name, of_name in table.groupby(level=level, sort=True):
        assert isinstance(name, str)
        yield name, of_name


def is_missing(cell: object) -> bool:
    """Whether one cell is NaN, NaT, NA or None."""
    return pd.isna(cell) is True  # pyright: ignore[reportCallIssue, reportArgumentType] any object
