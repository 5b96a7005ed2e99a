from dataclasses import replace

import pytest

from ehr.cohorts.loaders import build_cohort
from ehr.config import CohortSection
from ehr.errors import DataError
from ehr.language.trajectory import parse_vanilla
from tests.scripted import CharTokenizer
from training.config.sft import DirectSftSection
from training.sft.predictions import (
    choose_held_out,
    choose_predictions,
    direct_answers,
    prediction_examples,
)

COHORT = build_cohort(CohortSection(num_patients=120, num_visits=2))
TRAIN = set(COHORT.splits["train"])
NUM_POSITIVES = sum(COHORT.labels[patient] for patient in TRAIN)


def num_positives(patients):
    return sum(COHORT.labels[patient] for patient in patients)


def test_half_of_the_predictions_are_about_positives():
    chosen = choose_predictions(COHORT, DirectSftSection(num_predictions=12))

    assert (len(chosen), num_positives(chosen), len(set(chosen))) == (12, 6, 12)
    assert set(chosen) <= TRAIN


def test_without_replay_both_classes_give_as_many_as_the_smaller_one_has():
    chosen = choose_predictions(COHORT, DirectSftSection())

    assert len(TRAIN) / 2 > NUM_POSITIVES
    assert (len(chosen), num_positives(chosen)) == (2 * NUM_POSITIVES, NUM_POSITIVES)
    assert len(set(chosen)) == len(chosen)


def test_replay_fills_both_halves_and_repeats_nobody_twice_more_than_another():
    chosen = choose_predictions(COHORT, DirectSftSection(replay=True))
    times = [chosen.count(patient) for patient in TRAIN if COHORT.labels[patient]]

    assert (len(chosen), num_positives(chosen)) == (1000, 500)
    assert max(times) - min(times) <= 1


def test_the_choice_is_a_function_of_its_seed():
    section = DirectSftSection(num_predictions=12)

    assert choose_predictions(COHORT, section) == choose_predictions(COHORT, section)
    assert choose_predictions(COHORT, section) != choose_predictions(
        COHORT, section.model_copy(update={"seed": 1})
    )


def test_held_out_patients_come_from_the_validation_split():
    held_out = choose_held_out(COHORT, DirectSftSection(validation_share=0.2))

    assert len(held_out) == int(0.2 * 2 * NUM_POSITIVES)
    assert set(held_out) <= set(COHORT.splits["val"])


def test_a_handful_of_patients_is_not_held_out():
    assert choose_held_out(COHORT, DirectSftSection(num_predictions=20)) == []


def test_a_cohort_of_one_class_is_refused():
    negatives = COHORT.labels | dict.fromkeys(TRAIN, 0)
    cohort = replace(COHORT, labels=negatives)

    with pytest.raises(DataError, match="0 positives"):
        choose_predictions(cohort, DirectSftSection())


@pytest.mark.parametrize("answer_format", ["guided", "free"])
def test_the_answer_is_the_label_as_the_probability_that_the_prompt_asks_for(answer_format):
    tokenizer = CharTokenizer()

    answers = direct_answers(tokenizer, answer_format)

    read = {label: parse_vanilla(tokenizer.decode(ids)) for label, (ids, _) in answers.items()}
    assert {label: answer.probability for label, answer in read.items()} == {0: 0.01, 1: 0.99}
    assert all(answer.failure is None for answer in read.values())


def test_in_the_guided_format_only_the_probability_is_trained():
    tokenizer = CharTokenizer()

    token_ids, model_written = direct_answers(tokenizer, "guided")[1]

    trained = [token for token, ours in zip(token_ids, model_written, strict=True) if ours]
    assert tokenizer.decode(trained) == "0.99\n"


def test_in_the_free_format_the_whole_answer_is_trained():
    assert all(direct_answers(CharTokenizer(), "free")[0][1])


def test_a_replayed_patient_is_an_example_each_time():
    answers = direct_answers(CharTokenizer(), "guided")

    examples = prediction_examples(
        ["a", "b", "a"], {"a": (1,), "b": (2,)}, {"a": 1, "b": 0}, answers
    )

    assert [each.patient_id for each in examples] == ["a", "b", "a"]
    assert examples[0].responses == (answers[1][0],)
    assert examples[1].responses == (answers[0][0],)
