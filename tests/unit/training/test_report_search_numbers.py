import math

import pytest

from training.report.search_numbers import (
    MIN_PATIENTS,
    SiblingPairs,
    mistakes,
    most_useful,
    rank_correlation,
    trajectory_counts,
    tree_numbers,
)
from training.report.search_tree import read_tree


def row(number, parent, usefulness, visits, q, **more):
    entry = {"id": number, "parent": parent, "visit_count": visits, "q": q}
    return entry | {"question": "?", "usefulness": usefulness} | more


def read(*rows):
    return read_tree({"patient_id": "p", "nodes": [row(0, None, None, 6, -0.3), *rows]})


# the root's candidates: a question that wins, a final that loses and is visited later, a question
# without visits; below the winner a tie that goes to its first candidate, a final; below that
# question's other child a forced final
TREE = read(
    row(1, 0, 0.9, 4, -0.5),
    row(2, 1, 0.6, 2, -0.2, terminal=True, reward=-0.2),
    row(3, 1, 0.6, 1, -0.8),
    row(4, 3, None, 1, -0.8, terminal=True, reward=-0.8),
    row(5, 1, 0.4, 1, -0.2),
    row(6, 5, None, 1, -0.2, terminal=True, reward=-0.2),
    row(7, 0, 0.5, 2, 0.1, terminal=True, reward=0.1),
    row(8, 0, 0.5, 0, None),
)


def test_finals_are_counted_where_they_stood_to_be_chosen():
    numbers = tree_numbers(TREE)

    assert numbers.num_expansions == 4
    assert numbers.num_with_final == 2
    assert numbers.num_contested == 2
    assert numbers.num_lost == 1
    assert numbers.num_lost_finals == 1
    assert numbers.num_lost_finals_visited == 1


@pytest.mark.parametrize(
    ("final_usefulness", "final_is_first", "num_lost"),
    [(0.7, True, 0), (0.7, False, 1), (0.8, False, 0), (0.6, True, 1)],
)
def test_a_tied_vote_goes_to_the_smaller_index(final_usefulness, final_is_first, num_lost):
    final = row(1 if final_is_first else 2, 0, final_usefulness, 1, 0.0, terminal=True)
    question = row(2 if final_is_first else 1, 0, 0.7, 0, None)
    nodes = read(*(sorted([final, question], key=lambda entry: entry["id"])))

    assert tree_numbers(nodes).num_lost == num_lost


def test_a_final_among_finals_has_nothing_to_lose_to():
    nodes = read(
        row(1, 0, 0.2, 0, None, terminal=True), row(2, 0, 0.9, 1, 0.0, terminal=True, reward=0.0)
    )

    numbers = tree_numbers(nodes)

    assert (numbers.num_with_final, numbers.num_contested, numbers.num_lost) == (1, 0, 0)


def test_a_forced_final_takes_no_part_in_the_vote():
    nodes = read(row(1, 0, None, 1, 0.3, terminal=True, reward=0.3))

    numbers = tree_numbers(nodes)

    assert numbers.num_with_final == 0
    assert numbers.forced_depths == [1]
    assert most_useful(nodes[0].children) is None


def test_depths_and_visits_are_those_of_the_tree():
    numbers = tree_numbers(TREE)

    assert numbers.found_depths == [2, 1]
    assert numbers.forced_depths == [3, 3]
    assert (numbers.num_nodes, numbers.num_visited, numbers.num_simulations) == (9, 8, 6)
    assert numbers.visited_usefulness == [0.9, 0.6, 0.6, 0.4, 0.5]
    assert numbers.unvisited_usefulness == [0.5]


def test_pairs_of_visited_siblings_are_ranked_by_hand():
    pairs = tree_numbers(TREE).pairs

    # 1 against 7: more useful and lower Q. 2 against 3: tied r. 2 against 5: tied Q.
    # 3 against 5: more useful and lower Q.
    assert pairs.counts() == (0, 2, 1, 1, 0)


def test_differences_are_taken_from_the_mean_of_visited_siblings():
    differences = tree_numbers(TREE).differences

    assert differences[0] == pytest.approx((0.2, -0.3))
    assert differences[1] == pytest.approx((-0.2, 0.3))
    assert differences[2] == pytest.approx((0.6 - 1.6 / 3, -0.2 + 0.4))
    assert len(differences) == 5


def test_unreadable_scores_are_compared_with_nothing():
    nodes = read(row(1, 0, 0.5, 1, 0.0, score_is_neutral=True), row(2, 0, 0.9, 1, 0.4))

    numbers = tree_numbers(nodes)

    assert numbers.num_neutral == 1
    assert numbers.pairs.num_pairs == 0
    assert numbers.visited_usefulness == [0.9]


def test_kendalls_tau_is_worked_out_over_all_trees():
    trees = [
        SiblingPairs(concordant=3, discordant=1, tied_usefulness=2),
        SiblingPairs(concordant=1, tied_value=1, tied_both=1),
        SiblingPairs(),
    ]

    found = rank_correlation(trees)

    # P = 9, T_u = 2 + 1, T_q = 1 + 1
    assert found.tau == pytest.approx((4 - 1) / math.sqrt((9 - 3) * (9 - 2)))
    assert (found.num_pairs, found.num_patients) == (9, 2)
    assert found.interval is None


def test_kendalls_tau_is_scipys_inside_one_family():
    scipy_stats = pytest.importorskip("scipy.stats")
    usefulness = [0.1, 0.5, 0.5, 0.9, 0.7, 0.2]
    values = [0.0, 0.3, -0.2, 0.3, 0.1, 0.1]
    nodes = read(
        *(row(i + 1, 0, r, 1, q) for i, (r, q) in enumerate(zip(usefulness, values, strict=True)))
    )

    found = rank_correlation([tree_numbers(nodes).pairs])

    assert found.tau == pytest.approx(scipy_stats.kendalltau(usefulness, values).statistic)


def test_an_interval_needs_patients_and_holds_its_estimate():
    trees = [SiblingPairs(concordant=4 - i % 3, discordant=i % 3) for i in range(4 * MIN_PATIENTS)]

    found = rank_correlation(trees)

    assert found.interval is not None
    assert found.tau is not None
    assert -1 <= found.interval[0] < found.tau < found.interval[1] <= 1
    assert rank_correlation(trees).interval == found.interval
    assert rank_correlation(trees[: MIN_PATIENTS - 1]).interval is None


@pytest.mark.parametrize("trees", [[], [SiblingPairs()], [SiblingPairs(tied_usefulness=5)] * 9])
def test_without_two_ranks_there_is_no_correlation(trees):
    assert rank_correlation(trees).tau is None


def trajectory(patient, **more):
    return {"patient_id": patient, "kept": False, "readable": False} | more


def test_trajectories_are_counted_by_patient():
    rows = [
        trajectory("a", kept=True, readable=True),
        trajectory("a", readable=True),
        trajectory("b"),
        trajectory("a"),
    ]

    counts = trajectory_counts(rows)

    assert counts.found == (3, 1)
    assert counts.readable == (2, 0)
    assert counts.kept == (1, 0)
    assert counts.num_without_kept == 1


def test_an_old_table_does_not_say_who_is_readable():
    counts = trajectory_counts([{"patient_id": "a", "kept": True}])

    assert counts.readable is None
    assert counts.kept == (1,)


LEDGER = {
    "patients": 1,
    "requests": 50,
    "requests_by_kind": {"answer": 8},
    "scores": 30,
    "invalid_scores": 3,
    "duplicate_questions": 6,
    "dropped_questions": 4,
    "cut_answers": 2,
    "resample_requests": 6,
    "retry_requests": 5,
    "non_latin_texts": 19,
    "unreadable_finals": 1,
}


def test_rates_are_shares_of_what_was_sampled():
    rates = {mistake.label: mistake for mistake in mistakes(LEDGER, [tree_numbers(TREE)])}

    assert rates["usefulness score unreadable twice, 50 stands for it"].rate == 3 / 30
    assert rates["question repeated, dropped"].rate == 6 / 40
    assert rates["answer cut at the token limit"].rate == 2 / 8
    assert rates["request for other questions"].rate == 6 / 4
    assert rates["request that repeats an unreadable one"].rate == 5 / 50
    assert rates["mostly in letters that are not Latin"].rate == 19 / 38
    assert rates["final unreadable twice, floor reward"].rate == 1 / 4
    assert "answer empty" not in rates


def test_without_every_tree_shares_of_expansions_are_unknown():
    ledger = LEDGER | {"patients": 2}

    rates = {mistake.label: mistake.rate for mistake in mistakes(ledger, [tree_numbers(TREE)])}

    assert rates["request for other questions"] is None
    assert rates["question repeated, dropped"] == 6 / 40


@pytest.mark.parametrize(
    "ledger", [{}, {"scores": None}, {"requests_by_kind": [1], "invalid_scores": "many"}]
)
def test_an_odd_ledger_names_no_mistakes(ledger):
    assert mistakes(ledger, []) == []
