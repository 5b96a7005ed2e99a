import pandas as pd
import pytest

from ehr.config import CohortSection
from ehr.loaders import build_cohort
from ehr.metrics import paired_difference
from ehr.names import FeatureMatcher
from training.evaluation import AnswerReader, difference_rows, expert_rows, result_rows

SALIENT = frozenset({"pH", "Glucose", "Heart Rate", "Temperature", "Age & Sex"})

GOOD = (
    "<Final subquestion>\nx\n</Final subquestion>\n<Important Features>\n"
    "pH, glucose, HR, temperature, age\n</Important Features>\n"
    "<Final answer>\n0.85\n</Final answer>"
)


@pytest.fixture(scope="module")
def reader():
    cohort = build_cohort(CohortSection(num_patients=60))
    return AnswerReader(
        cohort=cohort,
        matcher=FeatureMatcher(cohort.features),
        salient=dict.fromkeys(cohort.splits["test"], SALIENT),
    )


def test_a_readable_answer_gives_its_probability_and_its_overlap_with_the_expert(reader):
    patient = reader.cohort.splits["test"][0]

    row = reader.rows("eag_rl", "question_decomposition", {patient: (GOOD, False)}).iloc[0]

    assert row["probability"] == 0.85
    assert not row["parse_failed"]
    assert row["reward_att"] == 1.0


@pytest.mark.parametrize(
    ("text", "truncated"),
    [("garbage", False), ("", False), (GOOD, True), ("<Final answer>1.7</Final answer>", False)],
)
def test_an_unreadable_answer_counts_at_the_base_rate_and_is_marked(reader, text, truncated):
    patient = reader.cohort.splits["test"][0]

    row = reader.rows("eag_rl", "question_decomposition", {patient: (text, truncated)}).iloc[0]

    assert row["parse_failed"]
    assert row["probability"] == pytest.approx(reader.base_rate)
    assert row["reward_att"] == 0.0


def table(method, labels, probabilities, **more):
    return pd.DataFrame(
        {
            "method": method,
            "patient_id": [f"p{i}" for i in range(len(labels))],
            "label": labels,
            "probability": probabilities,
            "parse_failed": False,
            "text": None,
            "features": None,
            "salient": None,
            "reward_att": None,
        }
        | more
    )


def test_a_row_has_metrics_intervals_and_failures():
    predictions = table("vanilla", [0, 0, 1, 1] * 5, [0.1, 0.4, 0.35, 0.8] * 5)

    row = result_rows(predictions, 5, num_resamples=200, seed=1)[0]

    assert row["auroc"] == pytest.approx(0.75)
    assert row["auroc_low"] <= row["auroc"] <= row["auroc_high"]
    assert (row["n"], row["parse_failure_rate"], row["reward_att"]) == (20, 0.0, None)


def test_the_expert_is_also_scored_on_the_patients_that_the_language_model_was_asked():
    expert = table("concare", [0, 1] * 10, [0.2, 0.9] * 10)
    asked = table("vanilla", [0, 1] * 3, [0.5, 0.4] * 3)

    rows = result_rows(pd.concat([asked, expert]), 5, num_resamples=200, seed=1)

    assert rows[1]["n"] == 20
    assert rows[1]["same_patients"]["n"] == 6


def test_differences_are_paired_on_the_patients_that_both_answered():
    predictions = pd.concat(
        [table("eag_rl", [0, 1] * 4, [0.1, 0.9] * 4), table("concare", [0, 1] * 8, [0.9, 0.1] * 8)]
    )

    rows = difference_rows(predictions, "eag_rl", num_resamples=200, seed=1)

    assert {(row["metric"], row["n"]) for row in rows} == {("auroc", 8), ("auprc", 8)}
    assert rows[0]["difference"] == pytest.approx(1.0)


def test_a_difference_says_what_so_many_patients_could_have_shown():
    labels, probabilities = [0, 0, 1, 1] * 5, [0.1, 0.4, 0.35, 0.8] * 5
    predictions = pd.concat(
        [table("eag_rl", labels, probabilities), table("vanilla", labels, probabilities[::-1])]
    )

    row = difference_rows(predictions, "eag_rl", num_resamples=200, seed=1)[0]

    found = paired_difference(labels, probabilities, probabilities[::-1], "auroc", 200, 1)
    assert row["minimal_detectable"] == found.minimal_detectable
    assert row["minimal_detectable"] > 0


def test_expert_rows_take_the_test_split_only():
    stored = pd.DataFrame(
        {
            "method": ["concare", "concare", "logistic_regression"],
            "patient_id": ["a", "b", "a"],
            "split": ["test", "train", "test"],
            "label": [1, 0, 1],
            "probability": [0.7, 0.2, 0.6],
        }
    )

    rows = expert_rows("concare", stored)

    assert list(rows["patient_id"]) == ["a"]
