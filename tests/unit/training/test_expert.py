import dataclasses
from pathlib import Path

import pytest
import torch

from ehr.config import ExpertSection
from ehr.expert.member import Member, MemberState
from ehr.expert.member_file import (
    member_file,
    member_key,
    read_member,
    write_member,
)
from ehr.expert.plans import MemberPlan, halves
from ehr.expert.selection import choose_rule, settle
from ehr.salience.table import salience_table
from ehr.tables import rows
from tests.expert_cohort import fit_in_process, tiny_cohort, tiny_section
from training.expert.members import (
    is_trained,
    remove_stale,
    settle_members,
    trace_file,
)
from training.expert.metrics import (
    _truth,
    expert_metrics,
    predictions_table,
    selected_salience,
)
from training.expert.workers import _note_epoch, num_workers, tell_progress

COHORT = tiny_cohort()
SECTION = tiny_section()
PLANS = halves(COHORT.splits["train"], COHORT.labels, SECTION)


def write(folder: Path, section: ExpertSection, data_sha256: str) -> None:
    state = MemberState(
        parameters={"weight": torch.ones(1)}, best_epoch=1, num_epochs=1, validation_loss=0.5
    )
    for plan in PLANS:
        key = member_key(plan, section, data_sha256)
        write_member(folder / member_file(plan), Member(plan=plan, state=state, key=key))


def test_finished_members_are_not_trained_again(tmp_path: Path) -> None:
    write(tmp_path, SECTION, "data")

    assert remove_stale(tmp_path, PLANS, SECTION, "data") == []


@pytest.mark.parametrize(
    ("section", "data_sha256"), [(tiny_section(epochs=9), "data"), (SECTION, "other data")]
)
def test_members_trained_from_something_else_are_removed(
    tmp_path: Path, section: ExpertSection, data_sha256: str
) -> None:
    write(tmp_path, SECTION, "data")

    assert remove_stale(tmp_path, PLANS, section, data_sha256) == PLANS
    assert not list(tmp_path.iterdir())


def test_a_broken_member_and_one_too_many_are_removed(tmp_path: Path) -> None:
    write(tmp_path, SECTION, "data")
    (tmp_path / member_file(PLANS[1])).write_bytes(b"cut off")
    (tmp_path / "member-7-0.safetensors").write_bytes(b"of a larger ensemble")

    assert remove_stale(tmp_path, PLANS, SECTION, "data") == [PLANS[1]]
    assert len(list(tmp_path.iterdir())) == len(PLANS) - 1


def test_progress_counts_finished_members_and_epochs_in_training(tmp_path: Path) -> None:
    write(tmp_path, SECTION, "data")
    (tmp_path / member_file(PLANS[0])).unlink()
    _note_epoch(tmp_path, 0, 5, 0.25)
    moves: list[tuple[float, float, str]] = []

    tell_progress(tmp_path, PLANS, 10, lambda *move: moves.append(move))

    assert moves == [(3.5, 4, "held-out loss 0.250")]


def test_a_cohort_without_truth_has_no_comparison_with_it() -> None:
    assert _truth(dataclasses.replace(COHORT, truth=None), SECTION, {}) is None


def test_a_single_member_has_no_agreement_and_nothing_out_of_fold() -> None:
    section = tiny_section(members=1, num_ensembles=1, epochs=1)
    ensembles = fit_in_process(COHORT, section)
    table = salience_table(COHORT, ensembles)
    scaler = ensembles[0].scaler
    inputs = {patient: scaler.transform(case) for patient, case in COHORT.cases.items()}

    metrics = expert_metrics(
        COHORT, section, ensembles, table, predictions_table(COHORT, inputs, ensembles[0])
    )

    assert metrics["out_of_fold"] is False
    assert metrics["kappa"] is None
    assert metrics["test"]["jaccard_constant"] is None
    assert metrics["test"]["auroc"] is not None
    assert set(rows(table, table["split"] == "train")["out_of_fold"]) == {False}


# Members that wait for their ensemble's epoch


def waiting(plan: MemberPlan, losses: list[float]) -> Member:
    """A traced member whose only parameter is the number of its epoch."""
    state = MemberState(
        parameters={"weight": torch.arange(1.0, len(losses) + 1)[:, None]},
        best_epoch=0,
        num_epochs=len(losses),
        validation_loss=losses[-1],
        losses=tuple(losses),
    )
    return Member(plan=plan, state=state, key=member_key(plan, SECTION, "data"))


LOSSES = [[0.9, 0.2, 0.5], [0.9, 0.8, 0.4], [0.5, 0.6, 0.7], [0.5, 0.6, 0.7]]
"""Of `PLANS`: the first ensemble's mean is lowest after epoch 3, the second's after epoch 1."""


def write_waiting(folder: Path) -> None:
    for plan, losses in zip(PLANS, LOSSES, strict=True):
        write_member(folder / trace_file(plan), waiting(plan, losses))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_members_of_an_ensemble_settle_at_its_epoch(tmp_path: Path) -> None:
    write_waiting(tmp_path)

    settle_members(tmp_path, PLANS)

    assert sorted(contents(tmp_path)) == sorted(member_file(plan) for plan in PLANS)
    states = [read_member(tmp_path / member_file(plan)).state for plan in PLANS]
    assert [state.best_epoch for state in states] == [3, 3, 1, 1]
    assert [float(state.parameters["weight"]) for state in states] == [3, 3, 1, 1]
    assert [state.validation_loss for state in states] == [0.5, 0.4, 0.5, 0.5]


def test_waiting_members_are_not_trained_again(tmp_path: Path) -> None:
    write_waiting(tmp_path)

    assert remove_stale(tmp_path, PLANS, SECTION, "data") == []
    assert remove_stale(tmp_path, PLANS, tiny_section(epochs=9), "data") == PLANS


def test_an_interrupted_choice_of_the_epoch_comes_out_the_same(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
        write_waiting(folder)
    settle_members(whole, PLANS)
    # One member was written, and its waiting file was gone already.
    first = settle([waiting(plan, losses) for plan, losses in zip(PLANS[:2], LOSSES, strict=False)])
    write_member(cut / member_file(PLANS[0]), first[0])
    (cut / trace_file(PLANS[0])).unlink()

    assert all(is_trained(cut, plan) for plan in PLANS)
    settle_members(cut, PLANS)

    assert contents(cut) == contents(whole)


def test_settling_finished_members_changes_nothing(tmp_path: Path) -> None:
    write_waiting(tmp_path)
    settle_members(tmp_path, PLANS)
    before = contents(tmp_path)

    settle_members(tmp_path, PLANS)

    assert contents(tmp_path) == before


@pytest.mark.parametrize("rule", ["validation", "cross_validation"])
def test_metrics_say_which_rule_chose_which_epochs(rule: str) -> None:
    section = tiny_section(num_ensembles=2, selection=rule)
    ensembles = fit_in_process(COHORT, section)

    selected = selected_salience(
        choose_rule(section, COHORT.splits["val"], COHORT.labels), ensembles
    )

    own = [[member.state.best_epoch for member in each.members] for each in ensembles]
    common = [epochs[0] for epochs in own]
    assert selected["rule"] == rule
    assert (selected["num_validation_patients"], selected["num_validation_positives"]) == (8, 4)
    assert selected["epochs"] == (common if rule == "cross_validation" else own)


# Workers


@pytest.mark.parametrize(
    ("fields", "members", "cpus", "cores", "expected"),
    [
        ({}, 8, 8.0, 2, 2),  # Ray counts more CPUs than there are
        ({}, 8, 1.0, 2, 1),  # the generator has the other
        ({}, 8, -1.0, 2, 1),  # Ray Train waits for room
        ({}, 1, 8.0, 8, 1),  # one member is missing
        ({}, 8, 6.0, None, 6),  # several machines
        ({"cpus_per_worker": 0.5}, 8, 8.0, 2, 4),
        ({"num_workers": 3}, 8, 1.0, 1, 3),
        ({"num_workers": 3}, 2, 8.0, 8, 2),
        ({"gpus_per_worker": 1}, 8, 8.0, 8, 1),
    ],
)
def test_there_are_as_many_workers_as_find_room(
    fields: dict[str, float], members: int, cpus: float, cores: int | None, expected: int
) -> None:
    free = {"CPU": cpus, "GPU": 1.0}

    assert num_workers(tiny_section(**fields), members, free, cores) == expected


@pytest.mark.parametrize("label", [0, 1])
def test_test_patients_of_one_class_have_null_for_what_needs_both(label: int) -> None:
    labels = COHORT.labels | dict.fromkeys(COHORT.splits["test"], label)
    cohort = dataclasses.replace(COHORT, labels=labels)
    ensembles = fit_in_process(cohort, tiny_section(epochs=1))
    table = salience_table(cohort, ensembles)
    scaler = ensembles[0].scaler
    inputs = {patient: scaler.transform(case) for patient, case in cohort.cases.items()}

    metrics = expert_metrics(
        cohort, SECTION, ensembles, table, predictions_table(cohort, inputs, ensembles[0])
    )

    for row in (metrics["test"], *metrics["baselines"].values()):
        assert row["auroc"] is row["auprc"] is row["calibration_slope"] is None
        assert 0 <= row["brier"] <= 1
    assert metrics["truth"]["test"]["auroc_of_true_risk"] is None
    assert metrics["truth"]["train"]["auroc_of_true_risk"] is not None
