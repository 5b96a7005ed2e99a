"""The one table of an Excel workbook, with its columns found by name.

Cells stay as the file holds them (`ehr.cohorts.cells` reads them), and the index is the row that
the spreadsheet shows, so that errors can name it.
"""

import re
import unicodedata
import zipfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from openpyxl import load_workbook
from openpyxl.utils import column_index_from_string, get_column_letter
from openpyxl.worksheet._read_only import ReadOnlyWorksheet

from ehr.errors import DataError
from ehr.tables import is_missing

_OLD_OR_LOCKED = bytes.fromhex("d0cf11e0a1b11ae1")
"""First bytes of .xls, and of a workbook that a password protects."""

_RENAMED = re.compile(r"(.+?)\s*(?:[._]\d+|\(\d+\))")
"""How programs write the second column of a name: `x.1`, `x_1`, `x (2)`."""

_FORMULA = re.compile(rb"<(?:\w+:)?f[ />]")

_UNCALCULATED = re.compile(
    rb"<(?:\w+:)?c\b([^>]*)>\s*<(?:\w+:)?f\b[^>]*(?:/>|>[^<]*</(?:\w+:)?f>)\s*"
    rb"(?:<(?:\w+:)?v\s*/>|<(?:\w+:)?v>\s*</(?:\w+:)?v>)?\s*</(?:\w+:)?c>"
)
"""A cell with a formula whose result no program has stored: it would be read as an empty one.
Programs differ in prefixes, quotes and the order of attributes."""

_IS_TEXT = re.compile(rb"\bt=[\"']str[\"']")
"""Of a cell's attributes: the result is a text, which may be empty."""

_ADDRESS = re.compile(rb"\br=[\"']([A-Z]+\d+)[\"']")

_STYLES = "xl/styles.xml"

_PERCENT = re.compile(rb"numFmtId=[\"'](?:9|10)[\"']|formatCode=(?:\"[^\"]*%|'[^']*%)")
"""In the styles: the two percent formats that every program knows, or one of the file's own."""

_MERGED = re.compile(
    rb"<(?:\w+:)?mergeCell\b[^>]*\bref=[\"']([A-Z]+)(\d+):([A-Z]+)(\d+)[\"']", re.ASCII
)

_NUM_ROWS_OF_OTHERS = 20
"""Of another sheet, where a title may stand above its table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Book:
    rows: list[tuple[Any, ...]]
    """Of the first sheet."""
    others: dict[str, list[tuple[Any, ...]]]
    """The first rows of each other sheet, by its name."""
    merged: list[tuple[int, int, int, int]]
    """First and last column, first and last row of each cell of the first sheet that covers more
    than one, from 1."""
    percents: list[tuple[int, int]]
    """Column and row of each number of the first sheet that is shown as percent, from 1."""


def read_table(
    path: Path, columns: Sequence[str], advice: str, carried: Collection[str] = ()
) -> pd.DataFrame:
    """The rows of a workbook's first sheet below its header, with at least the given columns.

    Names in the file may differ from `columns` in blanks, case and width. Rows without any
    cell are left out; what else the sheet holds stays under its own names.

    Args:
        path: of the workbook.
        columns: those that must be there, each once.
        advice: what to do about a file that is another, for errors.
        carried: those of them whose value the caller carries down over empty cells, so that a cell
            may be merged with those below it.

    Raises:
        DataError: if the file is no workbook, a column is not there or there twice, another sheet
            has records too, a formula has no result, or a cell of these columns is merged with
            others or shown as percent.
    """
    book = _read(path, advice)
    _refuse_records_elsewhere(path, book, columns, advice)
    header = [_clean(name) for name in book.rows[0]] if book.rows else []
    names = _named(path, header, columns, advice)
    _refuse_merged(path, book, names, columns, carried)
    _refuse_percents(path, book, names, columns)
    table = pd.DataFrame(book.rows, dtype="object").iloc[1:].copy()
    table.columns = names
    table.index = pd.RangeIndex(2, 2 + len(table))  # row 1 of a sheet is its header
    return table.dropna(how="all")


def _read(path: Path, advice: str) -> _Book:
    try:
        with path.open("rb") as file:
            if file.read(len(_OLD_OR_LOCKED)) == _OLD_OR_LOCKED:
                raise ValueError("an .xls file, or one with a password; save it as plain .xlsx")
        # Not by pandas, which makes the text 000123 the number 123, and an error like #VALUE! (what
        # a spreadsheet shows for 20200127 as a date) a cell that is empty.
        book = load_workbook(path, read_only=True, data_only=True, keep_links=False)
        try:
            sheets = list(book)
            if not sheets:
                raise ValueError(
                    "no sheet that can be read (Strict Open XML?); save it as plain .xlsx"
                )
            first, *others = sheets
            with zipfile.ZipFile(path) as parts:
                uncalculated = _uncalculated(parts)
                merged = _merged(parts, first)
                has_percents = _may_have_percents(parts)
            found = _Book(
                rows=_rows(first, None),
                others={each.title: _rows(each, _NUM_ROWS_OF_OTHERS) for each in others},
                merged=merged,
                percents=_percents(first) if has_percents else [],
            )
        finally:
            book.close()
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
    return found


def _uncalculated(parts: zipfile.ZipFile) -> str | None:
    """A cell with a formula and no result, on any sheet."""
    for name in parts.namelist():
        if not (name.startswith("xl/worksheets/") and name.endswith(".xml")):
            continue
        text = parts.read(name)
        for cell in _UNCALCULATED.finditer(text) if _FORMULA.search(text) else ():
            if not _IS_TEXT.search(cell[1]):
                address = _ADDRESS.search(cell[1])
                return "?" if address is None else address[1].decode()
    return None


def _merged(parts: zipfile.ZipFile, sheet: Any) -> list[tuple[int, int, int, int]]:
    if not isinstance(sheet, ReadOnlyWorksheet):
        return []
    # openpyxl has no public name for where in the file a sheet stands, and its stubs no private one
    place = sheet._worksheet_path  # pyright: ignore[reportAttributeAccessIssue]
    found = _MERGED.findall(parts.read(place))
    return [
        (
            column_index_from_string(left.decode()),
            column_index_from_string(right.decode()),
            int(top),
            int(bottom),
        )
        for left, top, right, bottom in found
    ]


def _may_have_percents(parts: zipfile.ZipFile) -> bool:
    """Whether any style of the workbook is percent; asking every cell takes time."""
    return _STYLES not in parts.namelist() or bool(_PERCENT.search(parts.read(_STYLES)))


def _percents(sheet: Any) -> list[tuple[int, int]]:
    if not isinstance(sheet, ReadOnlyWorksheet):
        return []
    sheet.reset_dimensions()
    return [
        (cell.column, cell.row)
        for row in sheet.iter_rows()
        for cell in row
        if isinstance(cell.value, int | float) and "%" in cell.number_format
        if cell.column is not None and cell.row is not None
    ]


def _rows(sheet: Any, most: int | None) -> list[tuple[Any, ...]]:
    if not isinstance(sheet, ReadOnlyWorksheet):
        return []  # a sheet with a chart only
    sheet.reset_dimensions()  # some programs write another size than the sheet has
    return list(sheet.iter_rows(max_row=most, values_only=True))


def _refuse_records_elsewhere(path: Path, book: _Book, columns: Sequence[str], advice: str) -> None:
    for sheet, rows in book.others.items():
        for row in rows:
            header = {_key(_clean(name)) for name in row}
            num_named = sum(_key(name) in header for name in columns)
            if 2 * num_named >= len(columns):
                found = "the same columns" if num_named == len(columns) else "most of its columns"
            elif _is_record(row):
                found = "rows like records"
            else:
                continue
            raise DataError(
                f"{str(path)!r} must hold all records on its first sheet, but sheet {sheet!r} has "
                f"{found}. Put the records on one sheet, or remove the other. {advice}"
            )


def _is_record(row: tuple[Any, ...]) -> bool:
    """Whether a row may be one of a table of records without its header, or with another."""
    numbers = [cell for cell in row if isinstance(cell, int | float)]
    return len(numbers) >= 3 and sum(isinstance(cell, datetime) for cell in row) >= 2


def _refuse_merged(
    path: Path,
    book: _Book,
    names: list[str],
    columns: Sequence[str],
    carried: Collection[str],
) -> None:
    for left, right, top, bottom in sorted(book.merged, key=lambda area: (area[2], area[0])):
        covered = [name for name in names[left - 1 : right] if name in columns]
        is_carried = left == right and covered and covered[0] in carried
        if covered and not is_carried:
            raise DataError(
                f"{str(path)!r} must have a cell of its own in every row of column {covered[0]!r}, "
                f"but {get_column_letter(left)}{top} to {get_column_letter(right)}{bottom} are "
                "merged, and only the first of them holds the value. Unmerge them, and write the "
                "value into each cell that it belongs to."
            )


def _refuse_percents(path: Path, book: _Book, names: list[str], columns: Sequence[str]) -> None:
    found = [
        (names[column - 1], f"{get_column_letter(column)}{row}")
        for column, row in book.percents
        if row > 1 and column <= len(names) and names[column - 1] in columns
    ]
    if found:
        raise DataError(
            f"column {found[0][0]!r} of {str(path)!r} must hold plain numbers, but {len(found)} "
            f"cells, such as {[cell for _, cell in found[:5]]}, are shown as percent: a cell that "
            "shows 45 % holds 0.45. Write 45 there, in the format of plain numbers."
        )


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


def _clean(name: object) -> str:
    return "" if is_missing(name) else " ".join(str(name).split())


def _key(name: str) -> str:
    return "".join(unicodedata.normalize("NFKC", name).split()).casefold()
