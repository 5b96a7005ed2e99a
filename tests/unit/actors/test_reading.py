"""What is kept of sampled texts, garbage included."""

import pytest

from actors.reading import (
    fit_tokens,
    mostly_foreign,
    read_answer,
    read_feature_names,
    read_opening,
    read_question,
    read_score,
    same_question_key,
    usefulness_of,
)
from tests.scripted import ByteTokenizer


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Is the heart rate rising? And is the", "Is the heart rate rising?"),
        ("Is the heart rate rising", ""),
        ("", ""),
    ],
)
def test_a_question_at_the_limit_is_cut_at_its_last_mark_or_dropped(text: str, kept: str) -> None:
    content = read_question(text, "length")

    assert (content.text, content.cut) == (kept, True)


def test_a_finished_question_is_stripped_and_kept() -> None:
    assert read_question("  Is pH low \n", "stop").text == "Is pH low"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("It fell. Then it ro", "It fell."),
        ("The pH is 7.35 and falli", "The pH is 7.35 and falli"),
        ("It fell. The pH is 7.", "It fell."),
        ("Up to 12. Then down", "Up to 12."),
    ],
)
def test_an_answer_at_the_limit_is_cut_at_its_last_sentence_end(text: str, kept: str) -> None:
    content = read_answer(text, "length")

    assert (content.text, content.cut) == (kept, True)


def test_a_tag_ends_an_answer_but_a_comparison_does_not() -> None:
    assert read_answer("pH <7.2 is low</Answ", "length").text == "pH <7.2 is low"
    assert read_answer("Low. <Final answer> 0.9", "stop").text == "Low."


def test_names_at_the_limit_lose_the_unfinished_one() -> None:
    assert read_feature_names("pH, Glucose, Hea", "length").text == "pH, Glucose"
    assert read_feature_names("pH and on and on", "length").text == ""


def test_the_final_is_recognised_by_the_tag_it_opens() -> None:
    final = read_opening("<Final subquestion> What is the risk?", "stop", 1)
    other = read_opening("\n<subquestion 2>Is the final state bad?", "stop", 2)

    assert (final.final, final.question.text) == (True, "What is the risk?")
    assert (other.final, other.question.text) == (False, "Is the final state bad?")


def test_a_tag_with_another_steps_number_is_read_and_said() -> None:
    wrong, right = (read_opening(f"<Subquestion {i}> Is it?", "stop", 2) for i in (7, 2))

    assert (wrong.question.text, wrong.misnumbered) == ("Is it?", True)
    assert not right.misnumbered
    assert not read_opening("<Subquestion> Is it?", "stop", 2).misnumbered


def test_a_spelled_out_control_token_ends_a_text() -> None:
    assert read_answer("It fell. <|im_end|> More.", "stop").text == "It fell."
    assert read_opening("Is it? <|x|>", "stop", 1).question.text == "Is it?"


def test_a_line_is_cut_where_its_own_tokens_reach_the_limit() -> None:
    heart = "\u5fc3" * 4  # three bytes each

    assert fit_tokens(heart, 8, ByteTokenizer(), "\n") == heart[:2]  # 6 bytes and the line end
    assert fit_tokens(heart, 2, ByteTokenizer(), "\n") == ""
    assert fit_tokens("low", 4, ByteTokenizer(), "\n") == "low"


def test_a_text_in_another_script_is_recognised_by_its_letters() -> None:
    assert mostly_foreign("\u5fc3\u7387 85%")
    assert not mostly_foreign("Fi\u00e8vre 38 \u00b0C")
    assert not mostly_foreign("85% \U0001f494")


def test_an_opening_without_a_tag_is_a_subquestion_and_says_so() -> None:
    opening = read_opening("Is it bad?", "stop", 1)

    assert (opening.final, opening.tagged, opening.question.text) == (False, False, "Is it bad?")


def test_an_opening_at_the_limit_is_cut_at_its_last_mark() -> None:
    assert read_opening("<Subquestion 1> Is it? Or", "length", 1).question.text == "Is it?"


@pytest.mark.parametrize(("text", "score"), [("1", 1), ("10", 10), ("100", 100), (" 42\n", 42)])
def test_scores_from_1_to_100_are_read(text: str, score: int) -> None:
    assert read_score(text, "stop") == score


@pytest.mark.parametrize("text", ["0", "101", "1.5", "85%", "", "high", "07", "100 of 100"])
def test_other_scores_are_unreadable(text: str) -> None:
    assert read_score(text, "stop") is None


def test_a_score_at_the_token_limit_is_unreadable() -> None:
    assert read_score("10", "length") is None


def test_usefulness_spans_zero_to_one() -> None:
    assert (usefulness_of(1), usefulness_of(100)) == (0.0, 1.0)


def test_questions_that_differ_in_case_blanks_and_closing_marks_are_the_same() -> None:
    assert same_question_key("Is  PH low?") == same_question_key("is ph low ")
    assert same_question_key("Is pH low?") != same_question_key("Is pH high?")
    assert same_question_key("caf\u00e9\uff1f") == same_question_key("CAFE\u0301")
