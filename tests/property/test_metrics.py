import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehr.metrics import auprc, auroc, bootstrap, brier, ece, paired_difference, performance
from ehr.salience.agreement import (
    agreement,
    best_constant_set,
    jaccard,
    mean_jaccard,
)

PATIENTS = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 100).map(lambda v: v / 100)),
    min_size=1,
    max_size=40,
)
SETS = st.lists(st.sets(st.sampled_from("abcdefgh"), max_size=5), min_size=1, max_size=12)


def columns(patients: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [label for label, _ in patients], [probability for _, probability in patients]


@given(PATIENTS)
def test_metrics_lie_in_the_unit_interval_or_do_not_exist(patients) -> None:
    labels, probabilities = columns(patients)

    for value in (auroc(labels, probabilities), auprc(labels, probabilities)):
        assert value is None or 0 <= value <= 1
    assert 0 <= brier(labels, probabilities) <= 1
    assert 0 <= ece(labels, probabilities) <= 1


@given(PATIENTS)
def test_reversed_probabilities_mirror_the_auroc(patients) -> None:
    labels, probabilities = columns(patients)
    value = auroc(labels, probabilities)
    mirrored = auroc(labels, [1 - p for p in probabilities])

    assert (value is None) == (mirrored is None)
    assert value is None or mirrored == pytest.approx(1 - value)


@given(PATIENTS, st.randoms())
def test_the_order_of_patients_does_not_matter(patients, random) -> None:
    shuffled = list(patients)
    random.shuffle(shuffled)

    assert auroc(*columns(shuffled)) == pytest.approx(auroc(*columns(patients)))
    assert auprc(*columns(shuffled)) == pytest.approx(auprc(*columns(patients)))
    assert ece(*columns(shuffled)) == pytest.approx(ece(*columns(patients)))


@given(PATIENTS)
@settings(max_examples=40)
def test_every_resample_is_counted_and_in_range(patients) -> None:
    result = bootstrap(*columns(patients), "auprc", num_resamples=30, seed=1)

    assert len(result.values) + result.num_skipped == 30
    assert ((result.values >= 0) & (result.values <= 1 + 1e-12)).all()


@given(PATIENTS)
@settings(max_examples=30)
def test_swapping_the_methods_turns_the_difference_around(patients) -> None:
    labels, probabilities = columns(patients)
    other = probabilities[::-1]

    forth = paired_difference(labels, probabilities, other, "auroc", 30)
    back = paired_difference(labels, other, probabilities, "auroc", 30)

    assert forth.num_skipped == back.num_skipped
    if forth.low is not None and back.high is not None:
        assert forth.low == pytest.approx(-back.high)


@given(PATIENTS)
@settings(max_examples=30)
def test_a_row_of_results_is_always_json(patients) -> None:
    json.dumps(performance(*columns(patients), num_resamples=10), allow_nan=False)


@given(st.sets(st.sampled_from("abcdefgh")), st.sets(st.sampled_from("abcdefgh")))
def test_jaccard_is_symmetric_and_one_for_equal_sets_only(first, second) -> None:
    value = jaccard(first, second)

    assert value == jaccard(second, first)
    assert 0 <= value <= 1
    assert (value == 1) == (first == second and bool(first))


@given(SETS, st.integers(1, 4))
def test_no_set_of_that_size_beats_the_best_constant_set(sets, size: int) -> None:
    chosen, value = best_constant_set(sets, size)
    rng = np.random.default_rng(0)
    names = sorted(set().union(*sets))
    rivals = (
        [rng.choice(names, min(size, len(names)), replace=False) for _ in range(5)] if names else []
    )

    assert len(chosen) == min(size, len(names))
    assert value == pytest.approx(mean_jaccard([chosen] * len(sets), sets))
    assert all(mean_jaccard([set(rival)] * len(sets), sets) <= value + 1e-6 for rival in rivals)


@given(SETS)
def test_agreement_with_oneself_is_never_below_chance(sets) -> None:
    result = agreement(sets, sets, size=3)

    assert result.jaccard_permuted is None or result.jaccard_permuted <= 1
    if all(sets):
        assert result.jaccard == 1
        assert result.kappa is None or result.kappa == pytest.approx(1)
