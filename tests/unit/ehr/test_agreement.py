from itertools import combinations, permutations

import numpy as np
import pytest

from ehr.errors import DataError
from ehr.salience.agreement import (
    agreement,
    best_constant_set,
    jaccard,
    jaccard_above_others,
    mean_jaccard,
)
from tests.typed import known


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

    monkeypatch.setattr("ehr.salience.agreement._BLOCK", 7)

    assert agreement(sets, sets, size=2).jaccard_permuted == pytest.approx(whole.jaccard_permuted)


def test_patients_with_equal_sets_count_as_often_as_there_are() -> None:
    first = [{"a", "b"}, {"a", "b"}, {"a", "b"}, {"c"}, set()]
    second = [{"a", "b"}, {"b", "c"}, {"a", "b"}, {"c"}, set()]
    pairs = [jaccard(first[i], second[j]) for i, j in permutations(range(5), 2)]

    result = agreement(first, second, size=2)

    assert result.jaccard == pytest.approx((1 + 1 / 3 + 1 + 1 + 0) / 5)
    assert result.jaccard_permuted == pytest.approx(np.mean(pairs))


def test_names_outside_the_pool_still_enlarge_the_union(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ehr.salience.agreement.MOST_CONSTANT_SETS", 1)

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


SALIENT = [{"a", "b"}, {"b"}, {"a", "c"}, {"b", "c"}]
NAMED = [{"a"}, {"b", "c"}, {"c"}, {"a", "b", "c"}]


def test_own_minus_others_is_j_minus_j_perm() -> None:
    (above,) = jaccard_above_others([NAMED], SALIENT, np.ones((1, 4)))

    whole = agreement(NAMED, SALIENT, size=2)
    assert above == pytest.approx(whole.jaccard - known(whole.jaccard_permuted))


def test_a_resample_weighs_both_patients_of_a_pair_and_no_patient_with_itself() -> None:
    # a is drawn twice, c not at all: pairs (a, b), (a, d) count twice, (b, d) once, both ways
    (above,) = jaccard_above_others([NAMED], SALIENT, np.array([[2.0, 1, 0, 1]]))

    def gap(named: int, patient: int) -> float:
        own, others = NAMED[patient], NAMED[named]
        return jaccard(own, SALIENT[patient]) - jaccard(others, SALIENT[patient])

    pairs = {(0, 1): 2, (0, 3): 2, (1, 3): 1}
    by_hand = sum(count * (gap(i, j) + gap(j, i)) for (i, j), count in pairs.items())
    assert above == pytest.approx(by_hand / (2 * sum(pairs.values())))


def test_one_set_for_everybody_is_exactly_nothing_above_others_in_every_resample() -> None:
    random = np.random.default_rng(0)
    num = 1030  # more than one block of patients
    sets = [{name for name in "abcdef" if random.random() < 0.5} | {"g"} for _ in range(num)]
    weights = random.multinomial(num, [1 / num] * num, size=3).astype(float)

    constant = jaccard_above_others([[{"a", "b"}] * num] * 3, sets, weights)
    reader = jaccard_above_others([sets], sets, weights)

    assert (constant == 0).all()
    assert (reader > 0.3).all()


def test_several_answers_count_with_their_mean() -> None:
    other = [{"b"}, {"b"}, {"a"}, {"c"}]
    weights = np.array([[1.0, 1, 1, 1], [0, 2, 1, 1]])

    both = jaccard_above_others([NAMED, other], SALIENT, weights)

    each = [jaccard_above_others([answer], SALIENT, weights) for answer in (NAMED, other)]
    assert both == pytest.approx(np.mean(each, axis=0))


def test_a_single_patient_has_no_others() -> None:
    assert np.isnan(jaccard_above_others([NAMED[:1]], SALIENT[:1], np.ones((1, 1)))).all()
    assert np.isnan(jaccard_above_others([NAMED], SALIENT, np.array([[4.0, 0, 0, 0]]))).all()


@pytest.mark.parametrize("answers", [[], [NAMED[:2]]])
def test_answers_of_other_patients_are_refused(answers) -> None:
    with pytest.raises(DataError):
        jaccard_above_others(answers, SALIENT, np.ones((1, 4)))
