"""Columns of a spreadsheet: what each cell is read as, or how it is refused."""

from datetime import date, datetime, time, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ehr.cohorts.cells import CellParser
from ehr.errors import DataError

READER = CellParser(Path("book.xlsx"))
NAN = float("nan")


def column(*cells: object, name: str = "x") -> pd.Series:
    """Cells of a sheet below its header."""
    index = pd.RangeIndex(2, 2 + len(cells))
    return pd.Series(list(cells), index=index, name=name, dtype="object")


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        ((1, 2.5, -1), [1, 2.5, -1]),
        ((1, None, NAN), [1, NAN, NAN]),
        (("12.3", 4, " 5 ", "-.5", "1e3"), [12.3, 4, 5, -0.5, 1000]),
        ((None, None), [NAN, NAN]),
        (("", " ", "7", "NA", "n/a", "#N/A"), [NAN, NAN, 7, NAN, NAN, NAN]),
    ],
)
def test_numbers_are_read_with_text_that_is_one(cells: tuple, numbers: list[float]):
    assert np.array_equal(READER.numbers(column(*cells)), numbers, equal_nan=True)


@pytest.mark.parametrize(
    "cell",
    [
        "<0.01",
        ">1000",
        "1,5",
        "1,234.5",
        "12.3*",
        "12 mg",
        "61 years",
        "high",
        "inf",
        "#REF!",
        "1_000",
        "0x10",
        "٣",
        True,
        datetime(2020, 1, 27),
        time(9, 30),
        timedelta(days=1),
        float("inf"),
    ],
)
def test_other_cells_are_no_numbers(cell: object):
    with pytest.raises(DataError, match=r"'x' of 'book.xlsx' must hold .*numbers, but rows \[3\]"):
        READER.numbers(column(1, cell, 2.5))


def test_a_refusal_shows_five_values_and_counts_the_rest():
    with pytest.raises(DataError, match=r"rows \[2, 3, 4, 5, 6\] hold \['a', .*'e'\] \(and 2 more"):
        READER.numbers(column(*"abcdefg"))


def test_codes_are_whole_members_of_their_set():
    assert READER.codes(column(1, 2.0, "1"), (1, 2)).tolist() == [1, 2, 1]


@pytest.mark.parametrize("cell", [1.7, 0.99, 3, -1, None, "", "male", True, "1.2"])
def test_other_cells_are_no_codes(cell: object):
    with pytest.raises(DataError, match=r"'gender' .* rows \[3\] hold"):
        READER.codes(column(1, cell, name="gender"), (1, 2))


def test_days_are_those_of_date_cells_and_of_text_with_the_year_first():
    days = READER.days(
        column(datetime(2020, 1, 27, 23, 59), date(2020, 1, 2), "2020-02-03 09:30:00", "2020/2/4")
    )

    assert days.dt.strftime("%Y-%m-%d").tolist() == [
        "2020-01-27",
        "2020-01-02",
        "2020-02-03",
        "2020-02-04",
    ]


def test_a_column_of_date_cells_with_gaps_is_read():
    days = READER.days(column(None, datetime(2020, 1, 27, 12), NAN))

    assert days.isna().tolist() == [True, False, True]
    assert days.iloc[1] == pd.Timestamp(2020, 1, 27)


@pytest.mark.parametrize(
    "cell",
    [
        43857,
        43857.4,
        20200127,
        "43857",
        "20200127",
        "02/01/2020",
        "27/01/2020",
        "01-02-20",
        "27 Jan 2020",
        "Jan 27",
        "2020-27-01",
        "2020-02-30",
        "2020-01-27T09:30:00+08:00",
        "2020",
        "2020-01/27",
        time(9, 30),
        timedelta(days=3),
        True,
        "unknown",
        "2020年1月27日",
    ],
)
def test_what_may_be_another_day_is_no_date(cell: object):
    with pytest.raises(DataError, match=r"'RE_DATE' .* must hold dates .* but rows \[3\] hold \["):
        READER.days(column(datetime(2020, 1, 27), cell, name="RE_DATE"))


@pytest.mark.parametrize("cells", [(43857.4, 43858.1), (20200127, 20200128), ("02/01/2020",) * 2])
def test_a_whole_column_that_is_no_dates_is_refused(cells: tuple):
    with pytest.raises(DataError, match=r"must hold dates .* but rows \[2, 3\] hold"):
        READER.days(column(*cells))


@pytest.mark.parametrize(
    "moment", [datetime(1900, 1, 5), datetime(1970, 1, 1), "1904-01-02", datetime(2999, 1, 1)]
)
def test_days_of_another_century_are_refused(moment: object):
    with pytest.raises(DataError, match=r"must hold dates between 1990 and today, but rows \[3\]"):
        READER.days(column(datetime(2020, 1, 27), moment))


@pytest.mark.parametrize(
    ("cells", "ids"),
    [
        ((1, 2, 10), ["01", "02", "10"]),
        ((1, None, 2.0), ["1", None, "2"]),
        (("000123", "123456"), ["000123", "123456"]),
        (
            ("110101199003071234", "110101199003071235"),
            ["110101199003071234", "110101199003071235"],
        ),
        ((" P1 ", "P2"), ["P1", "P2"]),
        ((7, " 7 ", "12"), ["07", "07", "12"]),
        (("1" * 40 + "2", "1" * 40 + "3"), ["1" * 40 + "2", "1" * 40 + "3"]),
        (("12E4", "5-1"), ["12E4", "5-1"]),
        (("1-11", "11-1", "111"), ["1-11", "11-1", "111"]),
        (("P10", "P1", "P100", "AB-C", "ABC"), ["P10", "P1", "P100", "AB-C", "ABC"]),
        ((), []),
    ],
)
def test_ids_are_those_of_the_file(cells: tuple, ids: list[str | None]):
    found = READER.ids(column(*cells))

    assert [None if pd.isna(each) else each for each in found] == ids


@pytest.mark.parametrize(
    "cell",
    [
        *(1.5, -1, True, datetime(2020, 1, 1), 110101199003071234, 1e17, float("inf")),
        *("1.10101E+17", "4e+5"),
    ],
)
def test_numbers_that_lost_digits_and_other_cells_are_no_ids(cell: object):
    with pytest.raises(DataError, match=r"'PATIENT_ID' .* must hold ids.* but rows \[3\] hold"):
        READER.ids(column(3, cell, name="PATIENT_ID"))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        *(("001", 1), ("001", "1"), ("1.0", 1), ("p7", "P7"), ("P 7", "P  7"), ("1e3", 1000)),
        *(("+5", 5), ("\uff15", 5), ("P\u200b7", "P7"), ("P\uff17", "P7")),
        *(("P 7", "P7"), ("P-7", "P7"), ("p_7", "P/7"), ("P007", "P7"), ("1-07", "1-7")),
    ],
)
def test_ids_that_may_be_one_patient_are_refused(first: object, second: object):
    with pytest.raises(DataError, match=r"row 2 holds .* and row 4 .* may be one patient"):
        READER.ids(column(first, "other", second))
