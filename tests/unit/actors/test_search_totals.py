"""Sums over patients, and rates."""

import pickle
from dataclasses import replace

import pytest

from actors.search_folder import PatientSummary
from actors.search_totals import RateMeter, SearchProgress, SearchTotals


def summary(patient_id: str, **changes: object) -> PatientSummary:
    return replace(
        PatientSummary(
            patient_id=patient_id,
            rollouts=4,
            trajectories=3,
            kept=2,
            best_reward=-0.5,
            search={"scores": 9, "invalid_scores": 1, "resamples": 2},
            calls={
                "requests": 20,
                "replayed_requests": 0,
                "prefill_tokens": 1000,
                "prefill_computed_tokens": 100,
                "decode_tokens": 300,
                "by_kind": {"score": 9, "answer": 11},
            },
            started_unix_s=100.0,
            finished_unix_s=110.0,
        ),
        **changes,
    )


def test_the_ledger_is_the_sum_over_patients_in_any_order() -> None:
    patients = [
        summary("a"),
        summary("b", kept=0, best_reward=None, started_unix_s=105.0, finished_unix_s=112.0),
        summary("c", best_reward=0.25, started_unix_s=200.0, finished_unix_s=203.0),
    ]

    ledger = SearchTotals.of(patients).ledger()

    assert ledger == SearchTotals.of(reversed(patients)).ledger()
    assert ledger["patients"] == 3
    assert ledger["requests"] == 60
    assert ledger["requests_by_kind"] == {"answer": 33, "score": 27}
    assert (ledger["scores"], ledger["invalid_scores"], ledger["resamples"]) == (27, 3, 6)
    assert (ledger["kept"], ledger["patients_without_kept"]) == (4, 1)
    assert ledger["best_reward"] == 0.25
    # 100 to 112 and 200 to 203: the pause between them is none of the search's time.
    assert ledger["seconds"] == 15.0


def test_growing_trees_are_added_to_a_copy() -> None:
    totals = SearchTotals.of([summary("a")])
    before = totals.ledger()

    both = totals.with_growing([summary("b", kept=0, rollouts=1, best_reward=0.5)])

    assert totals.ledger() == before
    assert (both.rollouts, both.best_reward, both.calls("requests")) == (5, 0.5, 40)
    assert both.patients == 1


def test_what_is_kept_of_a_patient_is_two_numbers() -> None:
    few, many = SearchTotals(), SearchTotals()
    for number in range(10):
        few.add(summary(f"{number}"))
    for number in range(1010):
        many.add(summary(f"{number}", started_unix_s=float(number)))

    # A pair of floats is 20 bytes pickled; a record of a small tree has some 100,000.
    assert (len(pickle.dumps(many)) - len(pickle.dumps(few))) / 1000 < 40


def test_a_rate_is_over_the_window_and_never_negative() -> None:
    meter = RateMeter(window_s=60.0)

    assert meter.rate("rollouts") == 0.0
    meter.add(0.0, {"rollouts": 0})
    assert meter.rate("rollouts") == 0.0
    meter.add(100.0, {"rollouts": 100})
    assert meter.rate("rollouts") == pytest.approx(1.0)
    meter.add(130.0, {"rollouts": 190})
    meter.add(160.0, {"rollouts": 280})
    assert meter.rate("rollouts") == pytest.approx(3.0)
    meter.add(170.0, {"rollouts": 5})
    assert meter.rate("rollouts") == 0.0


def progress(**changes: object) -> SearchProgress:
    return replace(
        SearchProgress(
            num_patients=6,
            num_finished=2,
            num_rollouts=20,
            num_rollouts_wanted=48,
            rollouts_per_s=0.5,
            decode_tokens=1234,
            decode_tokens_per_s=56.7,
            requests=400,
            prefill_tokens=1000,
            prefill_computed_tokens=90,
            scores=200,
            invalid_scores=3,
            trajectories=17,
            best_reward=-0.25,
            value="reward",
            num_trees=4,
            num_held=0,
            num_actors=1,
        ),
        **changes,
    )


def test_shares_are_missing_until_there_is_something_to_share() -> None:
    assert progress().cache_hit_rate == pytest.approx(0.91)
    assert progress().invalid_score_rate == pytest.approx(0.015)
    nothing = progress(prefill_tokens=0, prefill_computed_tokens=0, scores=0, invalid_scores=0)
    assert (nothing.cache_hit_rate, nothing.invalid_score_rate) == (None, None)
