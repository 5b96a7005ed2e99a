import pytest

from ehr.language.trajectory import (
    ParsedStep,
    parse_probability,
    parse_think,
    parse_trajectory,
    parse_vanilla,
    reasoning_of,
)
from tests.typed import known

WHOLE = """<Subquestion 1>
Is the glucose high?
</Subquestion 1>
<Answer 1>
Yes, 484.0 at first.
</Answer 1>
<Subquestion 2>
Is the pH low?
</Subquestion 2>
<Answer 2>
It stays at 7.13.
</Answer 2>
<Final subquestion>
Now the probability of the outcome can be estimated.
</Final subquestion>
<Important Features>
Glucose, Diastolic blood pressure, pH, Age, Sex
</Important Features>
<Final answer>
0.85
</Final answer>"""


def test_a_whole_trajectory_is_read():
    parsed = parse_trajectory(WHOLE)

    assert parsed.steps == (
        ParsedStep("Is the glucose high?", "Yes, 484.0 at first."),
        ParsedStep("Is the pH low?", "It stays at 7.13."),
    )
    assert parsed.features == ("Glucose", "Diastolic blood pressure", "pH", "Age", "Sex")
    assert parsed.probability == 0.85
    assert parsed.failure is None


def test_the_features_span_holds_the_contents_of_the_last_block():
    text = WHOLE + "\n<Important Features>Weight</Important Features>"

    parsed = parse_trajectory(text)

    start, end = known(parsed.features_span)
    assert text[start:end] == "Weight"
    assert parsed.features == ("Weight",)


def test_close_tags_with_other_numbers_are_tolerated():
    # As Table 4 of the paper shows it.
    text = (
        "<Subquestion 3>What is the trend?</Subquestion 1> <Answer 3>Better.</Answer 3>"
        "<Final answer>0.25</Final answer>"
    )

    assert parse_trajectory(text).steps == (ParsedStep("What is the trend?", "Better."),)


def test_missing_close_tags_are_tolerated():
    text = "<Subquestion 1>\nWhy?\n<Answer 1>\nSo.\n<Important Features>\npH\n<Final answer>\n0.4"

    parsed = parse_trajectory(text)

    assert parsed.steps == (ParsedStep("Why?", "So."),)
    assert parsed.features == ("pH",)
    assert parsed.probability == 0.4


def test_capitals_and_blanks_in_tags_are_tolerated():
    parsed = parse_trajectory("< important  features >pH</ Important features><FINAL ANSWER>.5")

    assert parsed.features == ("pH",)
    assert parsed.probability == 0.5


def test_an_unanswered_question_is_a_step_with_an_empty_answer():
    assert parse_trajectory("<Subquestion 1>\nWhy?").steps == (ParsedStep("Why?", ""),)


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("", "no final answer"),
        ("The patient will die with 0.9.", "no final answer"),
        ("<Answer 1>0.9</Answer 1>", "no final answer"),
        ("<Final answer></Final answer>", "unreadable final answer"),
        ("<Final answer>0.XX</Final answer>", "unreadable final answer"),
        ("<Final answer>high</Final answer>", "unreadable final answer"),
        ("<Final answer>0.2</Final answer><Final answer>0.3", "contradicting final answers"),
    ],
)
def test_what_cannot_be_read_is_a_failure_with_a_reason(text, failure):
    parsed = parse_trajectory(text)

    assert parsed.probability is None
    assert parsed.failure == failure


def test_a_readable_answer_without_features_is_no_failure():
    parsed = parse_trajectory("<Final answer>0.2</Final answer>")

    assert parsed.features == ()
    assert parsed.features_span is None
    assert parsed.failure is None


@pytest.mark.parametrize(
    ("text", "probability"),
    [
        ("0.85", 0.85),
        (" 0.85\n", 0.85),
        (".85", 0.85),
        ("0,85", 0.85),
        ("85%", 0.85),
        ("85 %", 0.85),
        ("85 percent", 0.85),
        ("**0.85**", 0.85),
        ("The probability is 0.85.", 0.85),
        ("0.85 (85%)", 0.85),
        ("0", 0.0),
        ("1", 1.0),
        ("1.0", 1.0),
        ("100%", 1.0),
        ("5e-2", 0.05),
    ],
)
def test_probabilities_are_read(text, probability):
    assert parse_probability(text) == pytest.approx(probability)


@pytest.mark.parametrize(
    "text",
    [
        "", "likely", "0.XX", "0.x", "85", "1.2", "120%", "-0.3", "0.2 or 0.3", "0.2-0.3",
        "0.2 to 0.3", "10-20%", "less than 0.1", "<0.1", "> 0.9", "at least 0.5", "0.8.5", "1,000",
        "10^-3", "nan", "SOFA11",
    ],
)  # fmt: skip
def test_probabilities_are_never_guessed(text):
    assert parse_probability(text) is None


def test_vanilla_is_read_with_and_without_tags():
    assert parse_vanilla("0.3").probability == 0.3
    assert parse_vanilla("<Final answer>\n0.3\n</Final answer>").probability == 0.3
    assert parse_vanilla("I cannot say").failure == "unreadable final answer"


def test_think_reads_the_answer_and_never_the_reasoning():
    assert parse_think("<think>0.9?</think><answer>0.3</answer>").probability == 0.3
    assert parse_think("<think>0.9 <answer>0.8</answer></think>\n0.3").probability == 0.3
    assert parse_think("<think>it may be 0.9").failure == "no final answer"


@pytest.mark.parametrize(
    "text",
    [
        "<think>0.9?</think><answer>85%</answer>",
        "<think>0.9?</think>\n<answer>\n0.85",
        "<think>0.9?</think>\n0.85</answer>",
        "0.9? Hardly.</think>\n**0.85**",
        "<think>0.9?\n<answer>0.85</answer>",
        "<THINK>0.9?</THINK><Answer> .85 </Answer>",
        "<think>0.9?</think><answer>```\n0.85\n```</answer>",
        '<think>0.9?</think><answer>{"answer": 0.85}</answer>',
        "<think>0.9?</think><answer>0.85</answer> I hope that 1 answer helps.",
        "0.85",
        " 85 %\n",
    ],
)
def test_thinking_is_read_as_models_write_it(text: str):
    assert parse_think(text).probability == 0.85


@pytest.mark.parametrize(
    "text",
    [
        "it may be 0.9",
        "<think>0.9</think>",
        "<think>0.9</think><answer>high</answer>",
        "<think>0.9</think><answer>0.2</answer><answer>0.4</answer>",
        "<think>0.9</think><answer>0.2-0.4</answer>",
        "-0.5",
        "< 0.1",
    ],
)
def test_thinking_without_one_probability_is_a_failure(text: str):
    assert parse_think(text).probability is None
    assert parse_think(text).failure is not None


@pytest.mark.parametrize(
    ("text", "prose"),
    [
        ("<Subquestion 1>\nq?\n</Subquestion 1>\n<Answer 1>\nA is 1.\n</Answer 1>", "A is 1."),
        (
            "hello <Answer 1>a<Answer 2>b</Answer 2><Final subquestion>c</Final subquestion>"
            "<Important Features>d</Important Features><Final answer>0.5</Final answer>",
            "a\nb",
        ),
        ("<think>pH fell.\nOK.</think><answer>0.5</answer>", "pH fell.\nOK."),
        ("<think>cut off", "cut off"),
        ("<think>x<Subquestion 1>q<Answer 1>y</think><answer>0.5</answer>", "x\ny"),
        ("<Final answer>\n0.50\n</Final answer>", ""),
        ("0.5", ""),
    ],
)
def test_the_prose_of_an_answer_has_no_questions_lists_or_probability(text: str, prose: str):
    assert reasoning_of(text) == prose
