import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ehr.catalogue.names import FeatureMatcher
from ehr.cohorts.loaders import build_cohort
from ehr.config import CohortSection, PromptSection
from ehr.language.prompts import shown_case
from ehr.metrics import paired_difference
from ehr.seeds import holm
from services.types import BASE_POLICY, RiskReading
from training.evaluation.answers import AnswerParser, Answers
from training.evaluation.predictions import (
    concatenate,
    expert_rows,
    reading_text,
    record_rows,
)
from training.evaluation.results import difference_rows, readable_probability, result_rows

SALIENT = frozenset({"pH", "Glucose", "Heart Rate", "Temperature", "Age & Sex"})

GOOD = (
    "<Final subquestion>\nx\n</Final subquestion>\n<Important Features>\n"
    "pH, glucose, HR, temperature, age\n</Important Features>\n"
    "<Final answer>\n0.85\n</Final answer>"
)


@pytest.fixture(scope="module")
def reader():
    cohort = build_cohort(CohortSection(num_patients=60))
    return AnswerParser(
        cohort=cohort,
        matcher=FeatureMatcher(cohort.features),
        salient=dict.fromkeys(cohort.splits["test"], SALIENT),
    )


def rows_of(reader, kind, text, truncated=False):
    patient = reader.cohort.splits["test"][0]
    answers = Answers(
        kind=kind,
        texts={patient: (text, truncated)},
        shown={patient: reader.cohort.cases[patient]},
    )
    return reader.rows("eag_rl", answers)


def test_a_readable_answer_gives_its_probability_and_its_overlap_with_the_expert(reader):
    row = rows_of(reader, "question_decomposition", GOOD).iloc[0]

    assert row["probability"] == 0.85
    assert not row["parse_failed"]
    assert row["reward_att"] == 1.0


@pytest.mark.parametrize(
    ("text", "truncated"),
    [("garbage", False), ("", False), (GOOD, True), ("<Final answer>1.7</Final answer>", False)],
)
def test_an_unreadable_answer_counts_at_the_base_rate_and_is_marked(reader, text, truncated):
    row = rows_of(reader, "question_decomposition", text, truncated).iloc[0]

    assert row["parse_failed"]
    assert row["probability"] == pytest.approx(reader.base_rate)
    assert row["reward_att"] == 0.0


def answer(probability):
    return f"<Final answer>\n{probability}\n</Final answer>"


def sampled(reader, *samples, kind="vanilla"):
    patient = reader.cohort.splits["test"][0]
    answers = Answers(
        kind=kind,
        texts={patient: (samples[0], False)},
        more={patient: tuple((text, False) for text in samples[1:])},
        shown={patient: reader.cohort.cases[patient]},
    )
    return reader.rows("sft", answers).iloc[0]


def test_several_samples_count_with_their_mean(reader):
    row = sampled(reader, answer("0.99"), answer("0.99"), answer("0.01"), answer("0.25"))

    assert row["probability"] == pytest.approx((0.99 + 0.99 + 0.01 + 0.25) / 4)
    assert row["text"] == answer("0.99")
    assert row["sample_probabilities"] == [0.99, 0.99, 0.01, 0.25]
    assert not row["parse_failed"]


def test_an_unreadable_sample_stands_at_the_base_rate_and_marks_itself_only(reader):
    row = sampled(reader, answer("0.99"), "no idea")

    assert row["probability"] == pytest.approx((0.99 + reader.base_rate) / 2)
    assert row["sample_probabilities"] == [0.99, reader.base_rate]
    assert row["sample_failed"] == [False, True]
    assert not row["parse_failed"]


def test_a_patient_without_a_readable_sample_is_marked(reader):
    row = sampled(reader, "no idea", "none either")

    assert row["parse_failed"]
    assert row["probability"] == pytest.approx(reader.base_rate)
    assert readable_probability(row) is None


def test_what_was_said_is_the_mean_of_the_answers_that_could_be_read(reader):
    row = sampled(reader, answer("0.8"), "no idea", answer("0.6"))

    assert readable_probability(row) == pytest.approx(0.7)


def test_the_names_of_every_answer_are_kept(reader):
    two = "<Important Features>\npH, Glucose\n</Important Features>\n" + answer("0.5")

    row = sampled(reader, GOOD, "no idea", two, kind="question_decomposition")

    assert row["features"] == sorted(SALIENT)
    assert row["sample_features"] == [sorted(SALIENT), [], ["Glucose", "pH"]]


def test_one_unreadable_answer_of_eight_is_an_eighth():
    predictions = table("stage1", [0, 1], [0.2, 0.9])
    predictions["sample_failed"] = [[True] + [False] * 7, [False] * 8]

    (row,) = result_rows(predictions, 5, num_resamples=20, seed=1)

    assert row["parse_failure_rate"] == 1 / 16


def test_overlaps_of_a_row_are_over_all_its_answers():
    predictions = table("stage1", [0, 1], [0.2, 0.9])
    predictions["features"] = [["pH"], ["pH"]]
    predictions["salient"] = [["pH"], ["pH", "Glucose"]]
    predictions["reward_att"] = [1.0, 0.5]
    first = result_rows(predictions, 1, num_resamples=20, seed=1)[0]
    predictions["sample_features"] = [[["pH"], []], [["pH"], ["pH", "Glucose"]]]

    every = result_rows(predictions, 1, num_resamples=20, seed=1)[0]

    assert first["reward_att"] == pytest.approx((1 + 0.5) / 2)
    assert every["reward_att"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert every["reward_att_constant"] == first["reward_att_constant"]


def test_prose_is_checked_against_the_record_and_questions_are_not(reader):
    case = reader.cohort.cases[reader.cohort.splits["test"][0]]
    step = (
        "<Subquestion 1>\nIs heart rate 999?\n</Subquestion 1>\n"
        f"<Answer 1>\nAge is {case.age:.0f}. Heart rate was 999. Lactate was 77.7.\n</Answer 1>\n"
    )

    row = rows_of(reader, "question_decomposition", step + GOOD).iloc[0]
    think = rows_of(reader, "think_then_answer", f"<think>{step}</think><answer>0.5</answer>")
    prose = f"Age is {case.age:.0f}. Heart rate was 999."
    in_json = rows_of(
        reader, "think_then_answer_json", json.dumps({"think": prose, "answer": 0.5})
    ).iloc[0]
    vanilla = rows_of(reader, "vanilla", "<Final answer>\n0.50\n</Final answer>")

    assert row["num_claims"] == 2
    assert row["wrong_claims"] == ["Heart rate was 999: Heart Rate was never 999"]
    assert row["unsupported_numbers"] == ["77.7"]
    assert think["num_claims"].iloc[0] == 2
    assert (in_json["num_claims"], in_json["probability"]) == (2, 0.5)
    assert in_json["wrong_claims"] == ["Heart rate was 999: Heart Rate was never 999"]
    assert vanilla["num_claims"].isna().all()


def test_a_claim_about_a_carried_value_is_in_the_record_that_was_shown(reader):
    patient = reader.cohort.splits["test"][0]
    case = reader.cohort.cases[patient]
    column = [feature.name for feature in reader.cohort.features].index("Heart Rate")
    values = np.full((2, len(reader.cohort.features)), np.nan)
    values[0, column] = 88.0
    two = {"visit_labels": ("2020-01-01", "2020-01-02"), "visit_days": (0.0, 1.0)}
    recorded = replace(case, values=values, **two)
    text = "<think>Heart rate was 88, then 88. Heart rate is stable.</think><answer>0.5</answer>"

    def row(section: PromptSection) -> dict:
        answers = Answers(
            kind="think_then_answer",
            texts={patient: (text, False)},
            shown={patient: shown_case(recorded, section)},
        )
        return reader.rows("eag_rl", answers).iloc[0].to_dict()

    carried, as_is = row(PromptSection(missing="locf")), row(PromptSection())

    assert (list(carried["wrong_claims"]), list(as_is["wrong_claims"])) == ([], [])
    assert carried["num_claims"] == as_is["num_claims"] + 1, (
        "stable can be said of two shown values"
    )


def test_a_row_says_which_share_of_its_claims_is_wrong():
    grounded = table("eag_rl", [0, 1], [0.2, 0.9])
    grounded["num_claims"] = [3, 1]
    grounded["wrong_claims"] = [["a: b"], []]
    grounded["unsupported_numbers"] = [["1", "2"], ["3"]]

    checked, silent = result_rows(
        pd.concat([grounded, table("vanilla", [0, 1], [0.2, 0.9])]), 5, num_resamples=20, seed=1
    )

    assert checked["grounding_error_rate"] == 1 / 4
    assert (checked["num_checked_claims"], checked["num_wrong_claims"]) == (4, 1)
    assert checked["num_unsupported_numbers"] == 3
    assert silent["grounding_error_rate"] is None
    assert silent["num_checked_claims"] is None


def test_a_row_has_the_faithfulness_of_its_method_and_null_without_one():
    predictions = pd.concat(
        [table("eag_rl", [0, 1], [0.2, 0.9]), table("vanilla", [0, 1], [0.2, 0.9])]
    )

    tested, other = result_rows(predictions, 5, 20, 1, {"eag_rl": {"difference": 0.1}})

    assert tested["faithfulness"] == {"difference": 0.1}
    assert other["faithfulness"] is None


def test_a_method_that_claims_nothing_has_no_error_rate():
    silent = table("eag_rl", [0, 1], [0.2, 0.9])
    silent["num_claims"] = [0, 0]
    silent["wrong_claims"] = silent["unsupported_numbers"] = [[], []]

    row = result_rows(silent, 5, num_resamples=20, seed=1)[0]

    assert (row["grounding_error_rate"], row["num_checked_claims"]) == (None, 0)


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
            "num_claims": None,
            "wrong_claims": None,
            "unsupported_numbers": None,
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


def test_p_values_are_adjusted_for_all_differences_of_the_table():
    labels, probabilities = [0, 0, 1, 1] * 5, [0.1, 0.4, 0.35, 0.8] * 5
    predictions = pd.concat(
        [
            table("eag_rl", labels, probabilities),
            table("vanilla", labels, probabilities[::-1]),
            table("sft", labels, probabilities),
        ]
    )

    rows = difference_rows(predictions, "eag_rl", num_resamples=200, seed=1)

    assert [row["p"] for row in rows[2:]] == [1.0, 1.0]  # the same answers
    assert [row["p_holm"] for row in rows] == holm([row["p"] for row in rows])
    auroc = rows[0]["difference"] / (rows[0]["minimal_detectable"] / 2.8015852)
    assert rows[0]["p"] == pytest.approx(2 * stats.norm.sf(auroc))


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


def expected(low: int, high: int) -> RiskReading:
    """Half of the mass on each of two hundredths."""
    probabilities = [0.0] * 100
    probabilities[low], probabilities[high] = 0.5, 0.5
    return RiskReading(
        probabilities=tuple(probabilities), policy_version=BASE_POLICY, num_requests=11
    )


def test_an_expected_risk_counts_as_it_is_and_not_as_it_is_written(reader):
    patient = reader.cohort.splits["test"][0]
    answers = Answers(
        kind="vanilla",
        texts={patient: (answer("0.22"), False)},
        more={patient: ((answer("0.40"), False), ("garbage", False))},
        risks={patient: (expected(10, 33), expected(30, 50), expected(1, 2))},
        shown={patient: reader.cohort.cases[patient]},
    )

    row = reader.rows("vanilla", answers).iloc[0]

    assert row["sample_probabilities"] == pytest.approx([0.215, 0.4, reader.base_rate])
    assert row["sample_spreads"] == pytest.approx([0.115, 0.1, 0.005])
    assert row["sample_failed"] == [False, False, True]


@pytest.mark.parametrize(("risks", "reading"), [({}, "sampled"), (None, "expected")])
def test_result_rows_say_how_risks_were_read(reader, risks, reading):
    patients = reader.cohort.splits["test"]
    answers = Answers(
        kind="vanilla",
        texts={patient: (answer("0.22"), False) for patient in patients},
        risks={patient: (expected(10, 33),) for patient in patients} if risks is None else risks,
        shown={patient: reader.cohort.cases[patient] for patient in patients},
    )
    table = concatenate(
        [
            reader.rows("vanilla", answers),
            record_rows(
                "concare",
                patients,
                [reader.cohort.labels[p] for p in patients],
                [0.5] * len(patients),
            ),
        ]
    )

    found = result_rows(table, num_salient_features=5, num_resamples=100, seed=1)

    assert [row.get("reading") for row in found] == [reading, None]
    assert "the number it writes" in reading_text("sampled")
    assert "the hundred numbers" in reading_text("expected")
