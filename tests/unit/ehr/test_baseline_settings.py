import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehr.errors import DataError
from ehr.expert.baseline_settings import (
    INVERSE_PENALTIES,
    MOST_TREES,
    TREE_STEP,
    choose_inverse_penalty,
    choose_num_trees,
)
from ehr.expert.view import ExpertInput


def patients(
    num_patients: int, signal: float, seed: int = 0
) -> tuple[list[ExpertInput], list[int]]:
    """Patients whose first of ten features lies `signal` higher if they are positive."""
    rng = np.random.default_rng(seed)
    labels = [index % 2 for index in range(num_patients)]
    values = rng.normal(size=(num_patients, 1, 10)).astype(np.float32)
    values[:, 0, 0] += signal * np.array(labels)
    inputs = [
        ExpertInput(
            patient_id=f"p{index}",
            values=row,
            days=np.zeros(1, dtype=np.float32),
            demographics=np.zeros(2, dtype=np.float32),
            observed=np.ones(10, dtype=bool),
        )
        for index, row in enumerate(values)
    ]
    return inputs, labels


def test_noise_asks_for_the_strongest_penalty_and_a_signal_for_a_weaker_one() -> None:
    noise = choose_inverse_penalty(*patients(60, 0.0), seed=0)
    signal = choose_inverse_penalty(*patients(60, 4.0), seed=0)

    assert noise.best <= 0.01 < signal.best
    assert noise.stable == INVERSE_PENALTIES[0]


def test_noise_asks_for_the_fewest_trees_and_a_signal_for_more() -> None:
    assert choose_num_trees(*patients(80, 0.0), seed=0) == TREE_STEP
    assert choose_num_trees(*patients(80, 2.5), seed=0) > TREE_STEP


@settings(max_examples=8)
@given(seed=st.integers(0, 100), signal=st.floats(0, 3))
def test_the_stable_penalty_is_never_the_weaker_one(seed: int, signal: float) -> None:
    chosen = choose_inverse_penalty(*patients(30, signal, seed), seed=seed)

    assert INVERSE_PENALTIES[0] <= chosen.stable <= chosen.best <= INVERSE_PENALTIES[-1]


def test_the_choice_is_reproducible_and_reads_the_last_visit_only() -> None:
    inputs, labels = patients(40, 1.0)
    longer = [
        dataclasses.replace(
            entry,
            values=np.concatenate([entry.values + 5, entry.values]),
            days=np.arange(2, dtype=np.float32),
        )
        for entry in inputs
    ]

    assert choose_inverse_penalty(longer, labels, 3) == choose_inverse_penalty(inputs, labels, 3)
    assert choose_num_trees(longer, labels, 3) == choose_num_trees(inputs, labels, 3)


def test_a_class_with_fewer_patients_than_folds_is_dealt_out_as_far_as_it_goes() -> None:
    inputs, labels = patients(30, 1.0)
    rare = [*labels[:4], *[0] * 26]  # two positives

    assert choose_inverse_penalty(inputs, rare, 0).best in INVERSE_PENALTIES
    assert TREE_STEP <= choose_num_trees(inputs, rare, 0) <= MOST_TREES


def test_a_class_with_one_patient_leaves_the_librarys_own_settings() -> None:
    inputs, labels = patients(20, 1.0)
    single = [1, *[0] * (len(labels) - 1)]

    chosen = choose_inverse_penalty(inputs, single, 0)

    assert (chosen.best, chosen.stable) == (1.0, 1.0)
    assert choose_num_trees(inputs, single, 0) == 100


every_choice = pytest.mark.parametrize("choose", [choose_inverse_penalty, choose_num_trees])


@every_choice
def test_one_class_cannot_choose(choose: Callable[..., object]) -> None:
    inputs, labels = patients(10, 1.0)

    with pytest.raises(DataError, match=r"both classes, got labels \[1\]"):
        choose(inputs, [1] * len(labels), 0)
