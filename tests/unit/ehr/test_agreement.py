from itertools import combinations, permutations

import numpy as np
import pytest

from ehr.agreement import (
    agreement,
    best_constant_set,
    jaccard,
    jaccard_above_others,
    mean_jaccard,
)
from ehr.errors import DataError


def test_jaccard_of_the_papers_case_study_is_a_quarter_and_a_half() -> None:
    salient = {"A", "B", "C", "D", "E"}

    assert jaccard({"A", "B", "X", "Y", "Z"}, salient) == 2 / 8
    assert jaccard({"A", "B", "C", "X"}, salient) == 3 / 6


def test_jaccard_of_two_empty_sets_is_zero() -> None:
    assert jaccard(set(), set()) == 0


def test_identical_patient_specific_selections_have_kappa_one() -> None:
    sets = [{"a", "b"}, {"c", "d"}, {"e", "f"}]

    result = agreement(sets, sets, size=2)

    assert result.jaccard == 1
    assert result.jaccard_permuted == 0
    assert result.kappa == 1
    assert result.jaccard_constant == pytest.approx(1 / 3)


def test_the_same_answer_for_everybody_has_no_kappa() -> None:
    sets = [{"a", "b"}] * 4

    result = agreement(sets, sets, size=2)

    assert (result.jaccard, result.jaccard_permuted, result.jaccard_constant) == (1, 1, 1)
    assert result.kappa is None


def test_permuted_jaccard_is_the_mean_over_pairs_of_different_patients() -> None:
    rng = np.random.default_rng(0)
    first = [set(rng.choice(8, 3, replace=False).astype(str)) for _ in range(6)]
    second = [set(rng.choice(8, 3, replace=False).astype(str)) for _ in range(6)]
    pairs = [jaccard(first[i], second[j]) for i, j in permutations(range(6), 2)]

    result = agreement(first, second, size=3)

    assert result.jaccard_permuted == pytest.approx(np.mean(pairs))
    assert result.jaccard == pytest.approx(
        np.mean([jaccard(a, b) for a, b in zip(first, second, strict=True)])
    )
    assert result.kappa == pytest.approx((result.jaccard - np.mean(pairs)) / (1 - np.mean(pairs)))


def test_permuted_jaccard_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [{str(i % 3), str(i % 5)} for i in range(20)]
    whole = agreement(sets, sets, size=2)

    monkeypatch.setattr("ehr.agreement._BLOCK", 7)

    assert agreement(sets, sets, size=2).jaccard_permuted == pytest.approx(whole.jaccard_permuted)


def test_patients_with_equal_sets_count_as_often_as_there_are() -> None:
    first = [{"a", "b"}, {"a", "b"}, {"a", "b"}, {"c"}, set()]
    second = [{"a", "b"}, {"b", "c"}, {"a", "b"}, {"c"}, set()]
    pairs = [jaccard(first[i], second[j]) for i, j in permutations(range(5), 2)]

    result = agreement(first, second, size=2)

    assert result.jaccard == pytest.approx((1 + 1 / 3 + 1 + 1 + 0) / 5)
    assert result.jaccard_permuted == pytest.approx(np.mean(pairs))


def test_names_outside_the_pool_still_enlarge_the_union(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ehr.agreement.MOST_CONSTANT_SETS", 1)

    # only {a, b} is tried: 2 of 2 names, 2 of 3 and 1 of 3
    assert best_constant_set([{"a", "b"}, {"a", "b", "c"}, {"a", "d"}], 2) == (
        frozenset({"a", "b"}),
        pytest.approx((1 + 2 / 3 + 1 / 3) / 3),
    )


def test_a_single_patient_has_no_permuted_agreement() -> None:
    result = agreement([{"a"}], [{"a"}], size=1)

    assert result.jaccard == 1
    assert result.jaccard_permuted is None
    assert result.kappa is None


def test_best_constant_set_is_the_best_of_all_sets() -> None:
    rng = np.random.default_rng(2)
    names = [f"f{index}" for index in range(9)]
    sets = [set(rng.choice(names, 4, replace=False)) for _ in range(30)]
    every = [mean_jaccard([c] * 30, sets) for c in combinations(names, 4)]

    chosen, value = best_constant_set(sets, 4)

    assert value == pytest.approx(max(every))
    assert mean_jaccard([chosen] * 30, sets) == pytest.approx(value)


def test_best_constant_set_beats_the_most_frequent_names() -> None:
    # a, b, c are the most frequent, yet {d, e, f} is right for more patients.
    sets = [{"d", "e", "f"}] * 5 + [
        {"a", x, y} for x, y in (("p", "q"), ("r", "s"), ("t", "u"))
    ] * 2

    chosen, _ = best_constant_set(sets, 3)

    assert chosen == {"d", "e", "f"}


def test_best_constant_set_takes_all_names_if_there_are_few() -> None:
    assert best_constant_set([{"a"}, {"b"}], 5) == (frozenset({"a", "b"}), 0.5)


def test_patients_without_salient_features_reach_nothing() -> None:
    assert best_constant_set([set(), set()], 5) == (frozenset(), 0.0)


@pytest.mark.parametrize(("first", "second"), [([], []), ([{"a"}], [{"a"}, {"b"}])])
def test_lists_that_do_not_pair_up_are_refused(
    first: list[set[str]], second: list[set[str]]
) -> None:
    with pytest.raises(DataError, match="one set per patient"):
        agreement(first, second, size=5)


def test_own_minus_others_is_nothing_for_one_answer_and_j_minus_j_perm_in_the_mean() -> None:
    salient = [{"a", "b"}, {"b"}, {"a", "c"}, {"b", "c"}]
    answers = [{"a"}, {"b", "c"}, {"c"}, {"a", "b", "c"}]

    above = jaccard_above_others(answers, salient)

    others = np.mean([jaccard(answers[0], each) for each in salient[1:]])
    assert above[0] == pytest.approx(jaccard(answers[0], salient[0]) - others)
    whole = agreement(answers, salient, size=2)
    assert above.mean() == pytest.approx(whole.jaccard - whole.jaccard_permuted)
    assert jaccard_above_others([{"a", "b"}] * 4, salient).mean() == pytest.approx(0, abs=1e-7)
    assert np.isnan(jaccard_above_others(answers[:1], salient[:1])).all()
