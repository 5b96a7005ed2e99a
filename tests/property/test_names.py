from hypothesis import given, settings
from hypothesis import strategies as st

from ehr.catalogue import BENCHMARK_17, TJH_LABS
from ehr.names import FeatureMatcher, split_names

TJH = FeatureMatcher(TJH_LABS)
TJH_NAMES = sorted(feature.name for feature in TJH_LABS)
BENCHMARK = FeatureMatcher(BENCHMARK_17)
WRITTEN = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40)


@given(
    name=st.sampled_from(TJH_NAMES),
    change=st.sampled_from([str.upper, str.lower, str.title, lambda text: f"  {text} "]),
    after=st.sampled_from(
        ["", " high", " (low)", ": 12.5", " = 3 mmol/L", " [1.0", " is elevated"]
    ),
)
def test_case_blanks_values_units_and_qualifiers_do_not_change_the_match(name, change, after):
    assert TJH.match(change(name) + after) == name


@given(text=WRITTEN)
def test_any_text_matches_a_known_feature_or_none_and_the_match_is_stable(text):
    name = BENCHMARK.match(text)

    assert name is None or BENCHMARK.match(name) == name


@given(names=st.lists(WRITTEN, max_size=12))
def test_a_set_is_no_larger_than_its_list_and_keeps_its_members(names):
    canonical = BENCHMARK.canonical_set(names)

    assert len(canonical) <= len(names)
    assert BENCHMARK.canonical_set(sorted(canonical)) == canonical


@given(
    names=st.lists(st.sampled_from(TJH_NAMES), max_size=12), mark=st.sampled_from([", ", ";", "\n"])
)
def test_joined_names_split_into_themselves(names, mark):
    assert split_names(mark.join(names)) == names


@settings(max_examples=200)
@given(text=st.text(max_size=200))
def test_split_names_hold_letters_and_no_separator(text):
    for name in split_names(text):
        assert any(character.isalpha() for character in name)
        assert not set(name) & set(",;\n")
