"""The ledger behind the policy store."""

from pathlib import Path

import pytest

from ehr.errors import StalePolicyError
from services.policy_store import (
    BASE_RECORD,
    PolicyLedger,
    PolicyRecord,
    read_record,
    write_record,
)
from services.types import PolicyVersion


def record(version: int, lineage: str = "grpo", checksum: str = "abc") -> PolicyRecord:
    return PolicyRecord(
        version=PolicyVersion(lineage=lineage, version=version),
        adapter_path="/run/adapter",
        checksum=checksum,
        scaling=0.5,
    )


def test_a_ledger_starts_at_the_base_policy() -> None:
    assert PolicyLedger().current == BASE_RECORD


@pytest.mark.parametrize("version", [4, 9])
def test_a_newer_version_is_accepted(version: int) -> None:
    ledger = PolicyLedger(record(3))

    assert ledger.accepts(record(version))


def test_publishing_the_same_policy_again_changes_nothing() -> None:
    ledger = PolicyLedger(record(3))

    assert not ledger.accepts(record(3))


def test_another_policy_under_a_taken_version_is_refused() -> None:
    ledger = PolicyLedger(record(3))

    with pytest.raises(StalePolicyError, match="already published with checksum 'abc', got 'def'"):
        ledger.accepts(record(3, checksum="def"))


def test_going_back_within_a_lineage_is_refused() -> None:
    ledger = PolicyLedger(record(3))

    with pytest.raises(StalePolicyError, match="newer than version 3, got version 2"):
        ledger.accepts(record(2))


def test_another_lineage_replaces_the_current_one() -> None:
    ledger = PolicyLedger(record(3))

    assert ledger.accepts(record(0, lineage="stage1"))
    assert ledger.accepts(BASE_RECORD)


def test_a_refused_record_leaves_the_current_one() -> None:
    ledger = PolicyLedger(record(3))

    with pytest.raises(StalePolicyError):
        ledger.accepts(record(1))

    assert ledger.current == record(3)


@pytest.mark.parametrize("written", [BASE_RECORD, record(7)])
def test_a_record_survives_the_run_folder(tmp_path: Path, written: PolicyRecord) -> None:
    file = tmp_path / "policy.json"

    write_record(file, "demo", written)

    assert read_record(file) == written
    assert [path.name for path in tmp_path.iterdir()] == ["policy.json"]


def test_a_run_without_a_record_serves_the_base_policy(tmp_path: Path) -> None:
    assert read_record(tmp_path / "policy.json") == BASE_RECORD
