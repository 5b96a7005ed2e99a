import pytest

from ehr.answers.claims import Direction, Level, read_claims
from ehr.answers.grounding import grounding_error_rate, level_of, stable_tolerance
from ehr.catalogue import BENCHMARK_17, TJH_LABS
from ehr.catalogue.names import FeatureMatcher, Mention
from tests.golden.test_grounding import CASE, CHECKER

BENCHMARK = FeatureMatcher(BENCHMARK_17)
TJH = FeatureMatcher(TJH_LABS)


def problem_of(sentence: str) -> str | None:
    (checked,) = CHECKER.check(sentence, CASE).claims
    return checked.problem


@pytest.mark.parametrize(
    ("sentence", "problem"),
    [
        ("Heart rate was 135.", "Heart Rate was never 135"),
        ("Weight was 80 kg.", "Weight was never recorded"),
        ("Heart rate rose from 120 to 88.", "Heart Rate was not 88 after 120"),
        ("Systolic blood pressure fell from 57 to 70.", "57 to 70 is not down"),
        ("Heart rate is stable.", "88 to 120 is not stable"),
        ("Heart rate is low.", "120 is not low (60 to 100 is normal)"),
        ("Heart rate was low.", "88, 102, 120 is not low (60 to 100 is normal)"),
        ("This 76-year-old is frail.", "the age is 67, not 76"),
    ],
)
def test_a_wrong_claim_says_why(sentence: str, problem: str):
    assert problem_of(sentence) == problem


def test_a_claim_knows_its_words_numbers_and_place():
    text = "He is unwell. SpO2 fell from 97% to 88%."

    (claim,) = read_claims(text, BENCHMARK)

    assert claim.feature == "Oxygen saturation"
    assert claim.text == "SpO2 fell from 97% to 88"
    assert text[claim.start : claim.end] == claim.text
    assert claim.numbers == ("97", "88")
    assert claim.is_sequence
    assert claim.has_percent_sign
    assert claim.direction is Direction.DOWN


@pytest.mark.parametrize(
    ("first", "reference", "tolerance"),
    [
        (100.0, None, 10.0),
        # width .1 over twice the sum of the bounds
        (7.4, (7.35, 7.45), 7.4 * 0.1 / 29.6),
        (80.0, (60, 100), 8.0),
        (-50.0, None, 5.0),
        (15.0, (15, 15), 1.5),
    ],
)
def test_stable_is_a_tenth_or_less_where_the_range_is_narrow(first, reference, tolerance):
    assert stable_tolerance(first, reference) == pytest.approx(tolerance)


@pytest.mark.parametrize(
    ("value", "level"),
    [(59.9, Level.LOW), (60, Level.NORMAL), (100, Level.NORMAL), (100.1, Level.HIGH)],
)
def test_bounds_of_a_reference_range_are_normal(value: float, level: Level):
    assert level_of(value, (60, 100)) is level


def test_an_error_rate_needs_a_checked_claim():
    assert grounding_error_rate(0, 0) is None
    assert grounding_error_rate(1, 4) == 0.25


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("the HR rose", [Mention(name="Heart Rate", start=4, end=6)]),
        ("the hr rose", []),
        ("PaO2/FiO2 ratio of 200", []),
        ("urine pH of 6", []),
        ("heart rate variability", []),
        ("sweetheart rate", []),
        (
            "pH and glucose",
            [Mention(name="pH", start=0, end=2), Mention(name="Glucose", start=7, end=14)],
        ),
    ],
)
def test_mentions_are_where_a_sentence_names_a_feature(text: str, mentions: list[Mention]):
    assert BENCHMARK.mentions(text) == mentions


def test_a_patient_is_no_prothrombin_time_in_a_sentence():
    assert TJH.mentions("Pt was 67 and PT was 16.8") == [
        Mention(name="Prothrombin time", start=14, end=16)
    ]


@pytest.mark.parametrize(
    ("text", "unsupported"),
    [
        ("A value of 41.3 was seen.", ("41.3",)),
        ("A risk of 0.41 follows.", ()),
        ("Visit 2 on 2020-01-11, 48 hours later.", ()),
        ("More than 400, or by 300, or 20 %.", ()),
        ("The 3rd value was 102.", ()),
    ],
)
def test_bounds_times_ordinals_and_risks_are_no_unsupported_numbers(text, unsupported):
    assert CHECKER.check(text, CASE).unsupported_numbers == unsupported
