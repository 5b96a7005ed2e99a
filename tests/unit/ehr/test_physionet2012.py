import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from ehr.catalogue import BENCHMARK_17, PHYSIONET2012
from ehr.catalogue.plausible import read_value
from ehr.cohorts.cohort import (
    Cohort,
    Sex,
    cohort_hash,
    summary,
)
from ehr.cohorts.loaders import build_cohort, source_hash
from ehr.config import CohortSection, Task
from ehr.errors import DataError
from tests.physionet2012_files import (
    FIRST_ID,
    NUM_STAYS,
    outcomes_text,
    stay_text,
    stays_of,
    write_archive,
    write_folder,
)

BESIDE_CHECKOUT = Path(__file__).parents[4] / "shared" / "data" / "physionet2012"
PUBLISHED = Path(os.environ.get("EAG_RL_PHYSIONET2012", BESIDE_CHECKOUT))
FIRST = str(FIRST_ID)


def section(folder: Path, **options: object) -> CohortSection:
    return CohortSection.model_validate({"source": "physionet2012", "path": str(folder), **options})


def load(folder: Path, **options: object) -> Cohort:
    return build_cohort(section(folder, **options))


def cohort_with(folder: Path, *rows: str, **descriptors: float | str) -> Cohort:
    """24 stays, the first of them with these rows and descriptors."""
    stays = stays_of() | {FIRST: stay_text(FIRST_ID, rows, **descriptors)}
    return load(write_folder(folder, stays))


def first_values(cohort: Cohort, feature: str) -> list[float]:
    names = [each.name for each in cohort.features]
    return cohort.cases[FIRST].values[:, names.index(feature)].tolist()


NAN = float("nan")


def same(values: list[float], expected: list[float]) -> bool:
    return np.array_equal(values, expected, equal_nan=True)


def test_a_visit_holds_the_last_value_of_its_twelve_hours(tmp_path: Path):
    cohort = cohort_with(
        tmp_path, "00:10,HR,70", "11:59,HR,71", "12:00,HR,72", "36:00,HR,73", "47:00,HR,74"
    )

    assert same(first_values(cohort, "Heart Rate"), [71, 72, NAN, 74])


def test_what_was_charted_at_the_48th_hour_belongs_to_the_last_visit(tmp_path: Path):
    cohort = cohort_with(tmp_path, "47:00,HR,74", "48:00,HR,75")

    assert same(first_values(cohort, "Heart Rate"), [NAN, NAN, NAN, 75])


def test_rows_after_the_48th_hour_are_dropped_and_counted(tmp_path: Path):
    cohort = cohort_with(tmp_path, "47:00,HR,74", "48:01,HR,75")

    assert same(first_values(cohort, "Heart Rate"), [NAN, NAN, NAN, 74])
    assert cohort.dropped["rows_after_48_hours"] == 1


def test_visits_are_hours_since_admission_half_a_day_apart(tmp_path: Path):
    cohort = cohort_with(tmp_path)

    assert cohort.cases[FIRST].visit_labels == ("12 h", "24 h", "36 h", "48 h")
    assert cohort.cases[FIRST].visit_days == (0.0, 0.5, 1.0, 1.5)
    assert not cohort.has_dates


def test_the_later_line_of_one_minute_counts(tmp_path: Path):
    cohort = cohort_with(tmp_path, "01:00,HR,70", "01:00,HR,71")

    assert first_values(cohort, "Heart Rate")[0] == 71


def test_lines_need_not_be_in_time_order(tmp_path: Path):
    cohort = cohort_with(tmp_path, "03:00,HR,71", "01:00,HR,70")

    assert first_values(cohort, "Heart Rate")[0] == 71


def test_invasive_and_cuff_pressures_are_merged_in_time_order(tmp_path: Path):
    cohort = cohort_with(
        tmp_path, "01:00,SysABP,110", "02:00,NISysABP,120", "13:00,NISysABP,130", "14:00,SysABP,140"
    )

    assert same(first_values(cohort, "Systolic blood pressure"), [120, 140, NAN, NAN])


@pytest.mark.parametrize(
    ("invasive", "cuff", "feature"),
    [
        ("SysABP", "NISysABP", "Systolic blood pressure"),
        ("DiasABP", "NIDiasABP", "Diastolic blood pressure"),
        ("MAP", "NIMAP", "Mean blood pressure"),
    ],
)
def test_of_two_pressures_at_one_minute_the_invasive_one_counts(
    tmp_path: Path, invasive: str, cuff: str, feature: str
):
    cohort = cohort_with(tmp_path, f"01:00,{invasive},90", f"01:00,{cuff},80")

    assert first_values(cohort, feature)[0] == 90


def test_minus_one_is_missing_and_counted(tmp_path: Path):
    cohort = cohort_with(tmp_path, "01:00,HR,80", "02:00,HR,-1", Height=-1, Weight=-1)

    assert first_values(cohort, "Heart Rate")[0] == 80
    assert np.isnan(first_values(cohort, "Height")).all()
    assert np.isnan(first_values(cohort, "Weight")).all()
    assert cohort.dropped["values_written_as_minus_1"] == 3


@pytest.mark.parametrize(("gender", "sex"), [(0, Sex.FEMALE), (1, Sex.MALE), (-1, Sex.UNKNOWN)])
def test_sex_is_read_and_may_be_unknown(tmp_path: Path, gender: int, sex: Sex):
    assert cohort_with(tmp_path, Gender=gender).cases[FIRST].sex == sex


@pytest.mark.parametrize(("written", "age"), [(54, 54.0), (-1, None)])
def test_age_is_read_and_may_be_unknown(tmp_path: Path, written: int, age: float | None):
    assert cohort_with(tmp_path, Age=written).cases[FIRST].age == age


def test_a_stay_without_descriptors_has_unknown_age_and_sex(tmp_path: Path):
    stays = stays_of() | {FIRST: f"Time,Parameter,Value\n00:00,RecordID,{FIRST}\n01:00,HR,80\n"}

    case = load(write_folder(tmp_path, stays)).cases[FIRST]

    assert (case.age, case.sex) == (None, Sex.UNKNOWN)


def test_height_and_weight_at_admission_are_values_of_the_first_visit(tmp_path: Path):
    cohort = cohort_with(tmp_path, "20:00,Weight,82", Height=175.3, Weight=80)

    assert same(first_values(cohort, "Height"), [175.3, NAN, NAN, NAN])
    assert same(first_values(cohort, "Weight"), [80, 82, NAN, NAN])


def test_the_type_of_the_unit_is_in_no_case(tmp_path: Path):
    one = cohort_with(tmp_path / "one", "01:00,HR,80", ICUType=1)
    four = cohort_with(tmp_path / "four", "01:00,HR,80", ICUType=4)

    assert cohort_hash(one) == cohort_hash(four)


@pytest.mark.parametrize(
    ("row", "feature"),
    [
        ("02:00,Temp,-17.8", "Temperature"),
        ("02:00,WBC,12500", "White blood cell count"),
        ("02:00,pH,0", "pH"),
        ("02:00,pH,100", "pH"),
        ("02:00,SysABP,0", "Systolic blood pressure"),
        ("02:00,RespRate,98", "Respiratory rate"),
    ],
)
def test_implausible_values_are_missing_and_counted(tmp_path: Path, row: str, feature: str):
    cohort = cohort_with(tmp_path, row)

    assert np.isnan(first_values(cohort, feature)).all()
    assert cohort.dropped[f"implausible {feature}"] == 1


def test_an_implausible_height_is_missing_and_counted(tmp_path: Path):
    cohort = cohort_with(tmp_path, Height=462.3)

    assert np.isnan(first_values(cohort, "Height")).all()
    assert cohort.dropped["implausible Height"] == 1


def test_an_implausible_value_does_not_hide_the_one_before(tmp_path: Path):
    cohort = cohort_with(tmp_path, "01:00,Temp,36.6", "02:00,Temp,-17.8")

    assert first_values(cohort, "Temperature")[0] == 36.6


@pytest.mark.parametrize("written", [735, 73.5])
def test_a_ph_without_its_decimal_point_is_put_right_and_counted(tmp_path: Path, written: float):
    cohort = cohort_with(tmp_path, f"02:00,pH,{written}")

    assert first_values(cohort, "pH")[0] == pytest.approx(7.35)
    assert cohort.dropped["pH_values_with_decimal_point_restored"] == 1


def test_inspired_oxygen_is_a_percentage(tmp_path: Path):
    cohort = cohort_with(tmp_path, "02:00,FiO2,0.5")

    assert first_values(cohort, "Fraction inspired oxygen")[0] == 50


@pytest.mark.parametrize(
    ("parameter", "name", "values"),
    [
        ("pH", "pH", [735, 73.5, 7.35, 65, 14, 0.735, 6.5, 8.0, -1]),
        ("FiO2", "Fraction inspired oxygen", [0.21, 0.4, 1, 0.2, -1]),
        ("Temp", "Temperature", [98.6, 36.6, 25, 45, 45.1, -1]),
        ("HR", "Heart Rate", [-1, 0, 10, 300, 301, 1e9]),
    ],
)
def test_a_value_by_itself_is_read_as_in_a_stay(
    tmp_path: Path, parameter: str, name: str, values: list[float]
):
    texts = {str(FIRST_ID + i): (f"02:00,{parameter},{each}",) for i, each in enumerate(values)}
    stays = stays_of() | {stay: stay_text(int(stay), rows) for stay, rows in texts.items()}
    cohort = load(write_folder(tmp_path, stays))
    column, feature = next((i, f) for i, f in enumerate(cohort.features) if f.name == name)

    in_stays = [cohort.cases[stay].values[0, column] for stay in texts]

    assert same([read_value(feature, each).value for each in values], in_stays)


def test_rows_without_a_parameter_name_are_dropped_and_counted(tmp_path: Path):
    cohort = cohort_with(tmp_path, "01:00,HR,80", "02:00,,7", "03:00,,")

    assert first_values(cohort, "Heart Rate")[0] == 80
    assert cohort.dropped["rows_without_parameter_name"] == 2


def test_rows_of_unknown_parameters_are_dropped_and_counted(tmp_path: Path):
    cohort = cohort_with(tmp_path, "01:00,HR,80", "02:00,Mood,good")

    assert cohort.dropped["rows_of_unknown_parameters"] == 1


def test_no_ventilation_is_said_where_other_values_were_charted(tmp_path: Path):
    cohort = cohort_with(tmp_path, "01:00,HR,80", "13:00,MechVent,1", "14:00,HR,80", "26:00,Na,140")

    assert same(first_values(cohort, "Mechanical ventilation"), [0, 1, 0, NAN])


def test_a_stay_without_series_has_four_visits_without_values(tmp_path: Path):
    cohort = cohort_with(tmp_path, Height=-1, Weight=-1)

    assert cohort.cases[FIRST].values.shape == (4, 35)
    assert np.isnan(cohort.cases[FIRST].values).all()


def test_a_choice_of_features_keeps_13_of_the_benchmarks_17_in_its_order(tmp_path: Path):
    folder = write_folder(tmp_path, stays_of())

    chosen = load(folder, features="benchmark")

    names = [feature.name for feature in chosen.features]
    assert names == [feature.name for feature in BENCHMARK_17 if feature.name in names]
    assert len(names) == 13
    assert load(folder).features == PHYSIONET2012
    assert chosen.cases[FIRST].values.shape == (4, 13)


@pytest.mark.parametrize("source", ["synthetic", "tjh"])
def test_other_sources_refuse_a_choice_of_features(source: str):
    with pytest.raises(ValueError, match=rf"must be 'all' for cohort.source='{source}'"):
        CohortSection.model_validate({"source": source, "features": "benchmark"})


def test_labels_are_deaths_in_hospital_and_nothing_else_of_the_outcomes(tmp_path: Path):
    cohort = load(write_folder(tmp_path, stays_of()))
    longer = outcomes_text(list(stays_of()), length_of_stay=40)
    (tmp_path / "Outcomes-a.txt").write_text(longer)

    assert [cohort.labels[str(FIRST_ID + n)] for n in (0, 11, 12, 23)] == [0, 0, 1, 1]
    assert cohort_hash(load(tmp_path)) == cohort_hash(cohort)


def test_an_archive_and_its_folder_give_one_cohort(tmp_path: Path):
    folder = write_folder(tmp_path / "folder", stays_of())
    archive = write_archive(tmp_path / "archive", stays_of())

    assert cohort_hash(load(archive)) == cohort_hash(load(folder))
    assert sorted(path.name for path in archive.iterdir()) == ["Outcomes-a.txt", "set-a.tar.gz"]


def test_both_sets_are_read_one_from_a_folder_and_one_from_an_archive(tmp_path: Path):
    write_folder(tmp_path, stays_of())
    write_archive(tmp_path, stays_of(first_id=142675), name="b")

    cohort = load(tmp_path)

    assert len(cohort.cases) == 2 * NUM_STAYS
    assert {FIRST, "142675"} <= set(cohort.cases)


def test_lines_may_end_as_on_windows_and_the_last_one_without_an_end(tmp_path: Path):
    text = stay_text(FIRST_ID, ["01:00,HR,80", "02:00,HR,81"]).rstrip("\n").replace("\n", "\r\n")

    cohort = load(write_folder(tmp_path, stays_of() | {FIRST: text}))

    assert first_values(cohort, "Heart Rate")[0] == 81


def test_a_quarter_of_the_stays_is_tested_stratified(tmp_path: Path):
    cohort = load(write_folder(tmp_path, stays_of()))

    test = cohort.splits["test"]
    assert len(test) == NUM_STAYS / 4
    assert sum(cohort.labels[stay] for stay in test) == len(test) / 2


def test_no_path_is_refused_with_what_it_should_name():
    with pytest.raises(DataError, match=r"set-a\.tar\.gz .* is not set"):
        build_cohort(CohortSection(source="physionet2012"))


def test_a_missing_folder_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="no such folder"):
        load(tmp_path / "nowhere")


def test_a_path_the_system_refuses_is_a_data_error():
    with pytest.raises(DataError, match=r"File name too long|no such folder"):
        build_cohort(CohortSection(source="physionet2012", path="x" * 5000))


def test_a_folder_without_sets_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="holds neither set"):
        load(tmp_path)


def test_a_set_without_stays_is_refused(tmp_path: Path):
    write_folder(tmp_path, stays_of())
    (tmp_path / "set-b").mkdir()

    with pytest.raises(DataError, match=r"set-b' must hold one \.txt file a stay, but holds none"):
        load(tmp_path)


def test_a_missing_outcome_file_is_refused_by_its_name(tmp_path: Path):
    write_folder(tmp_path, stays_of())
    (tmp_path / "Outcomes-a.txt").unlink()

    with pytest.raises(DataError, match=r"Outcomes-a\.txt must lie beside its set"):
        load(tmp_path)


def test_an_outcome_file_of_another_kind_is_refused(tmp_path: Path):
    write_folder(tmp_path, stays_of())
    (tmp_path / "Outcomes-a.txt").write_text("RecordID,SOFA\n132539,1\n")

    with pytest.raises(DataError, match=r"but \['In-hospital_death'\] is there \[0\] times"):
        load(tmp_path)


@pytest.mark.parametrize("written", ["2", "", "yes"])
def test_an_outcome_that_is_no_label_is_refused(tmp_path: Path, written: str):
    write_folder(tmp_path, stays_of())
    outcomes = outcomes_text(list(stays_of())).replace("-1,0\n", f"-1,{written}\n", 1)
    (tmp_path / "Outcomes-a.txt").write_text(outcomes)

    with pytest.raises(DataError, match="must be 0 or 1"):
        load(tmp_path)


def test_a_stay_without_an_outcome_is_refused_by_its_id(tmp_path: Path):
    write_folder(tmp_path, stays_of())
    (tmp_path / "Outcomes-a.txt").write_text(outcomes_text(list(stays_of())[1:]))

    with pytest.raises(
        DataError, match=rf"1 of {NUM_STAYS} have none in Outcomes-a\.txt, such as \['{FIRST}'\]"
    ):
        load(tmp_path)


def test_a_stay_in_both_sets_is_refused(tmp_path: Path):
    write_folder(tmp_path, stays_of())
    write_folder(tmp_path, {FIRST: stay_text(FIRST_ID)}, name="b")

    with pytest.raises(DataError, match=rf"'{FIRST}' is in .*set-a.* and in .*set-b"):
        load(tmp_path)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_an_archive_that_was_cut_off_is_refused(tmp_path: Path, share: float):
    archive = write_archive(tmp_path, stays_of()) / "set-a.tar.gz"
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * share)])

    with pytest.raises(DataError, match=r"set-a\.tar\.gz' must be an archive of stays"):
        load(tmp_path)


@pytest.mark.parametrize("num_stays", [1, 12, 23, 24])
def test_an_archive_that_ends_early_inside_a_whole_gzip_is_refused(tmp_path: Path, num_stays: int):
    archive = write_archive(tmp_path, stays_of()) / "set-a.tar.gz"
    plain = gzip.decompress(archive.read_bytes())
    # A folder, then a header and a block of text for every stay.
    archive.write_bytes(gzip.compress(plain[: 512 + 1024 * num_stays]))

    with pytest.raises(DataError, match=r"must end with empty blocks, .* cut off, or damaged"):
        load(tmp_path)


@pytest.mark.parametrize("place", [512, 512 + 1024 * 5])
def test_an_archive_with_a_damaged_header_is_refused(tmp_path: Path, place: int):
    archive = write_archive(tmp_path, stays_of()) / "set-a.tar.gz"
    plain = bytearray(gzip.decompress(archive.read_bytes()))
    plain[place + 100] ^= 1
    archive.write_bytes(gzip.compress(bytes(plain)))

    with pytest.raises(DataError, match=r"must end with empty blocks|cannot be read"):
        load(tmp_path)


def test_an_archive_behind_another_one_is_refused(tmp_path: Path):
    first = write_archive(tmp_path / "first", stays_of()) / "set-a.tar.gz"
    more = write_archive(tmp_path / "more", stays_of(first_id=142675)) / "set-a.tar.gz"
    first.write_bytes(first.read_bytes() + more.read_bytes())

    with pytest.raises(DataError, match="must end with empty blocks"):
        load(tmp_path / "first")


def test_an_archive_with_a_wrong_checksum_is_refused(tmp_path: Path):
    archive = write_archive(tmp_path, stays_of()) / "set-a.tar.gz"
    content = bytearray(archive.read_bytes())
    content[-6] ^= 1
    archive.write_bytes(bytes(content))

    with pytest.raises(DataError, match="cannot be read: BadGzipFile: CRC"):
        load(tmp_path)


def test_a_stay_that_is_twice_in_an_archive_is_refused(tmp_path: Path):
    write_archive(tmp_path, stays_of(), again=(FIRST,))

    with pytest.raises(DataError, match=rf"every stay must occur once, but '{FIRST}'"):
        load(tmp_path)


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path):
    write_archive(tmp_path, stays_of())
    (tmp_path / "set-a.tar.gz").write_text("<html>not found</html>")

    with pytest.raises(DataError, match="cannot be read: BadGzipFile"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["", "Time;Parameter;Value\n", "01:00,HR,80\n"])
def test_a_file_with_another_header_is_refused_by_its_name(tmp_path: Path, text: str):
    with pytest.raises(DataError, match=rf"{FIRST}\.txt' must start with the line 'Time,Parameter"):
        load(write_folder(tmp_path, stays_of() | {FIRST: text}))


@pytest.mark.parametrize("row", ["01:00,HR", "01:00,HR,80,81", "", "HR"])
def test_a_line_without_three_fields_is_refused_by_its_file(tmp_path: Path, row: str):
    with pytest.raises(DataError, match=rf"{FIRST}\.txt' must have three .* line 8 is '{row}'"):
        cohort_with(tmp_path, row)


@pytest.mark.parametrize("rows", [("01:00,HR,80,5", "02:00,SpO2"), ("01:00", "02:00,pH,7,1,2")])
def test_a_field_too_many_is_not_balanced_by_one_too_few(tmp_path: Path, rows: tuple[str, ...]):
    with pytest.raises(DataError, match=rf"{FIRST}\.txt' must have three fields.* line 8 is"):
        cohort_with(tmp_path, *rows)


def test_names_of_parameters_may_differ_in_case(tmp_path: Path):
    cohort = cohort_with(tmp_path, "01:00,hr,80", "02:00,PH,7.1")

    assert (first_values(cohort, "Heart Rate")[0], first_values(cohort, "pH")[0]) == (80, 7.1)
    assert cohort.dropped["rows_of_unknown_parameters"] == 0


@pytest.mark.parametrize(
    "row",
    [
        "1 am,HR,80",
        "01:60,HR,80",
        "-1:00,HR,80",
        "01:00,HR,fast",
        "01:00,HR,",
        "01:00,HR,inf",
        "01:00,HR,NaN",
        "01:00,HR,True",
        "1:5,HR,80",
        "01:00:00,HR,80",
        ",HR,80",
    ],
)
def test_a_time_or_value_that_cannot_be_read_is_refused_by_its_line(tmp_path: Path, row: str):
    with pytest.raises(DataError, match=rf"line 9 of '.*{FIRST}\.txt' must .* but is '{row}'"):
        cohort_with(tmp_path, "00:30,HR,80", row)


def test_times_that_are_all_plain_numbers_are_refused(tmp_path: Path):
    text = f"Time,Parameter,Value\n0,RecordID,{FIRST}\n60,HR,80\n"

    with pytest.raises(DataError, match=r"line 2 of .* must read 'HH:MM,Parameter,number'"):
        load(write_folder(tmp_path, {FIRST: text}))


def test_a_value_beyond_all_numbers_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=rf"line 8 of '.*{FIRST}\.txt' must .* but is '01:00,HR,"):
        cohort_with(tmp_path, "01:00,HR,1e400")


def test_a_line_of_a_later_file_is_refused_by_its_number_in_that_file(tmp_path: Path):
    later = str(FIRST_ID + 3)
    stays = stays_of() | {later: stay_text(FIRST_ID + 3, ['01:00,HR,"80'])}

    with pytest.raises(DataError, match=rf"line 8 of '.*{later}\.txt'"):
        load(write_folder(tmp_path, stays))


def test_an_unknown_code_of_sex_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=rf"Gender in '.*{FIRST}\.txt' must be .* but is 2"):
        cohort_with(tmp_path, Gender=2)


@pytest.mark.parametrize("code", ["2", "0.5", "-2"])
def test_an_unknown_code_of_ventilation_is_refused(tmp_path: Path, code: str):
    stays = stays_of() | {FIRST: stay_text(FIRST_ID, [f"01:00,MechVent,{code}"])}

    with pytest.raises(DataError, match=rf"MechVent in '.*{FIRST}\.txt' must be .* but is {code}"):
        load(write_folder(tmp_path, stays))


ROWS = [f"0{hour}:00,HR,{70 + hour}" for hour in range(5)] + [
    *("13:00,HR,91", "25:00,HR,92", "37:00,HR,93", "01:00,Temp,37", "01:00,Na,140", "01:00,K,4"),
]


def test_a_record_that_was_copied_under_another_id_is_refused(tmp_path: Path):
    stays = stays_of() | {FIRST: stay_text(FIRST_ID, ROWS)}
    stays[str(FIRST_ID + 20)] = stay_text(FIRST_ID + 20, ROWS)

    with pytest.raises(
        DataError, match=rf"'{FIRST}' and '{FIRST_ID + 20}' have the same age, sex, days and"
    ):
        build_cohort(section(write_folder(tmp_path, stays)))


def test_a_file_under_another_stays_name_is_refused(tmp_path: Path):
    stays = stays_of()
    stays[FIRST], stays[str(FIRST_ID + 1)] = stays[str(FIRST_ID + 1)], stays[FIRST]

    with pytest.raises(
        DataError, match=rf"2 of 24 do not: .*{FIRST}\.txt' says \['{FIRST_ID + 1}'"
    ):
        load(write_folder(tmp_path, stays))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("", r"\[\]"),
        ("01:00,HR,80\n", r"\[\]"),
        (f"00:00,RecordID,{FIRST}\n00:00,RecordID,{FIRST}\n", rf"\['{FIRST}', '{FIRST}'\]"),
        ("00:00,RecordID,-1\n", r"\['-1'\]"),
        (f"00:00,RecordID,{FIRST}.5\n", rf"\['{FIRST}\.5'\]"),
        (f"00:00,RecordID,{FIRST}.25\n", rf"\['{FIRST}\.25'\]"),
    ],
)
def test_a_file_says_its_stay_once(tmp_path: Path, rows: str, said: str):
    stays = stays_of() | {FIRST: f"Time,Parameter,Value\n{rows}"}

    with pytest.raises(DataError, match=rf"1 of 24 do not: .*{FIRST}\.txt' says {said}"):
        load(write_folder(tmp_path, stays))


@pytest.mark.parametrize("name", ["0132539", "stay"])
def test_a_file_whose_name_is_no_record_id_is_refused(tmp_path: Path, name: str):
    stays = stays_of()
    stays = {name: stays.pop(FIRST)} | stays

    with pytest.raises(DataError, match=rf"{name}\.txt' says \['{FIRST}'\]"):
        load(write_folder(tmp_path, stays))


def test_sets_without_any_row_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"the 24 files of stays must hold rows .* but hold none"):
        load(write_folder(tmp_path, dict.fromkeys(stays_of(), "Time,Parameter,Value\n")))


@pytest.mark.parametrize("age", [40_000, 121, 3, 0, -5])
def test_an_implausible_age_is_missing_and_counted(tmp_path: Path, age: int):
    cohort = cohort_with(tmp_path, Age=age)

    assert cohort.cases[FIRST].age is None
    assert cohort.dropped["implausible Age"] == 1


def test_two_ages_in_one_file_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match=rf"{FIRST}\.txt' must say Age once"):
        cohort_with(tmp_path, "00:00,Age,61")


def test_a_set_with_fewer_stays_than_its_outcomes_list_is_refused(tmp_path: Path):
    folder = write_folder(tmp_path, stays_of())
    for stay in (FIRST, str(FIRST_ID + 1)):
        (folder / "set-a" / f"{stay}.txt").unlink()

    with pytest.raises(DataError, match=rf"Outcomes-a\.txt lists, but has 22 of the 24, .*{FIRST}"):
        load(folder)


def test_half_an_extraction_beside_its_archive_is_refused_with_the_way_out(tmp_path: Path):
    folder = write_archive(write_folder(tmp_path, stays_of()), stays_of())
    (folder / "set-a" / f"{FIRST}.txt").unlink()

    with pytest.raises(
        DataError, match=r"has 23 of the 24, .* Extract set-a\.tar\.gz to its end, or"
    ):
        load(folder)


def test_outcomes_of_a_set_that_is_not_there_are_counted(tmp_path: Path):
    folder = write_folder(tmp_path, stays_of())
    (folder / "Outcomes-b.txt").write_text(outcomes_text(["142675", "142676"]))

    assert load(folder).dropped["stays_of_set_b_which_is_not_there"] == 2


def test_a_stay_that_is_listed_twice_is_refused(tmp_path: Path):
    folder = write_folder(tmp_path, stays_of())
    (folder / "Outcomes-a.txt").write_text(outcomes_text([*stays_of(), FIRST]))

    with pytest.raises(DataError, match=rf"must list every stay once, .* such as \['{FIRST}'\]"):
        load(folder)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (",In-hospital_death", r"\['In-hospital_death'\] is there \[2\] times"),
        ("", "cannot be read: Error tokenizing data"),
    ],
)
def test_outcomes_with_a_column_twice_or_a_field_too_many_are_refused(
    tmp_path: Path, more: str, expected: str
):
    folder = write_folder(tmp_path, stays_of())
    header, *rows = outcomes_text(list(stays_of())).splitlines()
    (folder / "Outcomes-a.txt").write_text("\n".join([header + more, *(f"{r},0" for r in rows)]))

    with pytest.raises(DataError, match=expected):
        load(folder)


def test_an_outcome_row_that_was_cut_off_is_refused(tmp_path: Path):
    folder = write_folder(tmp_path, stays_of())
    text = outcomes_text(list(stays_of()))
    (folder / "Outcomes-a.txt").write_text(text.replace(f"{FIRST},6,1,5,-1,0", f"{FIRST},6"))

    with pytest.raises(DataError, match=r"must be 0 or 1, but also is \[''\]"):
        load(folder)


def test_an_outcome_file_may_have_a_byte_order_mark_and_lines_as_on_windows(tmp_path: Path):
    folder = write_folder(tmp_path, stays_of())
    before = load(folder)
    text = outcomes_text(list(stays_of())).replace("\n", "\r\n").replace(",", ", ")
    (folder / "Outcomes-a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())

    assert cohort_hash(load(folder)) == cohort_hash(before)


def test_an_outcome_file_with_semicolons_is_refused(tmp_path: Path):
    folder = write_folder(tmp_path, stays_of())
    text = outcomes_text(list(stays_of())).replace(",", ";")
    (folder / "Outcomes-a.txt").write_text(text)

    with pytest.raises(DataError, match="must have the columns 'RecordID' and 'In-hospital_death'"):
        load(folder)


STRAY = ("._132539.txt", ".DS_Store", "Thumbs.db", "132539.txt~", "README.txt")


def test_files_that_are_no_stays_change_nothing(tmp_path: Path):
    folder = write_folder(tmp_path / "folder", stays_of())
    archive = write_archive(tmp_path / "archive", stays_of(), stray=STRAY)
    before = load(folder), source_hash(section(folder))
    for name in STRAY:
        (folder / "set-a" / name).write_bytes(b"\0stray")
        (folder / name).write_bytes(b"\0stray")

    for each in (folder, archive):
        assert cohort_hash(load(each)) == cohort_hash(before[0])
        assert source_hash(section(each)) == before[1]


def test_content_of_a_stay_and_its_outcome_count_for_the_hash(tmp_path: Path):
    same = source_hash(section(write_folder(tmp_path / "a", stays_of())))
    other = stays_of() | {FIRST: stay_text(FIRST_ID, ["01:00,HR,81"])}
    reordered = dict(reversed(stays_of().items()))

    assert source_hash(section(write_folder(tmp_path / "b", other))) != same
    assert source_hash(section(write_folder(tmp_path / "c", reordered))) != same
    assert source_hash(section(write_archive(tmp_path / "d", stays_of()))) == same


def test_a_file_that_changes_is_hashed_again(tmp_path: Path):
    folder = write_folder(tmp_path, stays_of())
    before = source_hash(section(folder))
    (folder / "set-a" / f"{FIRST}.txt").write_text(stay_text(FIRST_ID, ["01:00,HR,100"]))

    assert source_hash(section(folder)) != before


def test_readmission_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"cohort\.task must be 'mortality'"):
        load(write_folder(tmp_path, stays_of()), task=Task.READMISSION)


def test_more_visits_than_a_stay_has_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"has 4 visits, but cohort\.min_visits=5"):
        load(write_folder(tmp_path, stays_of()), min_visits=5)


@pytest.fixture(scope="module")
def published() -> Cohort:
    if not PUBLISHED.exists():
        pytest.skip(
            f"the challenge's sets are not at {PUBLISHED}; set EAG_RL_PHYSIONET2012 to their folder"
        )
    return load(PUBLISHED)


def test_counts_of_the_published_sets(published: Cohort):
    report = summary(published)

    assert report["splits"] == {
        "train": {"patients": 5250, "visits": 21000, "positives": 737},
        "val": {"patients": 750, "visits": 3000, "positives": 105},
        "test": {"patients": 2000, "visits": 8000, "positives": 280},
    }
    assert sum(published.labels.values()) == 1122
    assert report["features"] == 35


def test_what_is_dropped_of_the_published_sets(published: Cohort):
    dropped = {name: count for name, count in published.dropped.items() if count}

    assert dropped == {
        "values_written_as_minus_1": 4497,
        "pH_values_with_decimal_point_restored": 3,
        "implausible Diastolic blood pressure": 1456,
        "implausible Glucose": 1,
        "implausible Heart Rate": 34,
        "implausible Height": 20,
        "implausible Mean blood pressure": 392,
        "implausible Oxygen saturation": 2,
        "implausible Respiratory rate": 107,
        "implausible Systolic blood pressure": 1642,
        "implausible Temperature": 209,
        "implausible Weight": 371,
        "implausible pH": 12,
        "implausible Blood urea nitrogen": 2,
        "implausible Magnesium": 3,
        "implausible Partial pressure of carbon dioxide": 3,
        "implausible Partial pressure of oxygen": 5,
        "implausible Potassium": 3,
        "implausible Urine output": 9,
        "implausible White blood cell count": 1,
    }


def test_nine_published_stays_have_no_value_and_eight_no_sex(published: Cohort):
    cases = published.cases.values()

    assert sum(bool(np.isnan(case.values).all()) for case in cases) == 9
    assert sum(case.sex is Sex.UNKNOWN for case in cases) == 8
    assert sum(case.age is None for case in cases) == 0
