"""The one table of an Excel workbook, with its columns found by name.

Cells stay as the file holds them (`ehr.cells` reads them), and the index is the row that the
spreadsheet shows, so that errors can name it.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportGeneralTypeIssues=false

import re
import unicodedata
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from openpyxl import load_workbook
from openpyxl.worksheet._read_only import ReadOnlyWorksheet

from ehr.errors import DataError

_OLD_OR_LOCKED = bytes.fromhex("d0cf11e0a1b11ae1")
"""First bytes of .xls, and of a workbook that a password protects."""

_RENAMED = re.compile(r"(.+?)\s*(?:[._]\d+|\(\d+\))")
"""How programs write the second column of a name: `x.1`, `x_1`, `x (2)`."""

_UNCALCULATED = re.compile(
    rb"<c r=\"([A-Z]+\d+)\"(?:(?! t=\"str\")[^>])*>"
    rb"<f[^>]*(?:/>|>[^<]*</f>)(?:<v ?/>|<v></v>)?</c>"
)
"""A cell with a formula whose result no program has stored: it would be read as an empty one. A
result of type `str` may be an empty text."""


def read_table(path: Path, columns: Sequence[str], advice: str) -> pd.DataFrame:
    """The rows of a workbook's first sheet below its header, with at least the given columns.

    Names in the file may differ from `columns` in blanks, case and width. Rows without any
    cell are left out; what else the sheet holds stays under its own names.

    Args:
        path: of the workbook.
        columns: those that must be there, each once.
        advice: what to do about a file that is another, for errors.

    Raises:
        DataError: if the file is no workbook, a column is not there or there twice, or another
            sheet has the same table again, or a formula has no result.
    """
    first, others = _sheets(path, advice)
    header = [_clean(name) for name in first.iloc[0]] if len(first) else []
    names = _named(path, header, columns, advice)
    if more := [sheet for sheet, head in others.items() if _has_all(head, columns)]:
        raise DataError(
            f"{str(path)!r} must hold all records on its first sheet, but sheet {more[0]!r} has "
            f"the same columns. Put the records on one sheet, or remove the other. {advice}"
        )
    table = first.iloc[1:].copy()
    table.columns = names
    table.index = pd.RangeIndex(2, 2 + len(table))  # row 1 of a sheet is its header
    return table.dropna(how="all")


def _sheets(path: Path, advice: str) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """Cells of the first sheet, and the first row of each other one by its name."""
    try:
        with path.open("rb") as file:
            if file.read(len(_OLD_OR_LOCKED)) == _OLD_OR_LOCKED:
                raise ValueError("an .xls file, or one with a password; save it as plain .xlsx")
        # Not by pandas, which makes the text 000123 the number 123, and an error like #VALUE! (what
        # a spreadsheet shows for 20200127 as a date) a cell that is empty.
        book = load_workbook(path, read_only=True, data_only=True, keep_links=False)
        try:
            cells = [_rows(sheet, None if place == 0 else 1) for place, sheet in enumerate(book)]
            names = book.sheetnames
        finally:
            book.close()
        uncalculated = _uncalculated(path)
    # The readers of zip and xml below raise errors of their own for files that are no workbook.
    except Exception as error:
        raise DataError(
            f"{str(path)!r} must be an Excel workbook, but cannot be read: "
            f"{type(error).__name__}: {error}. {advice}"
        ) from error
    if uncalculated is not None:
        raise DataError(
            f"{str(path)!r} must hold values, but cell {uncalculated} has a formula without its "
            "result. Open the file in a spreadsheet program and save it there, or replace formulas "
            "by their values."
        )
    heads = {
        name: [_clean(cell) for cell in rows[0]]
        for name, rows in zip(names[1:], cells[1:], strict=True)
        if rows
    }
    return pd.DataFrame(cells[0], dtype="object"), heads


def _uncalculated(path: Path) -> str | None:
    """A cell with a formula and no result, on any sheet."""
    with zipfile.ZipFile(path) as parts:
        for name in parts.namelist():
            if name.startswith("xl/worksheets/") and name.endswith(".xml"):
                text = parts.read(name)
                if b"<f" in text and (found := _UNCALCULATED.search(text)):
                    return found[1].decode()
    return None


def _rows(sheet: Any, most: int | None) -> list[tuple[Any, ...]]:
    if not isinstance(sheet, ReadOnlyWorksheet):
        return []  # a sheet with a chart only
    sheet.reset_dimensions()  # some programs write another size than the sheet has
    return list(sheet.iter_rows(max_row=most, values_only=True))


def _named(path: Path, header: list[str], columns: Sequence[str], advice: str) -> list[str]:
    """The header with the names of `columns` where it has them."""
    places: dict[str, list[str]] = {_key(name): [] for name in columns}
    for name in header:
        renamed = _RENAMED.fullmatch(name)
        key = _key(name)
        if key not in places and renamed is not None:
            key = _key(renamed[1])
        if key in places:
            places[key].append(name)
    if missing := [name for name in columns if not places[_key(name)]]:
        raise DataError(
            f"{str(path)!r} lacks {len(missing)} of its {len(columns)} columns: {missing[:5]}. "
            f"{advice}"
        )
    for name in columns:
        if len(found := places[_key(name)]) > 1:
            raise DataError(
                f"{str(path)!r} must have one column {name!r}, but has {len(found)}: {found[:5]}. "
                "Remove all but the right one."
            )
    wanted = {_key(name): name for name in columns}
    return [wanted.get(_key(name), name) for name in header]


def _has_all(header: list[str], columns: Sequence[str]) -> bool:
    return {_key(name) for name in columns} <= {_key(name) for name in header}


def _clean(name: object) -> str:
    return "" if pd.isna(name) else " ".join(str(name).split())


def _key(name: str) -> str:
    return "".join(unicodedata.normalize("NFKC", name).split()).casefold()
