"""The report's section on another test cohort, from files that may be odd."""

import json

from tests.report_page import EVIL, read_page
from tests.run_folder_sample import write_sample_run
from training.report.other_cohort import other_cohort_section
from training.report.records import RunRecords

FOUND = {
    "cohort": {"name": "tjh", "test_patients": 200, "asked_patients": 60},
    "trained_on": "physionet2012",
    "map": {
        "pairs": [{"rule": "Glucose [mg/dL] = 18.016 x glucose [mmol/L]", "note": ""}],
        "missing": ["Heart Rate"],
        "unused": ["ferritin", "ESR"],
        "refused": ["pH, PH value: urine"],
    },
    "rows": [
        {"method": "logistic_regression_shared", "auroc": 0.7, "n": 200},
        {"method": "eag_rl", "auroc": 0.6, "auroc_low": 0.5, "auroc_high": 0.7, "n": 60},
    ],
}


def test_language_models_stand_above_models_of_the_record():
    section = other_cohort_section(RunRecords(other_cohort=FOUND))

    assert section is not None
    assert [row[0] for row in section["rows"]] == [
        "EAG-RL",
        "Logistic regression, shared features",
    ]
    assert section["rows"][0][1] == "0.600 [0.500, 0.700]"
    assert (section["test_patients"], section["asked_patients"]) == ("200", "60")
    assert section["num_unused"] == 2


def test_own_test_patients_among_the_other_cohorts_are_said():
    shared = FOUND | {"cohort": FOUND["cohort"] | {"own_test_patients": 20}}
    section = other_cohort_section(RunRecords(other_cohort=shared))
    without = other_cohort_section(RunRecords(other_cohort=FOUND))

    assert section is not None
    assert section["own_patients"].startswith("20 of its 200 test patients are test patients of")
    assert without is not None
    assert without["own_patients"] == ""


def test_there_is_no_section_without_another_cohort():
    assert other_cohort_section(RunRecords()) is None


def test_a_file_of_other_kinds_of_value_leaves_dashes():
    odd = {"cohort": 3, "map": {"pairs": "x", "missing": {}}, "rows": [None, 4]}

    section = other_cohort_section(RunRecords(other_cohort=odd))

    assert section is not None
    assert (section["name"], section["rows"], section["pairs"]) == ("\u2013", [], [])


def test_names_on_the_page_are_text(tmp_path):
    run = write_sample_run(tmp_path / "run")
    hostile = FOUND | {"trained_on": EVIL, "map": {"missing": [EVIL], "refused": [EVIL]}}
    (run / "evaluate" / "other_cohort.json").write_text(json.dumps(hostile))

    page = read_page(run)

    assert page.open == []
    assert "Another test cohort: tjh" in page.text
