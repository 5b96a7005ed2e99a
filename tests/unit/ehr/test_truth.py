"""Every metric of the expert at its known ceiling and floor, by an expert that knows the truth."""

from dataclasses import fields

import numpy as np
import pytest

from ehr.cohorts.schema import SALIENT_COLUMNS
from ehr.cohorts.synthetic import TARGET_AUROC, generate
from ehr.cohorts.truth import (
    ceilings,
    true_contributions,
    true_risks,
    true_sets,
    true_tokens,
)
from ehr.config import CohortSection, ExpertSection
from ehr.expert.opinions import SalienceEnsemble
from ehr.expert.plans import halves
from ehr.metrics import (
    auroc,
    bootstrap_interval,
    calibration_intercept,
    calibration_slope,
    ece,
    performance,
)
from ehr.rewards import attention_reward, weighted_attention_reward
from ehr.salience.agreement import agreement, excess_jaccard
from ehr.salience.deletion import area_between, bench, method_orders
from ehr.salience.table import (
    salience_table,
    salient_sets,
    stability_weights,
    true_overlap,
)
from tests.oracle import MarkingScaler, Oracle, TrueModel
from tests.typed import known

COHORT = generate(CohortSection(num_patients=600))
LARGE = generate(CohortSection(num_patients=6000))
TEST = COHORT.splits["test"]
EVERYBODY = list(LARGE.cases)
SECTION = ExpertSection(members=4, num_ensembles=2)
PLANS = halves(COHORT.splits["train"], COHORT.labels, SECTION)
PAIRS = [[plan for plan in PLANS if plan.ensemble == index] for index in range(2)]


def labels_of(cohort, ids):
    return [cohort.labels[patient] for patient in ids]


def shuffled_patients(seed=0):
    """Every patient of the cohort, and another one whose truth is told instead."""
    ids = sorted(COHORT.cases)
    order = np.random.default_rng(seed).permutation(len(ids))
    return {ids[i]: ids[j] for i, j in zip(order, np.roll(order, 1), strict=True)}


def sets_of(oracles, split=TEST):
    table = salience_table(COHORT, oracles)
    chosen = [salient_sets(table, 5, "observed", index) for index in range(len(oracles))]
    return [[sets[patient] for patient in split] for sets in chosen]


# Risk


def interval(labels, risks):
    low, high = bootstrap_interval(labels, risks, "auroc")
    return known(low), known(high)


def test_the_true_risk_ranks_as_well_as_the_generator_says():
    low, high = interval(labels_of(LARGE, EVERYBODY), true_risks(LARGE, EVERYBODY))

    assert low < TARGET_AUROC < high
    assert high - low < 0.03


def test_no_distortion_of_the_true_risk_ranks_better():
    labels, risks = labels_of(LARGE, EVERYBODY), true_risks(LARGE, EVERYBODY)
    best = known(auroc(labels, risks))
    rng = np.random.default_rng(0)

    for noise in (0.1, 0.3, 1.0):
        noisy = 1 / (1 + np.exp(-np.log(risks / (1 - risks)) - noise * rng.normal(size=len(risks))))
        assert known(auroc(labels, noisy)) < best


def test_a_constant_and_a_shuffled_risk_rank_like_chance():
    labels = labels_of(LARGE, EVERYBODY)
    shuffled = np.random.default_rng(1).permutation(true_risks(LARGE, EVERYBODY))

    low, high = interval(labels, shuffled)
    assert auroc(labels, np.full(len(labels), 0.35)) == 0.5
    assert low < 0.5 < high


def test_the_true_risk_is_calibrated():
    labels, risks = labels_of(LARGE, EVERYBODY), true_risks(LARGE, EVERYBODY)

    assert calibration_slope(labels, risks) == pytest.approx(1, abs=0.06)
    assert calibration_intercept(labels, risks) == pytest.approx(0, abs=0.08)


def test_the_calibration_error_of_the_true_risk_is_what_so_many_patients_leave():
    labels, risks = labels_of(LARGE, EVERYBODY), true_risks(LARGE, EVERYBODY)
    rng = np.random.default_rng(2)
    by_chance = [ece((rng.random(len(risks)) < risks).astype(int), risks) for _ in range(100)]

    assert min(by_chance) <= ece(labels, risks) <= max(by_chance)
    assert max(by_chance) < 0.03
    assert ece(labels, np.clip(risks + 0.05, 0, 1)) > max(by_chance)
    assert ece(labels, rng.permutation(risks)) > 5 * max(by_chance)


def test_a_shuffled_risk_has_no_slope():
    risks = np.random.default_rng(3).permutation(true_risks(LARGE, EVERYBODY))

    assert calibration_slope(labels_of(LARGE, EVERYBODY), risks) == pytest.approx(0, abs=0.06)
    assert calibration_slope(labels_of(LARGE, EVERYBODY), np.full(len(risks), 0.35)) is None


def test_the_ceilings_are_what_the_expert_would_score_with_the_true_risk():
    opinions = Oracle(COHORT, PAIRS[0]).predict(
        [Oracle(COHORT, PAIRS[0]).scaler.transform(COHORT.cases[patient]) for patient in TEST]
    )
    row = performance(labels_of(COHORT, TEST), opinions.mean_risk(), 100)

    best = ceilings(COHORT, TEST)

    assert best == {f"{name}_of_true_risk": pytest.approx(row[name]) for name in (
        "auroc", "auprc", "brier", "ece", "calibration_slope", "calibration_intercept"
    )}  # fmt: skip


# Salient features


def test_the_oracle_is_a_salience_method():
    assert isinstance(Oracle(COHORT, PAIRS[0]), SalienceEnsemble)
    assert {field.name for field in fields(MarkingScaler)} == {
        field.name for field in fields(type(Oracle(COHORT, PAIRS[0]).scaler))
    }


def test_true_sets_of_five_are_those_of_the_truth_table():
    rows = known(COHORT.truth).set_index("patient_id").loc[list(TEST), list(SALIENT_COLUMNS)]

    assert true_sets(COHORT, TEST, 5) == [frozenset(row) for row in rows.to_numpy()]


@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_an_expert_without_error_agrees_fully_with_the_truth_at_any_size(size):
    table = salience_table(COHORT, [Oracle(COHORT, PAIRS[0])])
    salient = salient_sets(table, size, "observed")

    for split in COHORT.splits.values():
        reached, constant = true_overlap(COHORT, salient, split, size)
        assert reached == 1
        assert constant < 0.5


def test_an_expert_of_other_patients_is_no_nearer_to_the_truth_than_chance():
    oracle = Oracle(COHORT, PAIRS[0], cases=shuffled_patients())
    salient = salient_sets(salience_table(COHORT, [oracle]), 5, "paper")

    reached, constant = true_overlap(COHORT, salient, TEST, 5)

    assert reached < constant


def test_two_oracles_agree_fully_and_less_with_noise():
    kappas = []
    for noise in (0.0, 0.1, 0.5, 2.0, 20.0):
        first, second = (Oracle(COHORT, PAIRS[i], noise, seed=i) for i in range(2))
        first_sets, second_sets = sets_of([first, second])
        kappas.append(agreement(first_sets, second_sets, 5).kappa)

    assert kappas[0] == 1
    assert kappas == sorted(kappas, reverse=True)
    assert abs(kappas[-1]) < 0.1


def test_an_oracle_and_one_of_other_patients_agree_by_chance_only():
    truly = true_sets(COHORT, list(COHORT.cases), 5)
    told = shuffled_patients()
    of_others = true_sets(COHORT, [told[patient] for patient in COHORT.cases], 5)

    found = agreement(truly, of_others, 5)

    assert found.kappa == pytest.approx(0, abs=0.03)
    assert found.jaccard > 0.1  # plain Jaccard flatters


def test_stable_features_are_those_that_truly_stand_out():
    oracle = Oracle(COHORT, PAIRS[0], noise=0.3)
    table = salience_table(COHORT, [oracle])
    salient = salient_sets(table, 5, "observed")
    weights = stability_weights(table, salient, 5, "observed")
    exact = salience_table(COHORT, [Oracle(COHORT, PAIRS[0])])
    surely = stability_weights(exact, salient_sets(exact, 5, "observed"), 5, "observed")

    assert all(weight == 1 for each in surely.values() for weight in each.values())
    first = np.mean([weights[patient][salient[patient][0]] for patient in salient])
    last = np.mean([weights[patient][salient[patient][-1]] for patient in salient])
    assert first > last + 0.1


# Rewards of a language model's named features


def test_the_oracle_has_the_largest_excess_and_a_constant_answer_none():
    truly = true_sets(COHORT, TEST, 5)
    tokens = true_tokens(COHORT)
    rng = np.random.default_rng(4)
    by_count = sorted(tokens, key=lambda name: -sum(name in each for each in truly))

    oracle = excess_jaccard(truly, truly, 5)

    assert oracle.jaccard == 1
    assert oracle.excess == pytest.approx(1 - oracle.constant)
    assert oracle.excess > 0.5
    for num in range(1, 11):
        assert excess_jaccard([set(by_count[:num])] * len(truly), truly, 5).excess <= 1e-12
        drawn = set(rng.choice(tokens, num, replace=False))
        assert excess_jaccard([drawn] * len(truly), truly, 5).excess <= 1e-12


def test_answers_about_other_patients_have_no_excess():
    truly = true_sets(COHORT, list(COHORT.cases), 5)
    told = shuffled_patients()
    of_others = true_sets(COHORT, [told[patient] for patient in COHORT.cases], 5)

    assert excess_jaccard(of_others, truly, 5).excess < 0


def test_a_reward_is_full_for_the_oracle_whatever_its_weights():
    table = salience_table(COHORT, [Oracle(COHORT, PAIRS[0], noise=0.5)])
    salient = salient_sets(table, 5, "observed")
    weights = stability_weights(table, salient, 5, "observed")

    for patient, names in salient.items():
        assert attention_reward(set(names), set(names)) == 1
        assert weighted_attention_reward(set(names), set(names), weights[patient]) == 1


# Deletion curves


@pytest.fixture(scope="module")
def true_bench():
    plain = Oracle(COHORT, PAIRS[0]).scaler
    scaler = MarkingScaler(**{field.name: getattr(plain, field.name) for field in fields(plain)})
    inputs = [scaler.transform(COHORT.cases[patient]) for patient in TEST]
    return bench(TrueModel(COHORT), scaler, inputs, num_steps=5)


def scores_of(cases=None):
    oracle = Oracle(COHORT, PAIRS[0], cases=cases)
    return oracle.predict([oracle.scaler.transform(COHORT.cases[p]) for p in TEST]).mean_scores()


@pytest.mark.parametrize("kind", ["deletion", "insertion"])
def test_the_true_order_beats_random_and_constant_orders_under_the_true_model(true_bench, kind):
    against = true_bench
    curve = against.curves(method_orders(scores_of(), against.inputs))[kind]

    for margin in (against.versus_random(curve, kind), against.versus_constant(curve, kind)):
        assert margin.low > 0


def test_the_first_deletion_of_the_true_order_is_the_largest_there_is(true_bench):
    curve = true_bench.curves(method_orders(scores_of(), true_bench.inputs))["deletion"]

    largest = np.abs(true_contributions(COHORT, TEST)).max(axis=1)

    np.testing.assert_allclose(curve.change()[1], largest, atol=1e-9)


def test_the_order_of_another_patient_is_worse_than_the_best_constant_one(true_bench):
    curves = true_bench.curves(method_orders(scores_of(shuffled_patients()), true_bench.inputs))

    assert true_bench.versus_constant(curves["deletion"], "deletion").area < 0


def test_random_and_constant_orders_have_nothing_over_themselves(true_bench):
    one, *others = true_bench.random["deletion"]
    margin = area_between(one.area(), np.mean([each.area() for each in others], axis=0))

    assert known(margin.low) < 0 < known(margin.high)
    constant = true_bench.constant["deletion"]
    assert true_bench.versus_constant(constant, "deletion").area == 0
