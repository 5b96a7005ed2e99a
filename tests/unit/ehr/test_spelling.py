import pytest

from ehr.catalogue.spelling import corrected, is_one_slip

VOCABULARY = {"creatinine", "hemoglobin", "prothrombin", "thrombin", "weight", "gender", "globulin"}


@pytest.mark.parametrize(
    ("written", "known"),
    [
        ("creatinin", "creatinine"),
        ("creatininee", "creatinine"),
        ("hemaglobin", "hemoglobin"),
        ("hmegolobin", "hmegolobin"),
        ("hemoglboin", "hemoglobin"),
        ("prothrombin", "prothrombin"),
        ("creatine", "creatine"),
        ("tender", "tender"),
        ("wieght", "wieght"),
    ],
)
def test_one_slip_in_a_long_word_is_mended_and_nothing_else(written: str, known: str):
    assert corrected(written, VOCABULARY) == known


def test_a_word_between_two_known_ones_stays():
    assert corrected("troponint", {"troponinx", "troponins"}) == "troponint"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("abc", "abc", False),
        ("abc", "ab", True),
        ("abc", "xabc", True),
        ("abc", "acb", True),
        ("abcd", "badc", False),
        ("abc", "axc", True),
        ("abc", "c", False),
        ("", "a", True),
    ],
)
def test_a_slip_is_one_letter_more_less_wrong_or_swapped(first, second, expected: bool):
    assert is_one_slip(first, second) is expected
    assert is_one_slip(second, first) is expected
