"""The generator on a real Ray Serve, with a fake engine in its replicas."""

import asyncio
import hashlib
import time
from pathlib import Path

import pytest
import ray

from ehr.errors import ModelError, ServiceError, StalePolicyError
from services.clients import GeneratorClient
from services.cluster import Cluster
from services.config import GeneratorSection, ModelSection
from services.generator import (
    deploy_generator,
    start_generator,
    stop_generator,
    wait_for_generator,
)
from services.policy_store import BASE_RECORD, PolicyRecord
from services.types import (
    BASE_POLICY,
    GenerateRequest,
    PolicyVersion,
    RiskReading,
    RiskRequest,
    Sampling,
    Scored,
)
from tests.fakes import REFUSED_ADAPTER, fake_model, load_fake, load_never
from tests.typed import untyped

pytestmark = pytest.mark.usefixtures("local_ray")

TIMEOUT_S = 120.0


def grpo(version: int) -> PolicyVersion:
    return PolicyVersion(lineage="grpo", version=version)


def request(least: PolicyVersion, session: str = "p1", prompt: str = "hello") -> GenerateRequest:
    return GenerateRequest(
        prompt_token_ids=tuple(map(ord, prompt)),
        sampling=Sampling(max_tokens=16, temperature=1.0, seed=1),
        least=least,
        session=session,
    )


def record(folder: Path, version: PolicyVersion, content: bytes = b"") -> PolicyRecord:
    content = content or f"adapter of {version}".encode()
    path = folder / f"adapter-{version.lineage}-{version.version}"
    path.write_bytes(content)
    return PolicyRecord(
        version=version,
        adapter_path=str(path),
        checksum=hashlib.sha256(content).hexdigest(),
        scaling=0.5,
    )


def replica_actors(run_id: str) -> list[str]:
    named = untyped(ray.util.list_named_actors(all_namespaces=True))
    return [each["name"] for each in named if f"generator-{run_id}#" in each["name"]]


async def two_replies(client: GeneratorClient, least: PolicyVersion) -> list[Scored]:
    """Scores of both replicas, once the killed one is replaced."""
    async with asyncio.timeout(TIMEOUT_S):
        while len(replies := await client.score((1,), (2,), least)) < 2:
            await asyncio.sleep(0.2)
    return replies


def kill_a_replica(run_id: str) -> None:
    ray.kill(ray.get_actor(replica_actors(run_id)[0], namespace="serve"))


@pytest.fixture(scope="module")
def run_id(local_ray: Cluster, tmp_path_factory: pytest.TempPathFactory):
    """A run with two replicas, shared by the tests of this file."""
    folder = tmp_path_factory.mktemp("pair")
    section = GeneratorSection(num_replicas=2, cpus_per_replica=0.1, startup_timeout_s=TIMEOUT_S)
    start_generator("pair", folder, fake_model(folder), ModelSection(), section, load_fake)
    yield "pair"
    stop_generator("pair")


@pytest.fixture
async def client(run_id: str) -> GeneratorClient:
    """A client of that run, which is back at the base policy."""
    client = GeneratorClient(run_id, TIMEOUT_S)
    await client.publish(BASE_RECORD)
    return client


async def test_a_sync_is_seen_by_both_replicas(client: GeneratorClient, tmp_path: Path):
    policy = record(tmp_path, grpo(1))

    acknowledged = await client.publish(policy)
    scores = await client.score((1, 2), (3, 4), grpo(1))

    assert len({each.replica for each in acknowledged}) == 2
    assert {(each.version, each.checksum) for each in acknowledged} == {(grpo(1), policy.checksum)}
    assert [each.logprobs for each in scores] == [(-1.5, -1.5)] * 2


async def test_every_completion_carries_the_policy_that_made_it(
    client: GeneratorClient, tmp_path: Path
):
    before = await client.generate(request(BASE_POLICY))
    policy = record(tmp_path, grpo(1))
    await client.publish(policy)

    after = await client.generate(request(grpo(1)))

    assert (before[0].policy_version, before[0].policy_checksum) == (BASE_POLICY, "")
    assert (after[0].policy_version, after[0].policy_checksum) == (grpo(1), policy.checksum)


@pytest.mark.slow
async def test_a_risk_is_read_by_one_replica_under_the_policy_that_is_asked_for(
    client: GeneratorClient, tmp_path: Path
):
    async def read(least: PolicyVersion) -> RiskReading:
        return await client.read_risk(
            RiskRequest(prompt_token_ids=(1, 2), least=least, session="p1")
        )

    before = await read(BASE_POLICY)
    await client.publish(record(tmp_path, grpo(1)))
    after = await read(grpo(1))

    assert [before.policy_version, after.policy_version] == [BASE_POLICY, grpo(1)]
    assert sum(after.probabilities) == pytest.approx(1)
    assert after.probabilities != pytest.approx(before.probabilities)
    with pytest.raises(StalePolicyError, match="version 2"):
        await read(grpo(2))


async def test_a_replica_that_starts_late_serves_the_current_policy(
    run_id: str, client: GeneratorClient, tmp_path: Path
):
    await client.publish(record(tmp_path, grpo(3)))
    killed = replica_actors(run_id)[0]

    kill_a_replica(run_id)
    answers = await asyncio.gather(
        *[client.generate(request(grpo(3), session=f"p{i}")) for i in range(40)]
    )
    replies = await two_replies(client, grpo(3))

    assert killed not in replica_actors(run_id)
    assert {answer[0].policy_version for answer in answers} == {grpo(3)}
    assert [reply.version for reply in replies] == [grpo(3)] * 2


async def test_a_request_for_another_lineage_or_a_newer_version_is_refused(
    client: GeneratorClient, tmp_path: Path
):
    await client.publish(record(tmp_path, grpo(2)))

    with pytest.raises(StalePolicyError, match="base policies from version 0"):
        await client.generate(request(BASE_POLICY))
    with pytest.raises(StalePolicyError, match="grpo policies from version 3"):
        await client.generate(request(grpo(3)))


@pytest.mark.slow
@pytest.mark.slow
async def test_two_runs_on_one_cluster_do_not_touch_each_other(
    client: GeneratorClient, tmp_path: Path
):
    other_dir = tmp_path / "other"
    other_dir.mkdir()
    section = GeneratorSection(cpus_per_replica=0.1, startup_timeout_s=TIMEOUT_S)
    await client.publish(record(tmp_path, grpo(1)))

    start_generator("other", other_dir, fake_model(tmp_path), ModelSection(), section, load_fake)
    other = GeneratorClient("other", TIMEOUT_S)
    theirs = await other.generate(request(BASE_POLICY))
    stop_generator("other")
    ours = await client.generate(request(grpo(1)))

    assert theirs[0].policy_version == BASE_POLICY
    assert ours[0].policy_version == grpo(1)


async def test_a_patient_stays_on_one_replica(client: GeneratorClient):

    before = {each.replica: each for each in await client.stats()}

    for _ in range(6):
        await client.generate(request(BASE_POLICY, session="p7", prompt="seven"))
    after = {each.replica: each for each in await client.stats()}

    used = {name: after[name].requests - before[name].requests for name in after}
    hits = {name: after[name].cached_tokens - before[name].cached_tokens for name in after}
    assert sorted(used.values()) == [0, 6]
    assert max(hits.values()) == 5 * len("seven")


async def test_an_adapter_that_is_refused_leaves_the_old_policy_in_service(
    client: GeneratorClient, tmp_path: Path
):
    await client.publish(record(tmp_path, grpo(1)))

    with pytest.raises(ModelError, match="LoRA adapter"):
        await client.publish(record(tmp_path, grpo(2), REFUSED_ADAPTER))
    still = await client.generate(request(grpo(1)))

    assert still[0].policy_version == grpo(1)


async def test_an_adapter_file_that_changed_after_its_commit_is_not_served(
    client: GeneratorClient, tmp_path: Path
):
    policy = record(tmp_path, grpo(1))
    Path(str(policy.adapter_path)).write_bytes(b"something else")

    with pytest.raises(ModelError, match="changed after it was committed"):
        await client.publish(policy)
    still = await client.generate(request(BASE_POLICY))

    assert still[0].policy_version == BASE_POLICY


@pytest.mark.slow
@pytest.mark.slow
def test_an_engine_that_cannot_start_is_an_error_with_its_reason(tmp_path: Path):
    section = GeneratorSection(cpus_per_replica=0.1, startup_timeout_s=TIMEOUT_S)
    deploy_generator("broken", tmp_path, fake_model(tmp_path), ModelSection(), section, load_never)

    with pytest.raises(ServiceError, match="no memory for the engine"):
        wait_for_generator("broken", section)

    stop_generator("broken")


async def test_a_generator_that_is_not_there_is_an_error_within_its_time():
    client = GeneratorClient("nobody", 1.0)
    start = time.monotonic()

    with pytest.raises(ServiceError, match="generator-nobody"):
        await client.generate(request(BASE_POLICY))

    assert time.monotonic() - start < 10
