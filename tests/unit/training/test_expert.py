import dataclasses
from pathlib import Path

import pytest
import torch

from ehr.config import ExpertSection
from ehr.expert_member import Member, MemberState, halves, member_file, member_key, write_member
from ehr.salience import salience_table
from tests.expert_cohort import fit_in_process, tiny_cohort, tiny_section
from training.expert import _metrics, _note_epoch, _predict, _remove_stale, _tell, _truth

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

    assert _remove_stale(tmp_path, PLANS, SECTION, "data") == []


@pytest.mark.parametrize(
    ("section", "data_sha256"), [(tiny_section(epochs=9), "data"), (SECTION, "other data")]
)
def test_members_trained_from_something_else_are_removed(
    tmp_path: Path, section: ExpertSection, data_sha256: str
) -> None:
    write(tmp_path, SECTION, "data")

    assert _remove_stale(tmp_path, PLANS, section, data_sha256) == PLANS
    assert not list(tmp_path.iterdir())


def test_a_broken_member_and_one_too_many_are_removed(tmp_path: Path) -> None:
    write(tmp_path, SECTION, "data")
    (tmp_path / member_file(PLANS[1])).write_bytes(b"cut off")
    (tmp_path / "member-7-0.safetensors").write_bytes(b"of a larger ensemble")

    assert _remove_stale(tmp_path, PLANS, SECTION, "data") == [PLANS[1]]
    assert len(list(tmp_path.iterdir())) == len(PLANS) - 1


def test_progress_counts_finished_members_and_epochs_in_training(tmp_path: Path) -> None:
    write(tmp_path, SECTION, "data")
    (tmp_path / member_file(PLANS[0])).unlink()
    _note_epoch(tmp_path, 0, 5, 0.25)
    moves: list[tuple[float, float, str]] = []

    _tell(tmp_path, PLANS, 10, lambda *move: moves.append(move))

    assert moves == [(3.5, 4, "validation loss 0.250")]


def test_a_cohort_without_truth_has_no_comparison_with_it() -> None:
    assert _truth(dataclasses.replace(COHORT, truth=None), SECTION, {}) is None


def test_a_single_member_has_no_agreement_and_nothing_out_of_fold() -> None:
    section = tiny_section(members=1, num_ensembles=1, epochs=1)
    ensembles = fit_in_process(COHORT, section)
    table = salience_table(COHORT, ensembles)
    scaler = ensembles[0].scaler
    inputs = {patient: scaler.transform(case) for patient, case in COHORT.cases.items()}

    metrics = _metrics(COHORT, section, ensembles, table, _predict(COHORT, inputs, ensembles[0]))

    assert metrics["out_of_fold"] is False
    assert metrics["kappa"] is None
    assert metrics["test"]["jaccard_constant"] is None
    assert metrics["test"]["auroc"] is not None
    assert not table[table["split"] == "train"]["out_of_fold"].any()
