"""An engine that follows the published policy: order, waiting, and failure."""

import asyncio
import hashlib

import pytest

from ehr.errors import ModelError, ServiceError, StalePolicyError
from services.following import PolicyFollower, PolicyGate
from services.types import (
    BASE_POLICY,
    Completion,
    GenerateRequest,
    Policy,
    PolicyVersion,
    RiskRequest,
    Sampling,
)
from tests.fakes import BREAKING_ADAPTER, REFUSED_ADAPTER, FakeEngine


def policy(version: int, adapter: bytes = b"adapter", lineage: str = "grpo") -> Policy:
    return Policy(
        version=PolicyVersion(lineage=lineage, version=version),
        adapter=adapter,
        scaling=0.5,
        checksum=hashlib.sha256(adapter).hexdigest(),
    )


def request(least: PolicyVersion) -> GenerateRequest:
    return GenerateRequest(
        prompt_token_ids=(1, 2, 3),
        sampling=Sampling(max_tokens=8, temperature=1.0, n=2),
        least=least,
        session="p1",
    )


class Store:
    """Stands for the policy store."""

    def __init__(self, current: Policy) -> None:
        self.current = current
        self.num_fetches = 0

    async def fetch(self) -> Policy:
        self.num_fetches += 1
        return self.current


class SlowEngine(FakeEngine):
    """Answers when it is told to, and notes the order of what happens."""

    def __init__(self) -> None:
        super().__init__()
        self.release = asyncio.Event()
        self.started = asyncio.Event()
        self.events: list[str] = []

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        self.started.set()
        await self.release.wait()
        self.events.append(f"answered by {self.version.lineage} {self.version.version}")
        return await super().generate(request)

    async def load_policy(self, policy: Policy) -> None:
        self.events.append(f"loading {policy.version.version}")
        await super().load_policy(policy)


def follower(store: Store, engine: FakeEngine | None = None) -> PolicyFollower:
    return PolicyFollower(engine or FakeEngine(), store.fetch, "r1")


async def test_a_follower_that_is_behind_pulls_before_it_answers() -> None:
    store = Store(policy(2))

    completions = await follower(store).generate(request(policy(2).version))

    assert {each.policy_version for each in completions} == {policy(2).version}


async def test_a_follower_that_is_current_does_not_ask_the_store() -> None:
    store = Store(policy(2))
    behind = follower(store)
    await behind.sync()

    await behind.generate(request(policy(1).version))

    assert store.num_fetches == 1


async def test_requests_that_find_it_behind_together_load_once() -> None:
    store = Store(policy(2))
    engine = SlowEngine()
    engine.release.set()
    behind = follower(store, engine)

    await asyncio.gather(*[behind.generate(request(policy(2).version)) for _ in range(5)])

    assert engine.events.count("loading 2") == 1


async def test_another_lineage_is_refused() -> None:
    with pytest.raises(StalePolicyError, match="stage1 policies from version 0"):
        await follower(Store(policy(2))).generate(
            request(PolicyVersion(lineage="stage1", version=0))
        )


async def test_requests_of_the_old_policy_finish_before_the_new_one_loads() -> None:
    engine = SlowEngine()
    behind = follower(Store(policy(1)), engine)
    old = asyncio.create_task(behind.generate(request(BASE_POLICY)))
    await engine.started.wait()

    sync = asyncio.create_task(behind.sync())
    new = asyncio.create_task(behind.generate(request(policy(1).version)))
    await asyncio.sleep(0)
    engine.release.set()
    await asyncio.gather(old, sync, new)

    assert engine.events == ["answered by base 0", "loading 1", "answered by grpo 1"]


async def test_a_caller_that_gives_up_does_not_stop_a_load() -> None:
    engine = SlowEngine()
    behind = follower(Store(policy(1)), engine)
    old = asyncio.create_task(behind.generate(request(BASE_POLICY)))
    await engine.started.wait()

    impatient = asyncio.create_task(behind.sync())
    await asyncio.sleep(0)
    impatient.cancel()
    engine.release.set()
    await old
    patient = await behind.sync()

    assert patient.version == policy(1).version
    assert engine.events.count("loading 1") == 1


async def test_a_request_that_fails_lets_the_next_policy_in() -> None:
    class FailingEngine(FakeEngine):
        async def generate(self, request: GenerateRequest) -> list[Completion]:
            raise ServiceError("too long")

    behind = follower(Store(policy(1)), FailingEngine())
    with pytest.raises(ServiceError, match="too long"):
        await behind.generate(request(BASE_POLICY))

    acknowledged = await behind.sync()

    assert acknowledged.version == policy(1).version


async def test_a_refused_adapter_leaves_the_old_policy() -> None:
    behind = follower(Store(policy(1, REFUSED_ADAPTER)))

    with pytest.raises(ModelError, match="LoRA"):
        await behind.sync()

    await behind.check()
    assert behind.policy().version == BASE_POLICY


async def test_a_load_that_fails_half_way_has_the_replica_replaced() -> None:
    behind = follower(Store(policy(1, BREAKING_ADAPTER)))

    with pytest.raises(ServiceError, match="half way"):
        await behind.sync()

    with pytest.raises(ServiceError, match="being replaced"):
        await behind.check()


async def test_counters_add_up() -> None:
    busy = follower(Store(policy(1)))

    first = await busy.generate(request(BASE_POLICY))
    await busy.generate(request(BASE_POLICY))
    stats = busy.stats()

    assert (stats.requests, stats.prompt_tokens, stats.cached_tokens) == (2, 6, 3)
    assert stats.decode_tokens == 2 * sum(len(each.token_ids) for each in first)


async def test_an_open_gate_lets_requests_in_together() -> None:
    gate = PolicyGate()

    async with gate.request(), gate.request():
        inside = True

    assert inside


def test_a_version_satisfies_older_ones_of_its_lineage_only() -> None:
    served = PolicyVersion(lineage="grpo", version=3)

    assert served.satisfies(PolicyVersion(lineage="grpo", version=2))
    assert not served.satisfies(PolicyVersion(lineage="grpo", version=4))
    assert not served.satisfies(BASE_POLICY)


async def test_a_risk_is_read_with_the_policy_that_the_request_wants() -> None:
    asked = RiskRequest(prompt_token_ids=(1, 2, 3), least=policy(2).version, session="p1")
    behind = follower(Store(policy(2)))

    reading = await behind.read_risk(asked)

    assert reading.policy_version == policy(2).version
    assert sum(reading.probabilities) == pytest.approx(1)
    assert behind.stats().requests == behind.stats().decode_tokens == reading.num_requests


async def test_a_policy_waits_until_a_risk_is_read_whole() -> None:
    class Slow(FakeEngine):
        async def next_tokens(self, prompt_token_ids: tuple[int, ...], regex: str):
            started.set()
            await asyncio.sleep(0)
            used.add(self.version.version)
            return await super().next_tokens(prompt_token_ids, regex)

    used: set[int] = set()
    engine, store = Slow(), Store(policy(1))
    started = asyncio.Event()
    serving = follower(store, engine)
    await serving.sync()
    asked = RiskRequest(prompt_token_ids=(1, 2, 3), least=policy(1).version, session="p1")

    reading = asyncio.create_task(serving.read_risk(asked))
    await started.wait()
    store.current = policy(2)
    await serving.sync()

    assert (await reading).policy_version == policy(1).version
    assert used == {1}
    assert engine.version == policy(2).version
