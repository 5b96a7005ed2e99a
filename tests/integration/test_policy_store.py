"""The policy store on a real Ray: published by value, and restarted."""

import hashlib
import json
from pathlib import Path

import pytest
import ray

from ehr.errors import ServiceError, StalePolicyError
from services.policy_store import (
    BASE_RECORD,
    NAMESPACE,
    PolicyRecord,
    commit_to_store,
    fetch_policy,
    start_policy_store,
    stop_policy_store,
)
from services.types import BASE_POLICY, PolicyVersion

pytestmark = pytest.mark.usefixtures("local_ray")

TIMEOUT_S = 60.0
CONTENT = b"the bytes of an adapter"


@pytest.fixture
def store(tmp_path: Path):
    start_policy_store("stored", tmp_path, TIMEOUT_S)
    yield "stored"
    stop_policy_store("stored")


def record(folder: Path, version: int) -> PolicyRecord:
    path = folder / f"adapter-{version}"
    path.write_bytes(CONTENT)
    return PolicyRecord(
        version=PolicyVersion(lineage="grpo", version=version),
        adapter_path=str(path),
        checksum=hashlib.sha256(CONTENT).hexdigest(),
        scaling=0.5,
    )


async def test_a_new_store_serves_the_base_policy(store: str):
    policy = await fetch_policy(store, TIMEOUT_S)

    assert policy.version == BASE_POLICY
    assert policy.adapter is None


async def test_a_published_policy_comes_back_by_value(store: str, tmp_path: Path):
    published = record(tmp_path, 1)

    await commit_to_store(store, published, TIMEOUT_S)
    Path(str(published.adapter_path)).unlink()
    policy = await fetch_policy(store, TIMEOUT_S)

    assert policy.adapter == CONTENT
    assert policy.version == published.version
    assert json.loads((tmp_path / "policy.json").read_text())["checksum"] == published.checksum


async def test_a_killed_store_comes_back_with_the_committed_policy(store: str, tmp_path: Path):
    published = record(tmp_path, 4)
    await commit_to_store(store, published, TIMEOUT_S)

    ray.kill(ray.get_actor(f"policy-store-{store}", namespace=NAMESPACE), no_restart=False)
    policy = await fetch_policy(store, TIMEOUT_S)

    assert (policy.version, policy.adapter) == (published.version, CONTENT)


async def test_going_back_is_refused_and_the_policy_stays(store: str, tmp_path: Path):
    await commit_to_store(store, record(tmp_path, 2), TIMEOUT_S)

    with pytest.raises(StalePolicyError, match="only go forward"):
        await commit_to_store(store, record(tmp_path, 1), TIMEOUT_S)

    assert (await fetch_policy(store, TIMEOUT_S)).version.version == 2


async def test_a_store_started_again_begins_at_the_base_policy(store: str, tmp_path: Path):
    await commit_to_store(store, record(tmp_path, 2), TIMEOUT_S)

    start_policy_store(store, tmp_path, TIMEOUT_S)
    await commit_to_store(store, BASE_RECORD, TIMEOUT_S)

    assert (await fetch_policy(store, TIMEOUT_S)).version == BASE_POLICY


async def test_a_run_without_a_store_is_an_error_that_says_so():
    with pytest.raises(ServiceError, match="no policy store"):
        await fetch_policy("nobody", 1.0)
