"""A cluster in one thread for tests of the control plane: messages wait until they are delivered.

The policy store, the followers, the clients and the controller are the real ones. Stood in for are
Ray and Serve (who delivers what, when, and what a death does to a call), the engine, and time.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ray.exceptions import ActorDiedError, OwnerDiedError, RayTaskError

from ehr.errors import EagRlError, StalePolicyError
from services.following import PolicyFollower
from services.policy_store import (
    PolicyLedger,
    PolicyRecord,
    PolicyStore,
    StoredPolicy,
    fetch_policy,
    write_ledger,
)
from services.types import Acknowledgement, Completion, GenerateRequest, Policy
from tests.fakes import FakeEngine
from tests.typed import untyped

TIMEOUT_S = 1e9
"""No call gives up: a schedule may hold any message back."""


class SteppedLoop(asyncio.SelectorEventLoop):
    """Runs what is ready and never waits; time passes when it is told to."""

    now = 0.0

    def time(self) -> float:
        """Seconds that have passed."""
        return self.now

    def settle(self) -> None:
        """Run until every task waits for a message or for time."""
        while self._ready or (self._scheduled and self._scheduled[0].when() <= self.now):
            self.call_soon(self.stop)
            self.run_forever()

    def pass_time(self, seconds: float) -> None:
        """Let timers go off."""
        self.now += seconds
        self.settle()

    _ready: Any
    _scheduled: Any


@dataclass(eq=False)
class Message:
    """Something under way."""

    deliver: Callable[[], None]
    may_arrive: Callable[[], bool]


class Network:
    """Everything that is under way; any message may be the next to arrive."""

    def __init__(self) -> None:
        self.loop = SteppedLoop()
        self.under_way: list[Message] = []
        self.num_delivered = 0
        self.tasks: set[asyncio.Task[Any]] = set()

    def send(
        self, deliver: Callable[[], None], may_arrive: Callable[[], bool] = lambda: True
    ) -> None:
        """Put a message under way."""
        self.under_way.append(Message(deliver=deliver, may_arrive=may_arrive))

    def deliver(self, pick: int) -> bool:
        """Let one message arrive; False if there is none that can."""
        can = [message for message in self.under_way if message.may_arrive()]
        if not can:
            return False
        message = can[pick % len(can)]
        self.under_way.remove(message)
        self.num_delivered += 1
        message.deliver()
        self.loop.settle()
        return True

    def start(self, call: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine up to its first wait."""
        task = self.loop.create_task(call)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        self.loop.settle()
        return task

    def pause(self) -> Awaitable[None]:
        """Work that takes until its message arrives."""
        future = self.loop.create_future()
        self.send(partial(answer, future, None))
        return future

    def close(self) -> None:
        """End all tasks."""
        for task in list(self.tasks):
            task.cancel()
        self.loop.settle()
        self.loop.close()


def answer(future: asyncio.Future[Any], value: Any) -> None:
    """Give a caller its value, or the exception that it is; a caller that is gone gets nothing."""
    if future.done():
        return
    if isinstance(value, Exception):
        future.set_exception(value)
        future.exception()  # nobody may be waiting any more
    else:
        future.set_result(value)


def task_error(error: EagRlError) -> RayTaskError:
    """An error as it comes out of another process."""
    return RayTaskError("call", "traceback", error).as_instanceof_cause()


@dataclass(eq=False)
class Process:
    """What dies at once."""

    is_alive: bool = True


@dataclass(eq=False)
class Held:
    """An object in Ray's object store, lost with its owner."""

    network: Network
    owner: Process
    adapter: bytes

    def __await__(self) -> Generator[Any, None, bytes]:
        yield from self.network.pause().__await__()
        if not self.owner.is_alive:
            raise OwnerDiedError("object", b"address", "site")
        return self.adapter


@dataclass
class Remote:
    """A method of an actor: `handle.method.remote(...)`."""

    remote: Callable[..., Any]


class StoreActor:
    """The policy store's actor: restarted when it dies, unanswered calls are made again."""

    def __init__(self, network: Network, folder: Path) -> None:
        self._network = network
        self._file = folder / "policy.json"
        write_ledger(self._file, "run", PolicyLedger())
        self._start()
        self.publish = Remote(partial(self._call, "publish"))
        self.current = Remote(partial(self._call, "current"))
        self.published: list[tuple[PolicyRecord, bytes]] = []
        """Arguments of every call of `publish`, for replays."""
        self.answered: list[tuple[StoredPolicy, bytes | None]] = []
        """Every answer of `current`, for replays."""

    def kill(self) -> None:
        """Kill the process; Ray starts another."""
        self._process.is_alive = False
        self._start()

    def replay(self, pick: int) -> None:
        """Have an earlier publication arrive once more."""
        if self.published:
            with suppress(StalePolicyError):  # whom it would be told to is gone
                self.store.publish(*self.published[pick % len(self.published)])

    def _start(self) -> None:
        self._process = process = Process()
        self.store = PolicyStore(
            "run", str(self._file), put=lambda adapter: Held(self._network, process, adapter)
        )

    def _call(self, method: str, *arguments: Any) -> asyncio.Future[Any]:
        future = self._network.loop.create_future()
        if method == "publish":
            self.published.append(untyped(arguments))
        self._ask(future, method, arguments)
        return future

    def _ask(self, future: asyncio.Future[Any], method: str, arguments: tuple[Any, ...]) -> None:
        def arrive() -> None:
            try:
                value = getattr(self.store, method)(*arguments)
            except EagRlError as error:
                value = task_error(error)
            if isinstance(value, StoredPolicy):
                held = value.adapter[0].adapter if value.adapter else None
                self.answered.append((value, held))
            self._network.send(partial(come_back, self._process, value))

        def come_back(process: Process, value: Any) -> None:
            if process.is_alive:
                answer(future, value)
            else:
                self._ask(future, method, arguments)

        self._network.send(arrive)


class SteppedEngine(FakeEngine):
    """A fake engine whose work takes as long as the schedule wants."""

    def __init__(self, network: Network, wrong: Callable[[str], None]) -> None:
        super().__init__()
        self._network = network
        self._wrong = wrong
        self._number = 0

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """Completions by the policy that was there all the time."""
        checksum = self.checksum
        await self._network.pause()
        if checksum != self.checksum:
            self._wrong(f"{self.version} was loaded into a running request")
        return await super().generate(request)

    async def load_policy(self, policy: Policy) -> None:
        """The new policy is there when the load has ended."""
        await self._network.pause()
        await super().load_policy(policy)
        if policy.number < self._number:
            self._wrong(f"went back from publication {self._number} to {policy.number}")
        self._number = policy.number


@dataclass(eq=False)
class Replica:
    """A process of the generator."""

    name: str
    engine: SteppedEngine
    process: Process = field(default_factory=Process)
    follower: PolicyFollower | None = None
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)
    callers: list[asyncio.Future[Any]] = field(default_factory=list)
    replayed: Policy | None = None
    """An old answer that the next fetch gets instead of the store's."""


class Application:
    """The generator on Serve, and the handle that clients have."""

    def __init__(self, network: Network, actor: StoreActor, wrong: Callable[[str], None]) -> None:
        self._network = network
        self._actor = actor
        self._wrong = wrong
        self._num_started = 0
        self.replicas: list[Replica] = []
        self.told: list[Replica] = []
        """Who was there when the replicas were told of a policy last."""
        self._methods = {"generate": Remote(self._generate)}

    @property
    def running(self) -> list[Replica]:
        """Replicas that have joined."""
        return [each for each in self.replicas if each.follower is not None]

    def options(self, method_name: str, **_: object) -> Remote:
        """A method of the replicas; where a request goes is the schedule's choice."""
        return self._methods[method_name]

    def start(self) -> None:
        """Start a replica: it joins when it has the policy."""
        engine = SteppedEngine(self._network, self._wrong)
        self._num_started += 1
        replica = Replica(name=f"r{self._num_started}", engine=engine)
        self.replicas.append(replica)
        replica.tasks.append(self._network.start(self._join(replica)))

    def kill(self, replica: Replica) -> None:
        """Kill a replica with everything it does."""
        self.replicas.remove(replica)
        replica.process.is_alive = False
        for task in replica.tasks:
            task.cancel()
        for caller in replica.callers:
            answer(caller, ActorDiedError())
        self._network.loop.settle()

    def broadcast(self, method: str, *arguments: Any) -> "_Broadcast":
        """Call a method of every replica that runs now."""
        if method == "sync":
            self.told = self.running
        calls: list[asyncio.Future[Any]] = []
        for replica in self.running:
            future = self._network.loop.create_future()
            calls.append(future)
            replica.callers.append(future)
            self._network.send(partial(self._run, replica, future, method, arguments))
        return _Broadcast(calls)

    def replay_sync(self, pick: int, answer_pick: int | None) -> None:
        """A replica is told to sync once more, and may get an old answer of the store for it."""
        idle = [each for each in self.running if not any(not task.done() for task in each.tasks)]
        if not idle:
            return
        replica = idle[pick % len(idle)]
        if answer_pick is not None and self._actor.answered:
            stored, adapter = self._actor.answered[answer_pick % len(self._actor.answered)]
            record = stored.record
            replica.replayed = Policy(
                version=record.version,
                adapter=adapter,
                scaling=record.scaling,
                checksum=record.checksum,
                number=stored.number,
            )
        self._run(replica, self._network.loop.create_future(), "sync", ())

    async def _join(self, replica: Replica) -> None:
        floor = self._actor.store.current().number
        try:
            follower = await PolicyFollower.follow(
                replica.engine, partial(self._fetch, replica), replica.name
            )
        except Exception as error:
            self._wrong(f"{replica.name} could not join: {error!r}")
            return
        replica.follower = follower
        current = self._actor.store.current()
        served = follower.policy()
        if current.number == floor and served.checksum != current.record.checksum:
            self._wrong(f"{replica.name} joined with {served.version}, not {current.record}")

    async def _fetch(self, replica: Replica) -> Policy:
        if replica.replayed is not None:
            policy, replica.replayed = replica.replayed, None
            return policy
        return await fetch_policy("run", TIMEOUT_S)

    def _generate(self, request: GenerateRequest) -> asyncio.Future[Any]:
        future = self._network.loop.create_future()

        def arrive() -> None:
            replica = self.running[self._network.num_delivered % len(self.running)]
            replica.callers.append(future)
            self._run(replica, future, "generate", (request,))

        self._network.send(arrive, lambda: bool(self.running))
        return future

    def _run(
        self, replica: Replica, future: asyncio.Future[Any], method: str, arguments: tuple[Any, ...]
    ) -> None:
        if not replica.process.is_alive:
            return

        async def call() -> None:
            try:
                value = await getattr(replica.follower, method)(*arguments)
            except EagRlError as error:
                value = task_error(error)
            except Exception as error:
                self._wrong(f"{method} of {replica.name} failed: {error!r}")
                return
            self._check(replica, value, arguments)
            self._network.send(partial(answer, future, value))

        replica.tasks.append(self._network.start(call()))

    def _check(self, replica: Replica, value: Any, arguments: tuple[Any, ...]) -> None:
        engine = replica.engine
        if isinstance(value, Acknowledgement) and value.checksum != engine.checksum:
            self._wrong(f"{replica.name} acknowledged {value.version}, serves {engine.version}")
        if isinstance(value, list):
            (request,) = arguments
            for completion in value:
                if not completion.policy_version.satisfies(request.least):
                    self._wrong(f"{request.least} was answered by {completion.policy_version}")


@dataclass
class _Broadcast:
    calls: list[asyncio.Future[Any]]

    async def results_async(self) -> list[Any]:
        return list(await asyncio.gather(*self.calls))
