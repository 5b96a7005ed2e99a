import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from ehr.catalogue import BENCHMARK_17, TJH_LABS
from ehr.catalogue.name_lists import name_spans, split_names
from ehr.catalogue.names import FeatureMatcher

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

    assert len(canonical) <= sum(len(BENCHMARK.members(name)) for name in names)
    assert BENCHMARK.canonical_set(sorted(canonical)) == canonical


WORDS = st.sampled_from(
    [
        *(
            "pH",
            "albumin",
            "pre",
            "Age",
            "Sex",
            "heart rate",
            "lactate",
            "free",
            "urine",
            "T",
            "PT",
        ),
        *(
            "not",
            "no",
            "and",
            "or",
            "&",
            "/",
            "but",
            "rather than",
            "both",
            "(",
            ")",
            ":",
            ">",
            "-",
        ),
        *(
            "with",
            "then",
            "|",
            "also",
            ",",
            "\u2013",
            "!",
            "~",
            "\u00ac",
            "ignored",
            "all",
            "ionized",
        ),
        *("low", "7.1", "%", "of", "in", "relevant", "ratio", "calcium", "corrected", "direct"),
    ]
)


@settings(max_examples=40)
@given(words=st.lists(WORDS, max_size=9), mark=st.sampled_from([" ", "-", ""]))
def test_a_match_is_the_only_known_member_and_members_are_read_as_themselves(words, mark):
    written = mark.join(words)

    for matcher in (BENCHMARK, TJH):
        members = matcher.members(written)
        known = {member for member in members if matcher.match(member) == member}

        assert matcher.match(written) == (known.pop() if len(known) == 1 else None)
        assert matcher.canonical_set(sorted(matcher.canonical_set([written]))) == (
            matcher.canonical_set([written])
        )


@given(
    names=st.lists(st.sampled_from(TJH_NAMES), max_size=12), mark=st.sampled_from([", ", ";", "\n"])
)
def test_joined_names_split_into_themselves(names, mark):
    assert split_names(mark.join(names)) == names


@settings(max_examples=200)
@given(text=st.text(max_size=200))
def test_split_names_hold_letters_and_no_separator_but_before_what_explains_them(text):
    for name in split_names(text):
        assert any(character.isalpha() for character in name)
        assert not set(name) & set(";\n\r")


@given(
    parts=st.lists(st.sampled_from(["pH", "calcium", "ionized", "urine", "no", "1."]), max_size=9),
    mark=st.sampled_from([", ", ",", "\n", ",\n", '", "']),
)
def test_names_stand_where_they_are_said_to_and_in_order(parts, mark):
    text = mark.join(parts)

    spans = name_spans(text)

    assert [text[start:end] for start, end in spans] == split_names(text)
    assert spans == sorted(spans)
    assert all(first[1] < second[0] for first, second in itertools.pairwise(spans))
