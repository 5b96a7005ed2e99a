import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ehr.config import ExpertSection
from ehr.errors import DataError
from ehr.expert.member import fit_member, trace_member
from ehr.expert.plans import halves
from ehr.expert.selection import (
    LEAST_VALIDATION_PATIENTS,
    choose_rule,
    common_epoch,
    fit_ensembles,
    held_out_ids,
    settle,
)
from ehr.expert.view import ExpertScaler
from tests.expert_cohort import fit_in_process, one_thread, tiny_cohort, tiny_section

COHORT = tiny_cohort()
TRAIN, VAL = COHORT.splits["train"], COHORT.splits["val"]
PLANS = halves(TRAIN, COHORT.labels, tiny_section())


def validation(num_negatives: int, num_positives: int) -> dict[str, int]:
    """Labels of validation patients."""
    labels = [0] * num_negatives + [1] * num_positives
    return {f"v{index}": label for index, label in enumerate(labels)}


@pytest.mark.parametrize(
    ("negatives", "positives", "rule"),
    [
        (11, 10, "cross_validation"),  # TJH
        (645, 105, "validation"),  # PhysioNet 2012
        (500, LEAST_VALIDATION_PATIENTS - 1, "cross_validation"),
        (LEAST_VALIDATION_PATIENTS - 1, 500, "cross_validation"),
        (LEAST_VALIDATION_PATIENTS, LEAST_VALIDATION_PATIENTS, "validation"),
        (0, 0, "cross_validation"),
        (30, 0, "cross_validation"),
    ],
)
def test_few_validation_patients_of_the_rarer_class_choose_nothing(
    negatives: int, positives: int, rule: str
) -> None:
    labels = validation(negatives, positives)

    chosen = choose_rule(ExpertSection(), list(labels), labels)

    assert chosen.rule == rule
    assert chosen.num_validation_patients == negatives + positives
    assert chosen.num_validation_positives == positives


@pytest.mark.parametrize("asked", ["auto", "validation", "cross_validation"])
def test_a_single_member_has_no_other_half_and_says_so(asked: str) -> None:
    section = tiny_section(members=1, selection=asked)

    chosen = choose_rule(section, VAL, COHORT.labels)

    assert (chosen.rule, chosen.asked) == ("validation", asked)
    assert "no other half" in chosen.reason


@pytest.mark.parametrize("rule", ["validation", "cross_validation"])
def test_a_rule_that_is_set_is_used(rule: str) -> None:
    assert choose_rule(tiny_section(selection=rule), VAL, COHORT.labels).rule == rule


def test_the_other_half_judges_a_member_and_no_other_patient() -> None:
    for plan in PLANS:
        held_out = held_out_ids(plan, TRAIN, VAL, "cross_validation")

        assert not set(held_out) & set(plan.train_ids)
        assert {*held_out, *plan.train_ids} == set(TRAIN)
        assert held_out_ids(plan, TRAIN, VAL, "validation") == VAL


def test_the_common_epoch_has_the_lowest_mean_and_comes_first_among_equals() -> None:
    assert common_epoch([[0.9, 0.2, 0.5], [0.9, 0.8, 0.4]]) == 3
    assert common_epoch([[0.5, 0.5], [0.5, 0.5]]) == 1


@given(st.lists(st.lists(st.floats(0, 5), min_size=4, max_size=4), min_size=1, max_size=6))
def test_the_common_epoch_does_not_depend_on_the_order_of_members(
    losses: list[list[float]],
) -> None:
    chosen = common_epoch(losses)
    means = [sum(epoch) / len(losses) for epoch in zip(*losses, strict=True)]

    assert 1 <= chosen <= 4
    assert means[chosen - 1] == pytest.approx(min(means))


def test_members_of_an_ensemble_keep_one_epoch_and_the_loss_of_the_other_half_there() -> None:
    for ensemble in fit_in_process(COHORT, tiny_section(members=4, epochs=8)):
        states = [member.state for member in ensemble.members]

        epoch = common_epoch([state.losses for state in states])
        assert [state.best_epoch for state in states] == [epoch] * 4
        assert [len(state.losses) for state in states] == [8] * 4
        assert [state.validation_loss for state in states] == [
            state.losses[epoch - 1] for state in states
        ]


def test_a_settled_member_is_the_one_that_training_would_have_stopped_at() -> None:
    scaler = ExpertScaler.fit(COHORT, TRAIN)
    inputs = [scaler.transform(COHORT.cases[patient]) for patient in TRAIN]
    labels = [COHORT.labels[patient] for patient in TRAIN]
    ensemble = fit_in_process(COHORT, tiny_section(epochs=6, num_ensembles=1))[0]
    member = ensemble.members[0]
    rows = [TRAIN.index(patient) for patient in member.plan.train_ids]
    others = [row for row in range(len(TRAIN)) if row not in rows]
    shorter = tiny_section(epochs=member.state.best_epoch)

    with one_thread():
        stopped = trace_member(inputs, labels, rows, others, shorter, member.plan.seed)

    for name, value in member.state.parameters.items():
        torch.testing.assert_close(stopped.parameters[name][-1], value, rtol=0, atol=1e-6)


def test_validation_patients_change_nothing_under_cross_validation() -> None:
    section = tiny_section(num_ensembles=1, selection="cross_validation")
    flipped = {
        patient: 1 - label if patient in VAL else label for patient, label in COHORT.labels.items()
    }
    other = dataclasses.replace(COHORT, labels=flipped)

    first, second = fit_ensembles(COHORT, section)[0], fit_ensembles(other, section)[0]

    assert first.model_sha256 == second.model_sha256
    assert first.data_sha256 != second.data_sha256


def test_a_settled_ensemble_settles_to_itself() -> None:
    members = fit_in_process(COHORT, tiny_section(num_ensembles=1))[0].members

    assert settle(members) == list(members)


def test_a_half_of_one_class_still_judges() -> None:
    scaler = ExpertScaler.fit(COHORT, TRAIN)
    inputs = [scaler.transform(COHORT.cases[patient]) for patient in TRAIN]
    negatives = [row for row, patient in enumerate(TRAIN) if not COHORT.labels[patient]]

    state = fit_member(inputs, [0] * len(TRAIN), negatives[:4], negatives[4:], tiny_section(), 0)

    assert state.validation_loss < 1


def test_the_rule_of_the_validation_split_needs_one() -> None:
    empty = dataclasses.replace(COHORT, splits={**COHORT.splits, "val": ()})

    assert fit_in_process(empty, tiny_section(num_ensembles=1))
    with pytest.raises(DataError, match="training and validation patients"):
        fit_in_process(empty, tiny_section(selection="validation"))
