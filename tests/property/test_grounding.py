import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ehr.answers.claims import read_claims
from ehr.answers.grounding import GroundingChecker, Level, level_of
from ehr.catalogue import BENCHMARK_17, TJH_LABS, FeatureKind
from ehr.catalogue.names import FeatureMatcher
from ehr.cohorts.cohort import PatientCase, Sex
from ehr.language.prompts import shown_number

NUMERIC = [f for f in BENCHMARK_17 if f.kind is FeatureKind.NUMERIC]
COHORTS = {
    features: GroundingChecker(features, FeatureMatcher(features))
    for features in (BENCHMARK_17, TJH_LABS)
}
MATCHER = FeatureMatcher(BENCHMARK_17)
WORDS = {Level.HIGH: "elevated", Level.LOW: "low", Level.NORMAL: "normal"}

VALUES = st.lists(
    st.none() | st.floats(0.01, 3000).map(lambda value: round(value, 3)), min_size=1, max_size=5
)


@st.composite
def records(draw):
    """Features of a cohort, one numeric feature of it, and a case that has only its values."""
    features = draw(st.sampled_from(list(COHORTS)))
    numeric = [feature for feature in features if feature.kind is FeatureKind.NUMERIC]
    feature = draw(st.sampled_from(numeric))
    values = draw(VALUES.filter(lambda column: any(value is not None for value in column)))
    table = np.full((len(values), len(features)), math.nan)
    table[:, features.index(feature)] = [math.nan if v is None else v for v in values]
    case = PatientCase(
        patient_id="p",
        sex=Sex.MALE,
        age=60.0,
        visit_labels=tuple(f"{12 * visit} h" for visit in range(len(values))),
        visit_days=tuple(visit / 2 for visit in range(len(values))),
        values=table,
    )
    return features, feature, case, [shown_number(v) for v in values if v is not None]


def sentences(feature, recorded):
    """What the record says of a feature, by templates; each sentence makes one claim."""
    first, last = recorded[0], recorded[-1]
    written = [f"The {feature.name} was {value}." for value in recorded]
    written.append(
        f"{feature.name}: {' -> '.join(str(v) for v in recorded)}." if first != last else ""
    )
    if last > first:
        written += [f"{feature.name} rose from {first} to {last}.", f"{feature.name} increased."]
    if last < first:
        written += [f"{feature.name} fell from {first} to {last}.", f"{feature.name} is falling."]
    if feature.reference is not None:
        written.append(f"{feature.name} is {WORDS[level_of(last, feature.reference)]}.")
    return [sentence for sentence in written if sentence]


@given(records())
def test_an_answer_made_from_the_record_is_fully_grounded(record):
    features, feature, case, recorded = record
    written = sentences(feature, recorded)

    found = COHORTS[features].check("\n".join(written), case)

    assert len(found.claims) == len(written)
    assert not found.wrong
    assert not found.unsupported_numbers


@given(records())
def test_one_changed_number_is_wrong_and_nothing_else_is(record):
    features, feature, case, recorded = record
    # no recorded value, nor one of them rounded
    strange = f"{max(recorded) + 1.37:.2f}"
    changed = [
        f"{feature.name} was {strange}",
        f"{feature.name} rose from {recorded[0]} to {strange}",
    ]

    text = "\n".join([*sentences(feature, recorded), *(f"{sentence}." for sentence in changed)])
    found = COHORTS[features].check(text, case)

    texts = [checked.claim.text for checked in found.wrong]
    assert len(texts) == len(changed)
    # A name may begin with a bracket, which is no part of the claim.
    assert all(sentence.endswith(text) for sentence, text in zip(changed, texts, strict=True))


@given(records())
def test_the_opposite_direction_is_wrong(record):
    features, feature, case, recorded = record
    opposite = "fell" if recorded[-1] >= recorded[0] else "rose"

    found = COHORTS[features].check(
        f"{feature.name} {opposite} from {recorded[0]} to {recorded[-1]}.", case
    )

    assert len(found.wrong) == 1


@settings(max_examples=300)
@given(
    st.text(max_size=120)
    | st.lists(
        st.sampled_from(
            (
                *(
                    "pH",
                    "HR",
                    "glucose",
                    "rose",
                    "fell",
                    "is",
                    "was",
                    "from",
                    "to",
                    "7.4",
                    "100",
                    "%",
                ),
                *("(", ")", ",", ".", "low", "high", "not", "and", "->", "Age", "\n"),
            )
        ),
        max_size=20,
    ).map(" ".join)
)
def test_any_text_has_claims_that_are_parts_of_it_or_none(text):
    claims = read_claims(text, MATCHER)

    for claim in claims:
        assert 0 <= claim.start < claim.end <= len(text)
        assert claim.text == text[claim.start : claim.end].strip()
        assert all(number in claim.text for number in claim.numbers)
        assert claim.numbers or claim.direction or claim.level
