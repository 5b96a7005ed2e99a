"""An engine that follows the published policy: what a generator replica does, without Ray."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Self

from ehr.errors import ModelError, ServiceError, StalePolicyError
from services.engine import Engine
from services.risk_reading import RiskReader
from services.types import (
    Acknowledgement,
    Completion,
    GenerateRequest,
    GeneratorStats,
    Policy,
    PolicyVersion,
    RiskReading,
    RiskRequest,
    Scored,
)

logger = logging.getLogger(__name__)


class PolicyGate:
    """Many requests at a time, or one policy change: requests of the old policy finish first."""

    def __init__(self) -> None:
        self._num_requests = 0
        self._open = asyncio.Event()
        self._open.set()
        self._idle = asyncio.Event()
        self._idle.set()

    @asynccontextmanager
    async def request(self) -> AsyncIterator[None]:
        """Held while a request runs; waits while the policy changes."""
        while not self._open.is_set():
            await self._open.wait()
        self._num_requests += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_requests -= 1
            if self._num_requests == 0:
                self._idle.set()

    @asynccontextmanager
    async def change(self) -> AsyncIterator[None]:
        """Held while the policy changes, by one at a time; running requests finish first."""
        self._open.clear()
        try:
            await self._idle.wait()
            yield
        finally:
            self._open.set()


class PolicyFollower:
    """Answers requests with an engine, pulling the current policy whenever it is behind."""

    def __init__(
        self, engine: Engine, fetch: Callable[[], Awaitable[Policy]], replica: str
    ) -> None:
        """A follower that serves the engine's own policy until it first needs another.

        Args:
            engine: a started engine.
            fetch: the run's current policy, from its store.
            replica: name of this replica, for acknowledgements.
        """
        self._engine = engine
        self._risks = RiskReader(engine.next_tokens)
        self._fetch = fetch
        self._gate = PolicyGate()
        # Fetch and load are one step: two of them mixed up could load the older policy last.
        self._syncing = asyncio.Lock()
        self._number = 0
        self._broken: str | None = None
        self._stats = GeneratorStats(replica=replica, cache_tokens=engine.cache_tokens)

    @classmethod
    async def follow(
        cls, engine: Engine, fetch: Callable[[], Awaitable[Policy]], replica: str
    ) -> Self:
        """A follower that serves the run's current policy from its first answer on."""
        follower = cls(engine, fetch, replica)
        await follower.sync()
        return follower

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """The completions of a request, by a policy that it accepts.

        Raises:
            StalePolicyError: if the run's current policy is not one that the request accepts.
        """
        async with self._serving(request.least):
            completions = await self._engine.generate(request)
        self._count(completions)
        return completions

    async def read_risk(self, request: RiskRequest) -> RiskReading:
        """The distribution of the risk that comes next, all of it by one policy.

        Raises:
            StalePolicyError: if the run's current policy is not one that the request accepts.
            ModelError: if the engine does not know the pattern's whole distribution.
        """
        async with self._serving(request.least):
            found = await self._risks.read(request.prompt_token_ids)
            reading = RiskReading(
                probabilities=found.probabilities,
                policy_version=self._engine.version,
                num_requests=found.num_requests,
            )
        self._stats = replace(
            self._stats,
            requests=self._stats.requests + found.num_requests,
            decode_tokens=self._stats.decode_tokens + found.num_requests,
        )
        return reading

    async def score(
        self,
        prompt_token_ids: tuple[int, ...],
        response_token_ids: tuple[int, ...],
        least: PolicyVersion,
    ) -> Scored:
        """Log-probabilities of a response under a policy of at least version `least`."""
        async with self._serving(least):
            logprobs = await self._engine.score(prompt_token_ids, response_token_ids)
            return Scored(
                replica=self._stats.replica, version=self._engine.version, logprobs=logprobs
            )

    async def sync(self) -> Acknowledgement:
        """Load the store's policy unless it is loaded already."""
        # A caller that gives up must not leave a model half loaded.
        return await asyncio.shield(asyncio.create_task(self._sync()))

    def policy(self) -> Acknowledgement:
        """What is served now."""
        return Acknowledgement(
            replica=self._stats.replica,
            version=self._engine.version,
            checksum=self._engine.checksum,
        )

    def stats(self) -> GeneratorStats:
        """Counters since the start."""
        return self._stats

    async def check(self) -> None:
        """Raise if the engine cannot go on, so that Serve replaces the replica."""
        if self._broken is not None:
            raise ServiceError(
                f"the engine failed while it loaded a policy ({self._broken}); the replica is "
                "being replaced"
            )
        await self._engine.check()

    @asynccontextmanager
    async def _serving(self, least: PolicyVersion) -> AsyncIterator[None]:
        """Hold the gate with a policy loaded that satisfies `least`."""
        while True:
            async with self._gate.request():
                if self._engine.version.satisfies(least):
                    yield
                    return
            current = (await self.sync()).version
            if not current.satisfies(least):
                raise StalePolicyError(
                    f"the request accepts {least.lineage} policies from version {least.version} "
                    f"on, the run's store serves {current.lineage} version {current.version}; "
                    "publish the policy before asking for it"
                )

    async def _sync(self) -> Acknowledgement:
        async with self._syncing:
            policy = await self._fetch()
            if policy.number < self._number:
                # A replica never goes back, whatever comes twice or late.
                logger.warning("ignored an old policy version=%s", policy.version)
                return self.policy()
            loaded = (self._engine.version, self._engine.checksum)
            if loaded != (policy.version, policy.checksum):
                async with self._gate.change():
                    await self._load(policy)
            self._number = policy.number
            return self.policy()

    async def _load(self, policy: Policy) -> None:
        start = time.monotonic()
        try:
            await self._engine.load_policy(policy)
        except ModelError:
            # Refused before anything changed: the old policy is whole.
            raise
        except Exception as error:
            self._broken = repr(error)
            raise ServiceError(
                f"loading {policy.version.lineage} version {policy.version.version} failed half "
                f"way: {error!r}; the replica will be replaced and load it afresh"
            ) from error
        seconds = time.monotonic() - start
        self._stats = replace(
            self._stats, syncs=self._stats.syncs + 1, sync_s=self._stats.sync_s + seconds
        )
        logger.info(
            "loaded policy lineage=%s version=%d seconds=%.2f",
            policy.version.lineage,
            policy.version.version,
            seconds,
        )

    def _count(self, completions: list[Completion]) -> None:
        first = completions[0]
        self._stats = replace(
            self._stats,
            requests=self._stats.requests + 1,
            prompt_tokens=self._stats.prompt_tokens + first.num_prompt_tokens,
            cached_tokens=self._stats.cached_tokens + first.num_cached_tokens,
            decode_tokens=self._stats.decode_tokens
            + sum(len(completion.token_ids) for completion in completions),
        )
