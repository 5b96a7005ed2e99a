"""Intervals and differences of an experiment's arms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.experiments.answers import (
    Answered,
    Resamples,
    constant_set,
    overlaps,
)
from training.experiments.measures import difference_of, estimate_of_arm

NUM_PATIENTS = 12
RESAMPLES = Resamples.draw(NUM_PATIENTS, 100, seed=5)
NAMES = ("pH", "Glucose", "Weight", "Height", "Age & Sex", "Heart Rate")

seeds_of_arms = st.lists(st.integers(0, 10_000), min_size=1, max_size=4, unique=True)
measures = st.sampled_from(["auroc", "auprc", "brier", "ece", "reward"])
name_sets = st.lists(
    st.frozensets(st.sampled_from(NAMES), min_size=1, max_size=5), min_size=1, max_size=8
)


def unit(seed: int) -> Answered:
    random = np.random.default_rng(seed)
    return Answered(
        labels=np.arange(NUM_PATIENTS) % 2,
        probabilities=random.integers(1, 100, NUM_PATIENTS) / 100,
        resamples=RESAMPLES,
        per_patient={"reward": random.normal(size=NUM_PATIENTS)},
    )


def arm(seeds: list[int], shift: int = 0) -> dict[int, Answered]:
    return {seed: unit(seed + shift) for seed in seeds}


@given(seeds=seeds_of_arms, name=measures)
def test_an_interval_holds_its_estimate(seeds, name) -> None:
    found = estimate_of_arm(name, [unit(seed) for seed in seeds])

    assert found is not None
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.value <= found.high


@given(seeds=seeds_of_arms, name=measures)
def test_a_difference_turns_round_with_its_arms(seeds, name) -> None:
    first, second = arm(seeds), arm(seeds, shift=20_000)

    forward, back = difference_of(name, first, second), difference_of(name, second, first)

    assert forward is not None
    assert back is not None
    assert forward.difference == pytest.approx(-(back.difference or 0), abs=1e-12)
    assert forward.low == pytest.approx(-(back.high or 0), abs=1e-12)


@given(seeds=seeds_of_arms, name=measures)
def test_an_arm_differs_from_itself_by_exactly_nothing(seeds, name) -> None:
    found = difference_of(name, arm(seeds), arm(seeds))

    assert found is not None
    assert (found.difference, found.low, found.high) == (0.0, 0.0, 0.0)
    assert found.minimal_detectable is None


@given(seeds=seeds_of_arms, name=measures)
def test_seeds_come_in_any_order(seeds, name) -> None:
    ordered = difference_of(name, arm(seeds), arm(seeds, shift=20_000))
    turned = difference_of(name, arm(seeds[::-1]), arm(seeds[::-1], shift=20_000))

    assert ordered == turned


@given(sets=name_sets)
def test_no_constant_answer_beats_the_best_one(sets) -> None:
    best = constant_set(sets, 5)

    for names in (*sets, NAMES[:2], NAMES[:5]):
        assert overlaps([names] * len(sets), sets).mean() <= best.overlap + 1e-12
