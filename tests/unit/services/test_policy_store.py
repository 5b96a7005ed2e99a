"""The ledger behind the policy store."""

from pathlib import Path

import pytest

from ehr.errors import RunFolderError, StalePolicyError
from services.policy_store import (
    BASE_RECORD,
    PolicyLedger,
    PolicyRecord,
    PolicyStore,
    read_ledger,
    write_ledger,
)
from services.types import PolicyVersion


def record(version: int, lineage: str = "grpo", checksum: str = "abc") -> PolicyRecord:
    return PolicyRecord(
        version=PolicyVersion(lineage=lineage, version=version),
        adapter_path="/run/adapter",
        checksum=checksum,
        scaling=0.5,
    )


def at(current: PolicyRecord) -> PolicyLedger:
    return PolicyLedger(current=current, number=4)


def test_a_ledger_starts_at_the_base_policy() -> None:
    assert PolicyLedger().current == BASE_RECORD


@pytest.mark.parametrize("version", [4, 9])
def test_a_newer_version_is_accepted_and_counted(version: int) -> None:
    assert at(record(3)).publish(record(version)) == PolicyLedger(current=record(version), number=5)


def test_publishing_the_same_policy_again_changes_nothing() -> None:
    ledger = at(record(3))

    assert ledger.publish(record(3)) is ledger


def test_another_policy_under_a_taken_version_is_refused() -> None:
    with pytest.raises(StalePolicyError, match="already published with checksum 'abc', got 'def'"):
        at(record(3)).publish(record(3, checksum="def"))


def test_going_back_within_a_lineage_is_refused() -> None:
    with pytest.raises(StalePolicyError, match="newer than version 3, got version 2"):
        at(record(3)).publish(record(2))


def test_another_lineage_replaces_the_current_one() -> None:
    ledger = at(record(3)).publish(record(0, lineage="stage1")).publish(BASE_RECORD)

    assert ledger == PolicyLedger(current=BASE_RECORD, number=6)


@pytest.mark.parametrize("written", [PolicyLedger(), at(record(7))])
def test_a_ledger_survives_the_run_folder(tmp_path: Path, written: PolicyLedger) -> None:
    file = tmp_path / "policy.json"

    write_ledger(file, "demo", written)

    assert read_ledger(file) == written
    assert [path.name for path in tmp_path.iterdir()] == ["policy.json"]


def test_a_store_whose_record_is_gone_does_not_begin_afresh(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="the published policy"):
        read_ledger(tmp_path / "policy.json")


def test_a_store_holds_the_bytes_it_is_given_not_a_path(tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    write_ledger(file, "demo", PolicyLedger())
    store = PolicyStore("demo", str(file), put=lambda adapter: adapter)

    store.publish(record(1), b"the bytes")

    assert store.current().adapter == (b"the bytes",)
