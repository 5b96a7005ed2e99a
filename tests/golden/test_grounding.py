"""Sentences about one patient with the claims that each makes, against `data/grounding.tsv`.

The file was written by hand before the checker: `checked` claims, how many of them are `wrong`, and
how many numbers outside of them the record does not hold.
"""

import csv
from pathlib import Path

import numpy as np
import pytest

from ehr.answers.grounding import GroundingChecker
from ehr.catalogue import BENCHMARK_17
from ehr.catalogue.names import FeatureMatcher
from ehr.cohorts.cohort import PatientCase, Sex

NAN = float("nan")
RECORD = {
    "Heart Rate": (88, 102, 120),
    "Systolic blood pressure": (57, NAN, 70),
    "Diastolic blood pressure": (70, 65, 50),
    "Mean blood pressure": (61, 58, 57),
    "Glucose": (157, NAN, 178.4),
    "pH": (7.41, 7.3, 7.21),
    "Temperature": (36.8, 36.9, 36.7),
    "Oxygen saturation": (97, 92, 88),
    "Respiratory rate": (18, NAN, NAN),
    "Glasgow coma scale total": (15, 15, 15),
    "Glasgow coma scale verbal response": (5, 5, 4),
    "Fraction inspired oxygen": (50, 50, 60),
}
"""The patient's values at three visits, a day apart; other features were never recorded."""

CASE = PatientCase(
    patient_id="p",
    sex=Sex.FEMALE,
    age=67.2,
    visit_labels=("2020-01-10", "2020-01-11", "2020-01-12"),
    visit_days=(0.0, 1.0, 2.0),
    values=np.array([RECORD.get(f.name, (NAN, NAN, NAN)) for f in BENCHMARK_17]).T,
)
CHECKER = GroundingChecker(BENCHMARK_17, FeatureMatcher(BENCHMARK_17))

with (Path(__file__).parent / "data" / "grounding.tsv").open(encoding="utf-8") as file:
    ROWS = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.mark.parametrize(
    ("checked", "wrong", "unsupported", "sentence"),
    [tuple(row.values()) for row in ROWS],
    ids=[row["sentence"] for row in ROWS],
)
def test_a_sentence_has_its_claims_checked(checked, wrong, unsupported, sentence):
    found = CHECKER.check(sentence, CASE)

    assert len(found.claims) == int(checked), found
    assert len(found.wrong) == int(wrong), found
    assert len(found.unsupported_numbers) == int(unsupported), found


def test_a_text_of_all_sentences_has_the_claims_of_all():
    text = "\n".join(row["sentence"] for row in ROWS)

    found = CHECKER.check(text, CASE)

    assert len(found.claims) == sum(int(row["checked"]) for row in ROWS)
    assert len(found.wrong) == sum(int(row["wrong"]) for row in ROWS)
