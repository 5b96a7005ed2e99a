"""Deletion and insertion curves of judges whose answer is known."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehr.errors import DataError
from ehr.expert.plans import halves
from ehr.expert.view import ExpertInput, ExpertScaler, last_visits
from ehr.salience.deletion import (
    area_between,
    bench,
    common_judges,
    method_orders,
    orders_of,
    own_judge,
    random_orders,
    single_effects,
)
from ehr.salience.linear import LinearEnsemble
from tests.expert_cohort import FEATURES, tiny_cohort, tiny_section

COHORT = tiny_cohort()
SCALER = ExpertScaler.fit(COHORT, COHORT.splits["train"])
INPUTS = {patient: SCALER.transform(case) for patient, case in COHORT.cases.items()}
# Everything is recorded and far from the median, so that masking any feature can be seen.
NUM_TOKENS = len(FEATURES) + 1
ASKED = [
    ExpertInput(
        patient_id=f"q{index}",
        values=np.full((1 + index % 2, len(FEATURES)), 2.0 + index, dtype=np.float32),
        days=np.arange(1 + index % 2, dtype=np.float32),
        demographics=np.array([1.0, 1.0], dtype=np.float32),
        observed=np.ones(len(FEATURES), dtype=bool),
    )
    for index in range(4)
]


class Reads:
    """A judge whose log-odds are a weighted sum over the last visit; the last weight is age's."""

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = np.array([*weights, 0.0])

    def __call__(self, inputs: Sequence[ExpertInput]) -> np.ndarray:
        return last_visits(inputs).astype(np.float64) @ self.weights


def reads_only(token: int) -> Reads:
    return Reads(np.eye(NUM_TOKENS)[token].tolist())


ORDER = st.permutations(range(NUM_TOKENS))
WEIGHTS = st.lists(st.floats(-3, 3), min_size=NUM_TOKENS, max_size=NUM_TOKENS)


@settings(max_examples=40)
@given(st.integers(0, NUM_TOKENS - 1), ORDER)
def test_a_judge_of_one_feature_changes_wholly_at_that_features_step(token: int, order) -> None:
    against = bench(reads_only(token), SCALER, ASKED, num_steps=NUM_TOKENS, num_random=1)

    change = against.curves([order] * len(ASKED))["deletion"].change()

    position = order.index(token) + 1
    assert (change[:position] == 0).all()
    assert (change[position:] == change[-1]).all()
    assert (change[-1] > 0).all()
    # So the whole drop comes at the first step if and only if the feature is named first.
    assert ((change[1] == change[-1]).all()) == (order[0] == token)


@settings(max_examples=40)
@given(WEIGHTS, ORDER)
def test_insertion_ends_where_deletion_starts_and_the_other_way_round(weights, order) -> None:
    against = bench(Reads(weights), SCALER, ASKED, num_steps=NUM_TOKENS, num_random=1)

    curves = against.curves([order] * len(ASKED))

    deletion, insertion = curves["deletion"].log_odds, curves["insertion"].log_odds
    np.testing.assert_allclose(insertion[-1], deletion[0])
    np.testing.assert_allclose(insertion[0], deletion[-1])


@settings(max_examples=40)
@given(WEIGHTS, ORDER)
def test_inserting_an_order_is_deleting_the_reverse_backwards(weights, order) -> None:
    against = bench(Reads(weights), SCALER, ASKED, num_steps=NUM_TOKENS, num_random=1)

    inserted = against.curves([order] * len(ASKED))["insertion"].log_odds
    deleted = against.curves([order[::-1]] * len(ASKED))["deletion"].log_odds

    np.testing.assert_allclose(inserted, deleted[::-1])


@settings(max_examples=20)
@given(st.integers(0, NUM_TOKENS - 1))
def test_the_best_constant_order_of_a_judge_of_one_feature_names_it_first(token: int) -> None:
    judge = reads_only(token)
    against = bench(judge, SCALER, ASKED, num_steps=NUM_TOKENS, num_random=2)
    best = against.curves([[token]] * len(ASKED))["deletion"]

    effects = single_effects(judge, SCALER, ASKED)

    assert effects.argmax() == token
    assert np.count_nonzero(effects) == 1
    assert against.versus_constant(best, "deletion").area == 0
    assert against.versus_random(best, "deletion").area > 0


def test_random_orders_change_a_judge_of_one_feature_by_k_over_t_on_average() -> None:
    against = bench(reads_only(2), SCALER, ASKED, num_steps=NUM_TOKENS, num_random=400, seed=3)

    whole = against.random["deletion"][0].change()[-1]
    mean = np.mean([curve.change() for curve in against.random["deletion"]], axis=0) / whole

    # Standard error .025 for each patient and step, .0125 after the mean over four patients.
    expected = np.arange(NUM_TOKENS + 1) / NUM_TOKENS
    np.testing.assert_allclose(mean.mean(axis=1), expected, atol=0.05)


def test_orders_hold_recorded_features_and_age_only() -> None:
    candidates = np.array([[True, False, True, False, True]] * 50)

    for order in random_orders(candidates, seed=1):
        assert sorted(order) == [0, 2, 4]
    assert orders_of(np.array([[0.1, 0.9, 0.3, 0.8, 0.3]]), candidates[:1]) == [[2, 4, 0]]
    entry = SCALER.mask(ASKED[0], [1])
    assert len(method_orders(np.ones((1, NUM_TOKENS)), [entry])[0]) == NUM_TOKENS


def test_a_masked_patient_is_one_that_never_had_the_feature_recorded() -> None:
    patient = COHORT.splits["test"][0]
    case = COHORT.cases[patient]
    values = case.values.copy()
    values[:, 2] = np.nan
    values[:, 0] = np.nan

    never = SCALER.transform(replace(case, values=values, age=None))
    masked = SCALER.mask(INPUTS[patient], [0, 2, NUM_TOKENS - 1])

    np.testing.assert_array_equal(masked.values, never.values)
    assert masked.demographics.tolist() == [0.0, 0.5]
    assert never.demographics[0] == masked.demographics[0]
    np.testing.assert_array_equal(masked.days, never.days)


def test_the_area_between_equal_curves_is_nothing_and_its_interval_holds_the_mean() -> None:
    area = np.array([0.5, 1.0, 3.0, 0.1] * 10)

    nothing = area_between(area, area)
    something = area_between(area, area * 0.5)

    assert (nothing.area, nothing.low, nothing.high) == (0, 0, 0)
    assert something.area == pytest.approx(area.mean() / 2)
    assert something.low is not None
    assert something.high is not None
    assert 0 < something.low < something.area < something.high


@pytest.mark.parametrize(("inputs", "num_steps"), [([], 3), (ASKED, 0)])
def test_curves_without_patients_or_steps_are_refused(inputs, num_steps: int) -> None:
    with pytest.raises(DataError, match="patients and at least one step"):
        bench(reads_only(0), SCALER, inputs, num_steps=num_steps)


def test_a_judge_leaves_out_members_that_were_fitted_on_the_patient() -> None:
    plans = halves(COHORT.splits["train"], COHORT.labels, tiny_section(num_ensembles=1))
    weights = np.zeros((2, NUM_TOKENS + 1))
    judge = own_judge(LinearEnsemble(plans, SCALER, weights, np.array([-1.0, 2.0])))

    for member, other in ((0, 2.0), (1, -1.0)):
        patient = INPUTS[plans[member].train_ids[0]]
        assert judge([patient])[0] == pytest.approx(other)


@pytest.mark.parametrize("name", ["forest", "gaussian_process"])
def test_a_common_judge_ranks_patients_it_was_not_fitted_on(name: str) -> None:
    plans = halves(COHORT.splits["train"], COHORT.labels, tiny_section(num_ensembles=1))
    judge = common_judges(plans, INPUTS, COHORT.labels)[name]
    against = bench(judge, SCALER, [INPUTS[patient] for patient in COHORT.splits["train"]])
    labels = [COHORT.labels[patient] for patient in COHORT.splits["train"]]

    curve = against.constant["deletion"]
    before, *_, after = curve.auroc(labels)

    assert before is not None
    assert after is not None
    assert before > 0.85
    assert after < before
