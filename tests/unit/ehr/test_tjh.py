import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from openpyxl import Workbook, load_workbook
from openpyxl.xml.constants import REL_NS, SHEET_MAIN_NS

from ehr.catalogue import TJH_LABS
from ehr.cohorts.cohort import (
    Cohort,
    Sex,
    cohort_hash,
    summary,
)
from ehr.cohorts.loaders import build_cohort
from ehr.cohorts.tjh import FILE_NAME
from ehr.config import CohortSection, Task
from ehr.errors import DataError

BESIDE_CHECKOUT = Path(__file__).parents[4] / "shared" / "data" / "tjh"
PUBLISHED = Path(os.environ.get("EAG_RL_TJH", BESIDE_CHECKOUT))
NUM_PATIENTS = 24


def small_table() -> pd.DataFrame:
    """24 patients with two records each on 1 and 3 February; ids and times as the workbook has."""
    rows = []
    for patient in range(1, NUM_PATIENTS + 1):
        for record, day in enumerate((1, 3)):
            rows.append(
                {
                    "PATIENT_ID": patient if record == 0 else None,
                    "RE_DATE": pd.Timestamp(2020, 2, day, 9, 30),
                    "age": 40 + patient,
                    "gender": 1 + patient % 2,
                    "Admission time": pd.Timestamp(2020, 1, 31, 15),
                    "Discharge time": pd.Timestamp(2020, 2, 4, 10),
                    "outcome": int(patient > NUM_PATIENTS // 2),
                    "hemoglobin": 100.0 + patient,
                    "2019-nCoV nucleic acid detection": -1,
                }
            )
    table = pd.DataFrame(rows)
    labs = [lab.name for lab in TJH_LABS if lab.name != "hemoglobin"]
    table = pd.concat([table, pd.DataFrame(np.nan, index=table.index, columns=labs)], axis=1)
    # The workbook ends some of its names in a blank.
    return table.rename(columns={"platelet large cell ratio": "platelet large cell ratio "})


def few_records() -> pd.DataFrame:
    """Three patients: enough where they are refused before any split, and quick to write."""
    return small_table().head(6)


def load_table(table: pd.DataFrame, folder: Path, **options: object) -> Cohort:
    table.to_excel(folder / FILE_NAME, index=False)
    return build_cohort(
        CohortSection.model_validate({"source": "tjh", "path": str(folder), **options})
    )


def test_a_visit_is_the_mean_of_a_day(tmp_path: Path):
    table = small_table()
    table.loc[1, "RE_DATE"] = pd.Timestamp(2020, 2, 1, 23, 59)
    table.loc[1, "hemoglobin"] = 121.0

    case = load_table(table, tmp_path).cases["01"]

    assert case.visit_labels == ("2020-02-01",)
    assert case.values[0, 1] == (101.0 + 121.0) / 2


def test_background_labels_and_days_are_read(tmp_path: Path):
    cohort = load_table(small_table(), tmp_path)

    assert (cohort.cases["01"].sex, cohort.cases["02"].sex) == (Sex.FEMALE, Sex.MALE)
    assert cohort.cases["07"].age == 47
    assert (cohort.labels["12"], cohort.labels["13"]) == (0, 1)
    assert cohort.cases["01"].visit_days == (0.0, 2.0)
    assert cohort.has_dates


def test_discharge_time_is_in_no_feature_and_no_case(tmp_path: Path):
    longer = small_table()
    longer["Discharge time"] += pd.Timedelta(days=9)
    (tmp_path / "longer").mkdir()

    cohort = load_table(small_table(), tmp_path)

    assert cohort_hash(load_table(longer, tmp_path / "longer")) == cohort_hash(cohort)


def test_rows_without_a_date_are_dropped_and_counted(tmp_path: Path):
    table = small_table()
    table.loc[[0, 1, 2], "RE_DATE"] = pd.NaT

    cohort = load_table(table, tmp_path)

    assert "01" not in cohort.cases
    assert cohort.dropped["records_without_date"] == 3
    assert cohort.dropped["patients_without_dated_record"] == 1


def test_negative_values_are_missing_and_counted(tmp_path: Path):
    table = small_table()
    table.loc[0, "hemoglobin"] = -1

    cohort = load_table(table, tmp_path)

    assert np.isnan(cohort.cases["01"].values[0]).all()
    assert cohort.dropped["negative_values"] == 1


def test_a_visit_without_any_value_stays(tmp_path: Path):
    table = small_table()
    table.loc[1, "hemoglobin"] = None

    case = load_table(table, tmp_path).cases["01"]

    assert case.num_visits == 2
    assert np.isnan(case.values[1]).all()


def test_columns_with_blanks_keep_one_name(tmp_path: Path):
    cohort = load_table(small_table(), tmp_path)

    assert cohort.features == TJH_LABS


def test_a_gap_drops_the_records_of_the_last_days(tmp_path: Path):
    cohort = load_table(small_table(), tmp_path, gap_days=2)

    assert {case.visit_labels for case in cohort.cases.values()} == {("2020-02-01",)}
    assert cohort.dropped["records_within_gap"] == NUM_PATIENTS


def test_a_gap_that_leaves_nothing_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"no dated record left \(cohort.gap_days=30\)"):
        load_table(small_table(), tmp_path, gap_days=30)


def test_patients_with_too_few_visits_are_dropped_and_counted(tmp_path: Path):
    table = small_table().drop(index=1)

    cohort = load_table(table, tmp_path, min_visits=2)

    assert "01" not in cohort.cases
    assert cohort.dropped["patients_with_too_few_visits"] == 1


def test_more_visits_than_anybody_has_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"cohort\.min_visits=9"):
        load_table(small_table(), tmp_path, min_visits=9)


def test_the_path_may_name_the_workbook_itself(tmp_path: Path):
    small_table().to_excel(tmp_path / "renamed.xlsx", index=False)

    cohort = build_cohort(CohortSection(source="tjh", path=str(tmp_path / "renamed.xlsx")))

    assert len(cohort.cases) == NUM_PATIENTS


def test_no_path_is_refused_with_the_file_it_should_name():
    with pytest.raises(DataError, match=rf"{FILE_NAME} .* is not set"):
        build_cohort(CohortSection(source="tjh"))


def test_a_missing_path_is_refused_with_the_file_it_should_name(tmp_path: Path):
    with pytest.raises(DataError, match=rf"{FILE_NAME} .* no such file"):
        build_cohort(CohortSection(source="tjh", path=str(tmp_path)))


def test_a_renamed_workbook_in_a_folder_is_told(tmp_path: Path):
    (tmp_path / "tjh.xlsx").touch()
    (tmp_path / "~$tjh.xlsx").touch()

    with pytest.raises(DataError, match=r"no such file, but \['tjh\.xlsx'\] \(if that is it, give"):
        build_cohort(CohortSection(source="tjh", path=str(tmp_path)))


def test_a_path_the_system_refuses_is_a_data_error():
    with pytest.raises(DataError, match="File name too long"):
        build_cohort(CohortSection(source="tjh", path="x" * 5000))


def test_a_file_that_is_no_workbook_is_refused(tmp_path: Path):
    (tmp_path / FILE_NAME).write_text("PATIENT_ID,RE_DATE\n")

    with pytest.raises(DataError, match="cannot be read"):
        build_cohort(CohortSection(source="tjh", path=str(tmp_path)))


def test_another_workbook_is_refused_by_its_missing_columns(tmp_path: Path):
    table = few_records().drop(columns=["hemoglobin", "RE_DATE"])

    with pytest.raises(DataError, match=r"lacks 2 of its 80 columns: \['RE_DATE', 'hemoglobin'\]"):
        load_table(table, tmp_path)


@pytest.mark.parametrize(
    ("column", "cell", "expected"),
    [
        ("gender", 3, r"one of \[1, 2\] .* rows \[3\] hold \[3\]"),
        ("gender", 1.7, r"one of \[1, 2\] .* rows \[3\] hold \[1\.7\]"),
        ("outcome", 0.99, r"one of \[0, 1\] .* rows \[3\] hold \[0\.99\]"),
        ("outcome", None, r"one of \[0, 1\] .* rows \[3\] hold \[nothing\]"),
        ("outcome", "died", r"numbers, but rows \[3\] hold \['died'\]"),
        ("age", -5, r"0 to 120 years .* rows \[3\] hold \[-5\]"),
        ("age", 40_000, r"0 to 120 years .* rows \[3\] hold \[40000\]"),
        ("age", None, r"0 to 120 years .* rows \[3\] hold \[nothing\]"),
        ("hemoglobin", "<0.01", r"numbers, but rows \[3\] hold \['<0\.01'\]"),
        ("RE_DATE", 43857.4, r"dates .* rows \[3\] hold \[43857\.4\]"),
        ("Admission time", "31/01/2020", r"dates .* rows \[3\] hold \['31/01/2020'\]"),
        ("PATIENT_ID", 1.5, r"ids: .* rows \[3\] hold \[1\.5\]"),
    ],
)
def test_a_cell_that_cannot_be_right_is_refused_by_column_row_and_value(
    tmp_path: Path, column: str, cell: object, expected: str
):
    table = few_records().astype({column: "object"})
    table.loc[1, column] = cell

    with pytest.raises(DataError, match=f"column '{column}' of .* must hold {expected}"):
        load_table(table, tmp_path)


def test_text_ids_stay_as_they_are(tmp_path: Path):
    table = small_table().astype({"PATIENT_ID": "object"})
    known = table["PATIENT_ID"].notna()
    # Alike in the 15 digits that a number keeps.
    table.loc[known, "PATIENT_ID"] = [
        f"0{11010119900307120 + n}" for n in range(np.count_nonzero(known))
    ]

    cohort = load_table(table, tmp_path)

    assert list(cohort.cases) == [f"0{11010119900307120 + n}" for n in range(NUM_PATIENTS)]


def test_a_row_above_the_first_id_is_refused(tmp_path: Path):
    table = few_records()
    table.loc[0, "PATIENT_ID"] = None

    with pytest.raises(DataError, match=r"'PATIENT_ID' .* row 2, the first of all, has none"):
        load_table(table, tmp_path)


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("outcome", 1),
        ("gender", 1),
        ("age", 60),
        ("Admission time", pd.Timestamp(2020, 1, 30)),
        ("Discharge time", pd.Timestamp(2020, 2, 5)),
    ],
)
def test_a_patient_with_two_backgrounds_is_refused(tmp_path: Path, column: str, cell: object):
    table = few_records()
    table.loc[1, column] = cell

    with pytest.raises(DataError, match=rf"patients \['1'\] have several of \['{column}'\]; row 3"):
        load_table(table, tmp_path)


def test_an_id_that_was_left_out_does_not_merge_two_patients(tmp_path: Path):
    table = few_records()
    table.loc[2, "PATIENT_ID"] = None

    with pytest.raises(DataError, match=r"patients \['1'\] have several .* id missing"):
        load_table(table, tmp_path)


@pytest.mark.parametrize(
    ("column", "day", "expected"),
    [
        ("Discharge time", "2019-02-04", "'Admission time' must not lie behind 'Discharge time' "),
        ("Admission time", "2020-02-02", "'Admission time' must not lie behind 'RE_DATE' "),
        ("RE_DATE", "2020-03-02", "'RE_DATE' must not lie behind 'Discharge time' by over 7 days"),
    ],
)
def test_days_in_an_impossible_order_are_refused(
    tmp_path: Path, column: str, day: str, expected: str
):
    table = few_records()
    table.loc[[0, 1], column] = pd.Timestamp(day)

    with pytest.raises(DataError, match=f"{expected}.* in row 2 they are "):
        load_table(table, tmp_path)


def test_results_may_follow_the_discharge_by_days(tmp_path: Path):
    table = small_table()
    table.loc[1, "RE_DATE"] = pd.Timestamp(2020, 2, 6)

    assert load_table(table, tmp_path).cases["01"].visit_labels[-1] == "2020-02-06"


def test_a_gap_needs_every_discharge(tmp_path: Path):
    table = few_records()
    table.loc[[0, 1], "Discharge time"] = pd.NaT

    with pytest.raises(DataError, match=r"gap_days=1 needs column 'Discharge time' .* row 2"):
        load_table(table, tmp_path, gap_days=1)


@pytest.mark.parametrize(
    "again",
    [
        *("hemoglobin", "hemoglobin ", "Hemoglobin", "hemoglobin.1", "hemoglobin_2"),
        *("hemoglobin (2)", "hemoglobin\u00a0", "\uff48emoglobin"),
    ],
)
def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, again: str):
    table = pd.concat([few_records(), pd.DataFrame({again: [1.0] * 6})], axis=1)
    clean = " ".join(again.split())

    with pytest.raises(
        DataError, match=rf"one column 'hemoglobin', but has 2: .*'{re.escape(clean)}'"
    ):
        load_table(table, tmp_path)


def test_names_may_differ_in_blanks_and_case_and_further_columns_are_left(tmp_path: Path):
    table = small_table().rename(columns={"hemoglobin": " Hemoglobin", "RE_DATE": "Re_Date"})
    table["remark"] = "good"

    cohort = load_table(table, tmp_path)

    assert cohort.cases["01"].values[0, 1] == 101.0


def test_a_column_that_is_not_used_may_be_there_twice(tmp_path: Path):
    table = small_table()
    table.insert(9, "2019-nCoV nucleic acid detection ", -1)

    cohort = load_table(table, tmp_path)

    assert cohort.dropped["constant_columns"] == 1
    assert cohort.cases["01"].values[0, 1] == 101


@pytest.mark.parametrize("formula", ["=B2", '=IF(B2>0,"x","")'])
def test_a_formula_without_its_result_is_no_empty_cell(tmp_path: Path, formula: str):
    table = few_records().astype({"PATIENT_ID": "object"})
    table.loc[3, "PATIENT_ID"] = formula

    with pytest.raises(
        DataError, match=r"cell A5 has a formula without its result\. Open the file"
    ):
        load_table(table, tmp_path)


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        (r"<(/?)(c|f|v)(?=[ />])", r"<\1x:\2"),
        (r'<c r="(\w+)"([^>/]*)>', r'<c\2 r="\1">'),
        ('"', "'"),
        (r"(<f>[^<]*</f>)<v ?/>", r"\n\1\n"),
    ],
    ids=["prefix", "order", "quotes", "line break"],
)
def test_a_formula_without_its_result_is_found_however_a_program_writes_it(
    tmp_path: Path, pattern: str, replacement: str
):
    table = few_records().astype({"hemoglobin": "object"})
    table.loc[3, "hemoglobin"] = "=1+1"
    table.to_excel(tmp_path / FILE_NAME, index=False)
    sheet = "xl/worksheets/sheet1.xml"
    with zipfile.ZipFile(tmp_path / FILE_NAME) as parts:
        contents = {name: parts.read(name) for name in parts.namelist()}
    text = re.sub(pattern, replacement, contents[sheet].decode())
    text = text.replace("<worksheet ", f'<worksheet xmlns:x="{SHEET_MAIN_NS}" ')
    contents[sheet] = text.encode()
    with zipfile.ZipFile(tmp_path / FILE_NAME, "w") as parts:
        for name, content in contents.items():
            parts.writestr(name, content)

    with pytest.raises(DataError, match="cell H5 has a formula without its result"):
        build_cohort(CohortSection(source="tjh", path=str(tmp_path)))


def load_edited(folder: Path, edit: Callable[[Workbook], object]) -> Cohort:
    """The cohort of a small workbook that a spreadsheet program has changed."""
    few_records().to_excel(folder / FILE_NAME, index=False)
    book = load_workbook(folder / FILE_NAME)
    edit(book)
    book.save(folder / FILE_NAME)
    return build_cohort(CohortSection(source="tjh", path=str(folder)))


@pytest.mark.parametrize("form", ["0%", "0.00%", "0.0 %;[Red]-0.0 %"])
def test_percent_cells_are_refused_since_they_hold_a_hundredth(tmp_path: Path, form: str):
    def show_as_percent(book: Workbook) -> None:
        for row in (2, 4):
            book["Sheet1"][f"H{row}"].value = 0.45
            book["Sheet1"][f"H{row}"].number_format = form

    with pytest.raises(DataError, match=r"'hemoglobin' .* 2 cells, such as \['H2', 'H4'\], are"):
        load_edited(tmp_path, show_as_percent)


@pytest.mark.parametrize(
    ("area", "column"), [("B2:B3", "RE_DATE"), ("H4:H5", "hemoglobin"), ("A2:B3", "PATIENT_ID")]
)
def test_merged_cells_are_refused_where_a_value_would_be_lost(
    tmp_path: Path, area: str, column: str
):
    first, last = area.split(":")

    with pytest.raises(DataError, match=f"column '{column}', but {first} to {last} are merged"):
        load_edited(tmp_path, lambda book: book["Sheet1"].merge_cells(area))


def test_the_ids_cells_may_be_merged_as_in_the_published_workbook(tmp_path: Path):
    small_table().to_excel(tmp_path / FILE_NAME, index=False)
    book = load_workbook(tmp_path / FILE_NAME)
    for row in range(2, 2 * NUM_PATIENTS + 2, 2):
        book["Sheet1"].merge_cells(f"A{row}:A{row + 1}")
    book.save(tmp_path / FILE_NAME)

    cohort = build_cohort(CohortSection(source="tjh", path=str(tmp_path)))

    assert [case.num_visits for case in cohort.cases.values()] == [2] * NUM_PATIENTS


@pytest.mark.parametrize(
    ("first_row", "num_columns", "said"),
    [(1, 79, "most of its columns"), (2, 81, "rows like records"), (0, 81, "the same columns")],
    ids=["a column fewer", "no header", "a title above"],
)
def test_further_records_on_another_sheet_are_refused(
    tmp_path: Path, first_row: int, num_columns: int, said: str
):
    def move_records(book: Workbook) -> None:
        rows = [("Second export",), *book["Sheet1"].iter_rows(values_only=True)]
        for row in rows[first_row:]:
            book["more"].append(row[:num_columns])

    with pytest.raises(DataError, match=f"sheet 'more' has {said}"):
        load_edited(tmp_path, lambda book: (book.create_sheet("more"), move_records(book)))


def test_a_strict_workbook_is_refused_with_the_way_out(tmp_path: Path):
    few_records().to_excel(tmp_path / FILE_NAME, index=False)
    with zipfile.ZipFile(tmp_path / FILE_NAME) as parts:
        contents = {name: parts.read(name) for name in parts.namelist()}
    main = b"http://purl.oclc.org/ooxml/spreadsheetml/main"
    related = b"http://purl.oclc.org/ooxml/officeDocument/relationships"
    with zipfile.ZipFile(tmp_path / FILE_NAME, "w") as parts:
        for name, content in contents.items():
            content = content.replace(SHEET_MAIN_NS.encode(), main)
            content = content.replace(REL_NS.encode(), related)
            parts.writestr(name, content)

    with pytest.raises(DataError, match=r"no sheet that can be read .* save it as plain \.xlsx"):
        build_cohort(CohortSection(source="tjh", path=str(tmp_path)))


def test_records_on_two_sheets_are_refused(tmp_path: Path):
    with pd.ExcelWriter(tmp_path / FILE_NAME) as book:
        few_records().to_excel(book, sheet_name="first", index=False)
        few_records().to_excel(book, sheet_name="more", index=False)

    with pytest.raises(DataError, match="sheet 'more' has the same columns"):
        build_cohort(CohortSection(source="tjh", path=str(tmp_path)))


def test_notes_on_another_sheet_are_left(tmp_path: Path):
    with pd.ExcelWriter(tmp_path / FILE_NAME) as book:
        small_table().to_excel(book, sheet_name="first", index=False)
        pd.DataFrame({"note": ["from the archive"]}).to_excel(book, sheet_name="notes")
        pd.DataFrame().to_excel(book, sheet_name="empty", index=False)

    assert len(build_cohort(CohortSection(source="tjh", path=str(tmp_path))).cases) == NUM_PATIENTS


@pytest.mark.parametrize("num_rows", [0, 1])
def test_a_sheet_without_records_is_refused(tmp_path: Path, num_rows: int):
    table = small_table().head(0) if num_rows else pd.DataFrame()

    with pytest.raises(DataError, match=r"no dated record left|lacks 80 of its 80 columns"):
        load_table(table, tmp_path)


def test_an_old_or_locked_workbook_is_refused_with_the_way_out(tmp_path: Path):
    (tmp_path / FILE_NAME).write_bytes(bytes.fromhex("d0cf11e0a1b11ae1") + bytes(600))

    with pytest.raises(DataError, match=r"\.xls file, or one with a password; save it as plain"):
        build_cohort(CohortSection(source="tjh", path=str(tmp_path)))


def test_a_truncated_workbook_is_refused(tmp_path: Path):
    few_records().to_excel(tmp_path / FILE_NAME, index=False)
    content = (tmp_path / FILE_NAME).read_bytes()
    (tmp_path / FILE_NAME).write_bytes(content[: len(content) // 2])

    with pytest.raises(DataError, match="cannot be read: BadZipFile"):
        build_cohort(CohortSection(source="tjh", path=str(tmp_path)))


def test_a_workbook_with_one_outcome_is_refused_with_the_fix(tmp_path: Path):
    table = small_table()
    table["outcome"] = 0

    with pytest.raises(DataError, match="must hold both classes"):
        load_table(table, tmp_path)


def test_readmission_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"cohort\.task must be 'mortality'"):
        load_table(few_records(), tmp_path, task=Task.READMISSION)


@pytest.fixture(scope="module")
def published() -> Cohort:
    if not PUBLISHED.exists():
        pytest.skip(f"the TJH workbook is not at {PUBLISHED}; set EAG_RL_TJH to its folder")
    return build_cohort(CohortSection(source="tjh", path=str(PUBLISHED)))


def test_counts_of_the_published_workbook_equal_table_3(published: Cohort):
    report = summary(published)

    assert report["splits"] == {
        "train": {"patients": 140, "visits": 641, "positives": 65},
        "val": {"patients": 21, "visits": 96, "positives": 10},
        "test": {"patients": 200, "visits": 967, "positives": 91},
    }
    assert report["features"] == 73
    assert report["dropped"]["records_without_date"] == 14
    assert report["dropped"]["patients_without_dated_record"] == 14


def test_published_patients_have_one_to_thirteen_visits(published: Cohort):
    visits = [case.num_visits for case in published.cases.values()]

    assert (len(visits), sum(visits), min(visits), max(visits)) == (361, 1704, 1, 13)
    assert visits.count(1) == 38


def test_published_visits_without_values_stay(published: Cohort):
    empty = [np.all(np.isnan(case.values), axis=1) for case in published.cases.values()]

    assert sum(int(visits.sum()) for visits in empty) == 364
    assert sum(bool(visits[-1]) for visits in empty) == 109
