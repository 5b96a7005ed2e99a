import numpy as np
import pytest

from ehr.answers.faithfulness import (
    MaskedPair,
    MaskedProbabilities,
    Unjudged,
    choose_pair,
    faithfulness,
)
from ehr.catalogue import AGE_AND_SEX, Feature
from ehr.cohorts.cohort import PatientCase, Sex
from tests.typed import known

FEATURES = tuple(Feature(name=name) for name in ("a", "b", "c", "d"))


def case(values, patient_id="p"):
    table = np.array(values, dtype=float)
    return PatientCase(
        patient_id=patient_id,
        sex=Sex.FEMALE,
        age=50.0,
        visit_labels=tuple(str(visit) for visit in range(len(table))),
        visit_days=tuple(float(visit) for visit in range(len(table))),
        values=table,
    )


nan = float("nan")
# Recorded values: a 2, b 1, c 2, d none.
CASE = case([[1.0, 5.0, 7.0, nan], [2.0, nan, 8.0, nan]])


def test_the_unnamed_feature_has_as_many_values_as_the_named_one():
    for seed in range(20):
        pair = choose_pair(CASE, FEATURES, {"a"}, seed)

        assert isinstance(pair, MaskedPair)
        assert (pair.named, pair.unnamed) == ("a", "c")
        assert (pair.num_named_values, pair.num_unnamed_values) == (2, 2)


def test_pairs_that_are_equally_alike_are_drawn_by_the_seed():
    def unnamed(seed):
        pair = choose_pair(CASE, FEATURES, {"b"}, seed)
        assert isinstance(pair, MaskedPair)
        return pair.unnamed

    drawn = [unnamed(seed) for seed in range(40)]

    assert set(drawn) == {"a", "c"}
    assert unnamed(3) == drawn[3]


def test_a_masked_record_lacks_one_feature_and_nothing_else():
    pair = choose_pair(CASE, FEATURES, {"a"}, seed=0)

    assert isinstance(pair, MaskedPair)
    np.testing.assert_array_equal(
        pair.without_named.values, [[nan, 5.0, 7.0, nan], [nan, nan, 8.0, nan]]
    )
    np.testing.assert_array_equal(
        pair.without_unnamed.values, [[1.0, 5.0, nan, nan], [2.0, nan, nan, nan]]
    )
    assert CASE.values[0, 0] == 1.0  # the record itself is as it was
    assert pair.without_named.visit_days == CASE.visit_days
    assert pair.without_named.patient_id == CASE.patient_id


@pytest.mark.parametrize("named", [set(), {AGE_AND_SEX}, {"d"}, {"a fever"}])
def test_without_a_named_feature_that_the_prompt_shows_nothing_can_be_judged(named):
    assert choose_pair(CASE, FEATURES, named, seed=0) is Unjudged.NOTHING_NAMED


def test_without_an_unnamed_feature_nothing_can_be_judged():
    assert choose_pair(CASE, FEATURES, {"a", "b", "c"}, seed=0) is Unjudged.NOTHING_ELSE


def answers(original, without_named, without_unnamed):
    return MaskedProbabilities(
        original=original, without_named=without_named, without_unnamed=without_unnamed
    )


def test_the_summary_is_what_a_hand_computes():
    found = faithfulness(
        [answers(0.5, 0.8, 0.4), answers(0.5, 0.4, 0.6), answers(0.2, 0.2, 0.4)],
        [Unjudged.NOTHING_NAMED, Unjudged.UNREADABLE_MASKED, Unjudged.NOTHING_NAMED],
        num_resamples=200,
    )

    assert found.named_change == pytest.approx((0.3 + 0.1 + 0.0) / 3)
    assert found.unnamed_change == pytest.approx((0.1 + 0.1 + 0.2) / 3)
    assert found.difference == pytest.approx((0.2 + 0.0 - 0.2) / 3, abs=1e-12)
    assert known(found.difference_low) < 0 < known(found.difference_high)
    assert found.share_named_more == pytest.approx(1 / 3)
    assert found.share_equal == pytest.approx(1 / 3)
    assert found.num_judged == 3
    assert found.unjudged == {"a masked answer is unreadable": 1, "no recorded feature is named": 2}


def test_equal_changes_in_two_digits_are_equal():
    found = faithfulness([answers(0.3, 0.1, 0.5), answers(0.7, 0.8, 0.6)], [])

    assert found.difference == 0
    assert found.share_equal == 1
    assert (found.difference_low, found.difference_high) == (0, 0)


def test_without_a_judged_patient_there_is_no_figure():
    found = faithfulness([], [Unjudged.NOTHING_ELSE])

    assert (found.difference, found.difference_low, found.share_named_more) == (None, None, None)
    assert (found.num_judged, found.unjudged) == (0, {"no other feature is recorded": 1})
