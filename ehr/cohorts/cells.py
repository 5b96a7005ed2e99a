"""Columns of a spreadsheet as numbers, days, codes and ids: the right value, or an error.

A column has `dtype=object`: each cell is what the file holds (a number, a date, a text, a truth
value) or missing, and the index is the row that the spreadsheet shows. A cell
that can be read in two ways is refused by column, row and value. The common case, a column of one
kind, costs no loop over cells.
"""

import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Context, Decimal, InvalidOperation
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd
from pandas.api.typing import NaTType

from ehr import tables
from ehr.errors import DataError

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)

_DAY = re.compile(
    r"(\d{4})([-/])(\d{1,2})\2(\d{1,2})([T ]\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?)?", re.ASCII
)
"""Year first: nobody writes the day before the month behind it."""

_MOST_DIGITS = 15
"""A spreadsheet keeps 15 digits of a number: those of a longer id are lost, and ids become one."""

_PLAIN_ID = re.compile(r"0|[1-9]\d{,14}", re.ASCII)

_EXACT = Context(prec=1000)

_RUN = re.compile(r"\d+|[^\W\d_]+")
"""Of an id: its numbers and its words, whatever stands between them."""

_SHORTENED_ID = re.compile(r"\d(\.\d+)?[eE]\+\d+", re.ASCII)
"""4.20116E+17 is how a spreadsheet writes a long number into a text file: its digits are lost."""

_NOT_AVAILABLE = frozenset({"", "#n/a", "n/a", "na", "nan", "null", "none"})
"""Text, in any case, that says a cell is empty."""

_EARLIEST = pd.Timestamp(1990, 1, 1)
"""Of a day. A number that is taken for a date lands in 1900, 1904 or 1970."""

DAYS_WANTED = "dates (date cells, or text like 2020-01-27)"


@dataclass(frozen=True, slots=True)
class CellParser:
    """Reads columns of one file; its errors name the file.

    Args:
        path: of the file, for errors.
    """

    path: Path

    def numbers(self, column: pd.Series) -> pd.Series:
        """Finite numbers; NaN where a cell is missing. Text counts where it is a plain number.

        Raises:
            DataError: for any other cell: truth values, dates, "<0.01", "1,5".
        """
        cells = without_blanks(column)
        kind = pd.api.types.infer_dtype(cells, skipna=True)
        if kind not in ("integer", "floating", "mixed-integer-float", "empty"):
            found = cells.map(_number)
            self.refuse(tables.cells(cells, found.isna() & cells.notna()), "numbers")
            cells = found
        values = cells.astype("float64")
        self.refuse(tables.cells(cells, np.isinf(values)), "finite numbers")
        return values

    def codes(self, column: pd.Series, allowed: Collection[int]) -> pd.Series:
        """Integers of a closed set; a missing cell is refused too.

        Raises:
            DataError: for a cell that is none of them, 1.7 included.
        """
        values = self.numbers(column)
        self.refuse(
            tables.cells(column, ~values.isin(list(allowed))),
            f"one of {sorted(allowed)} in every row",
        )
        return values.astype("int64")

    def days(self, column: pd.Series) -> pd.Series:
        """Days (midnight); NaT where a cell is missing.

        Raises:
            DataError: for numbers (a serial number means another day in each date system, 20200127
                none at all), text that is not year-month-day, times with a zone, days before 1990
                or after tomorrow.
        """
        cells = without_blanks(column)
        if pd.api.types.infer_dtype(cells, skipna=True) not in ("datetime", "datetime64", "empty"):
            found = cells.map(_moment)
            self.refuse(tables.cells(cells, found.isna() & cells.notna()), DAYS_WANTED)
            cells = found
        days = pd.to_datetime(cells, errors="coerce").dt.normalize()
        self.refuse(tables.cells(cells, days.isna() & cells.notna()), DAYS_WANTED)
        # A day's slack: the clock of the machine may be a zone behind the one that wrote the file.
        is_strange = (days < _EARLIEST) | (days > pd.Timestamp.now() + pd.Timedelta(days=1))
        self.refuse(tables.cells(column, is_strange), f"dates between {_EARLIEST.year} and today")
        return days

    def ids(self, column: pd.Series) -> pd.Series:
        """Ids as text, each as the file has it without blanks around; missing cells stay missing.

        Where all ids are whole numbers without zeros at the front, as numbers or as text, they are
        padded with zeros to one width: sorting them as text sorts them as numbers. Other text ids
        stay as they are, zeros at their front included.

        Raises:
            DataError: for a number with a fraction, below 0 or of more than 15 digits, also as the
                text "4.2E+17", a date or a truth value, and for two ids that differ in case, in
                characters nobody sees, in blanks and marks between words and numbers, in zeros
                before a number or as texts of one number only: they may be one patient, or two.
        """
        cells = without_blanks(column)
        present = tables.cells(cells, cells.notna())
        unique = dict.fromkeys(zip(map(type, present), present, strict=True))
        text_of = {key: _id_text(key[1]) for key in unique}
        if wrong := {key for key, text in text_of.items() if text is None}:
            is_wrong = [key in wrong for key in zip(map(type, present), present, strict=True)]
            self.refuse(
                tables.cells(present, is_wrong),
                f"ids: text, or whole numbers of at most {_MOST_DIGITS} digits",
            )
        if all(_PLAIN_ID.fullmatch(text or "") for text in text_of.values()):
            width = max((len(text or "") for text in text_of.values()), default=0)
            text_of = {key: (text or "").zfill(width) for key, text in text_of.items()}
        texts = [text_of[key] for key in zip(map(type, present), present, strict=True)]
        ids = pd.Series(texts, index=present.index, dtype="object", name=column.name)
        self._refuse_ids_that_may_be_one(ids)
        return ids.reindex(column.index)

    def _refuse_ids_that_may_be_one(self, ids: pd.Series) -> None:
        first: dict[str, str] = {}
        for patient in dict.fromkeys(ids):
            other = first.setdefault(_alike(patient), patient)
            if other != patient:
                rows = [int(tables.labels_where(ids == each)[0]) for each in (other, patient)]
                raise DataError(
                    f"column {str(ids.name)!r} of {str(self.path)!r} must write each patient in "
                    f"one way, but row {rows[0]} holds {other!r} and row {rows[1]} {patient!r}, "
                    "which may be one patient. Write them alike, or as ids that differ."
                )

    def refuse(self, wrong: pd.Series, expected: str) -> None:
        """Nothing, if `wrong` is empty.

        Args:
            wrong: cells that are not as expected, with their rows as index.
            expected: what the column must hold.

        Raises:
            DataError: naming the column and the first rows with their values.
        """
        if not wrong.empty:
            self._raise(wrong, expected)

    def _raise(self, wrong: pd.Series, expected: str) -> NoReturn:
        rows = [int(index) for index in wrong.index[:5]]
        values = [_shown(cell) for cell in wrong.head(5)]
        more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
        raise DataError(
            f"column {str(wrong.name)!r} of {str(self.path)!r} must hold {expected}, but rows "
            f"{rows} hold [{', '.join(values)}]{more}. Correct these cells, or give the published "
            "file."
        )


def without_blanks(column: pd.Series) -> pd.Series:
    """The column with text stripped of blanks around it, and what says "not available" missing."""
    if pd.api.types.infer_dtype(column, skipna=True) not in ("string", "mixed", "mixed-integer"):
        return column
    return column.map(_without_blanks)


def _without_blanks(cell: object) -> object:
    if not isinstance(cell, str):
        return cell
    text = cell.strip()
    return None if text.lower() in _NOT_AVAILABLE else text


def _number(cell: object) -> float | None:
    if isinstance(cell, bool):
        return None
    if isinstance(cell, int | float):
        return float(cell)
    if isinstance(cell, str) and _NUMBER.fullmatch(cell):
        return float(cell)
    return None


def _moment(cell: object) -> pd.Timestamp | NaTType | None:
    if isinstance(cell, str) and _DAY.fullmatch(cell):
        try:
            return pd.Timestamp(cell.replace("/", "-"))
        except ValueError:
            return None
    if isinstance(cell, datetime | date) and getattr(cell, "tzinfo", None) is None:
        return pd.Timestamp(cell)
    return None


def _id_text(cell: object) -> str | None:
    if isinstance(cell, str):
        return None if _SHORTENED_ID.fullmatch(cell) else cell
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return None
    if not 0 <= cell < 10**_MOST_DIGITS or cell != int(cell):
        return None
    return str(int(cell))


def _alike(patient: str) -> str:
    """What ids that may be one patient have in common."""
    plain = unicodedata.normalize("NFKC", patient)
    plain = "".join(each for each in plain if unicodedata.category(each) != "Cf")
    try:
        number = Decimal(plain)
    except InvalidOperation:
        # "P-07" and "p7" too; but not "1-11" and "11-1".
        runs = [each.lstrip("0") or "0" for each in _RUN.findall(plain.casefold())]
        return " ".join(runs) or plain.casefold()
    # Without a limit of digits that would make long ids one; an exponent is not written out.
    return str(number.normalize(_EXACT)) if number.is_finite() else plain.casefold()


def _shown(cell: object) -> str:
    if tables.is_missing(cell):
        return "nothing"
    if isinstance(cell, datetime):
        return str(cell)
    return repr(cell)
