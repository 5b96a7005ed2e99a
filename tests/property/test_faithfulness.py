import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ehr.answers.faithfulness import (
    MaskedPair,
    MaskedProbabilities,
    Unjudged,
    choose_pair,
    faithfulness,
)
from ehr.catalogue import Feature
from ehr.cohorts.cohort import PatientCase, Sex
from tests.typed import known

NAMES = ("a", "b", "c", "d", "e")
FEATURES = tuple(Feature(name=name) for name in NAMES)
cases = st.lists(
    st.lists(st.just(float("nan")) | st.floats(0, 9), min_size=5, max_size=5),
    min_size=1,
    max_size=4,
).map(
    lambda rows: PatientCase(
        patient_id="p",
        sex=Sex.MALE,
        age=60.0,
        visit_labels=tuple(str(row) for row in range(len(rows))),
        visit_days=tuple(float(row) for row in range(len(rows))),
        values=np.array(rows),
    )
)
named_sets = st.frozensets(st.sampled_from((*NAMES, "Age & Sex", "unknown")))
written = st.integers(0, 100).map(lambda percent: percent / 100)
answers = st.builds(
    MaskedProbabilities, original=written, without_named=written, without_unnamed=written
)


@given(cases, named_sets, st.integers(0, 99))
def test_a_pair_is_as_alike_as_the_record_allows(case, named, seed):
    counts: dict[str, int] = dict(
        zip(NAMES, np.isfinite(case.values).sum(axis=0).tolist(), strict=True)
    )
    chosen = [name for name in NAMES if counts[name] and name in named]
    others = [name for name in NAMES if counts[name] and name not in named]

    pair = choose_pair(case, FEATURES, named, seed)

    if not chosen:
        assert pair is Unjudged.NOTHING_NAMED
    elif not others:
        assert pair is Unjudged.NOTHING_ELSE
    else:
        assert isinstance(pair, MaskedPair)
        assert pair.named in chosen
        assert pair.unnamed in others
        gap = abs(pair.num_named_values - pair.num_unnamed_values)
        assert gap == min(abs(counts[a] - counts[b]) for a in chosen for b in others)


@given(cases, named_sets, st.integers(0, 99))
def test_masking_deletes_the_values_of_one_feature(case, named, seed):
    pair = choose_pair(case, FEATURES, named, seed)
    if isinstance(pair, Unjudged):
        return

    for name, num, masked in (
        (pair.named, pair.num_named_values, pair.without_named),
        (pair.unnamed, pair.num_unnamed_values, pair.without_unnamed),
    ):
        column = NAMES.index(name)
        assert np.isfinite(case.values).sum() - np.isfinite(masked.values).sum() == num > 0
        kept = np.delete(masked.values, column, axis=1)
        np.testing.assert_array_equal(kept, np.delete(case.values, column, axis=1))


@given(st.lists(answers, min_size=1, max_size=12))
def test_exchanging_the_two_features_turns_the_sign(judged):
    exchanged = [
        MaskedProbabilities(
            original=each.original,
            without_named=each.without_unnamed,
            without_unnamed=each.without_named,
        )
        for each in judged
    ]

    found, other = faithfulness(judged, [], 50), faithfulness(exchanged, [], 50)

    assert found.difference == -known(other.difference)
    assert -1 <= known(found.difference_low) <= known(found.difference_high) <= 1
    shares = (found.share_named_more, found.share_equal, other.share_named_more)
    assert np.isclose(sum(known(share) for share in shares), 1)
