"""Retries of the clients: within a budget, and for dead replicas only."""

import asyncio
import pickle
from collections.abc import Callable

import grpc
import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from ehr.errors import DataError, ServiceError
from services import clients
from services.clients import ExpertClient, GeneratorClient, routing_session
from services.types import BASE_POLICY, GenerateRequest, Sampling


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_FIRST_PAUSE_S", 0.001)


def application(timeout_s: float = 5.0) -> clients._Application:
    return clients._Application("generator-x", timeout_s)


class Attempts:
    """Fails as told, then answers."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.count = 0

    async def __call__(self) -> str:
        self.count += 1
        if self.failures:
            raise self.failures.pop(0)
        return "answer"


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("generate", "traceback", cause).as_instanceof_cause()


async def test_a_dead_replica_is_asked_again() -> None:
    attempt = Attempts(ActorDiedError(), ActorDiedError())

    assert await application().retried(attempt) == "answer"
    assert attempt.count == 3


async def test_an_error_of_ours_comes_back_as_it_was_raised_and_is_not_retried() -> None:
    attempt = Attempts(task_error(DataError("no visit")))

    with pytest.raises(DataError, match="no visit") as caught:
        await application().retried(attempt)

    assert type(caught.value) is DataError
    assert attempt.count == 1


async def test_a_foreign_error_in_a_replica_is_a_service_error() -> None:
    with pytest.raises(ServiceError, match=r"generator-x.*KeyError"):
        await application().retried(Attempts(task_error(KeyError("weights"))))


def broken_call(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, nothing, nothing, "stream removed")


async def test_a_broken_connection_is_tried_again_and_an_unreadable_failure_is_not() -> None:
    lost, unreadable = grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN
    attempt = Attempts(broken_call(lost))

    assert await application().retried(attempt) == "answer"
    assert attempt.count == 2
    with pytest.raises(ServiceError, match="stream removed"):
        await application().retried(Attempts(broken_call(unreadable)))


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(DataError("no visit"), DataError), (KeyError("weights"), ServiceError)],
)
async def test_an_error_that_arrives_unwrapped_is_treated_alike(
    raised: Exception, expected: type[Exception]
) -> None:
    attempt = Attempts(raised)

    with pytest.raises(expected) as caught:
        await application().retried(attempt)

    assert type(caught.value) is expected
    assert attempt.count == 1


class Answers:
    """Stands for a handle whose calls end as told, one after the other."""

    def __init__(self, *ends: Callable[[], object]) -> None:
        self.ends = list(ends)

    def options(self, **_: object) -> "Answers":
        return self

    async def remote(self, request: GenerateRequest) -> object:
        return self.ends.pop(0)()


def give_up() -> None:
    raise asyncio.CancelledError


REQUEST = GenerateRequest(
    prompt_token_ids=(1,),
    sampling=Sampling(max_tokens=1, temperature=0.0),
    least=BASE_POLICY,
    session="p",
)


async def test_a_request_that_a_replica_gives_up_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = GeneratorClient("x", 5.0)
    monkeypatch.setattr(client._application, "_handle", Answers(give_up, lambda: ["answer"]))

    assert await client.generate(REQUEST) == ["answer"]


async def test_a_caller_that_is_cancelled_stays_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    client = GeneratorClient("x", 5.0)
    waiting = asyncio.Event()

    class Never:
        def options(self, **_: object) -> "Never":
            return self

        async def remote(self, request: GenerateRequest) -> None:
            waiting.set()
            await asyncio.sleep(3600)

    monkeypatch.setattr(client._application, "_handle", Never())
    call = asyncio.create_task(client.generate(REQUEST))
    await waiting.wait()

    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call


async def test_retries_end_with_the_budget() -> None:
    attempt = Attempts(*[ActorDiedError() for _ in range(100)])

    with pytest.raises(ServiceError, match="retries included"):
        await application(timeout_s=0.02).retried(attempt)

    assert attempt.count < 100


@pytest.mark.parametrize("turns", range(6))
async def test_a_call_that_is_cancelled_as_its_answer_arrives_is_cancelled(turns: int) -> None:
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def attempt() -> str:
        return await answer

    task = asyncio.create_task(application().retried(attempt))
    for _ in range(5):  # the call is on its way
        await asyncio.sleep(0)
    answer.set_result("answer")
    for _ in range(turns):
        await asyncio.sleep(0)
    is_asked_to_end = task.cancel()  # false once the caller has the answer

    await asyncio.wait([task])
    assert task.cancelled() == is_asked_to_end


class Handle:
    """Stands for a deployment's handle: each broadcast gets the next replies."""

    def __init__(self, *replies: list[str]) -> None:
        self.replies = list(replies)

    def broadcast(self, method: str) -> "Handle":
        return self

    async def results_async(self) -> list[str]:
        return self.replies.pop(0)


async def test_a_broadcast_that_reaches_nobody_is_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = GeneratorClient("x", 5.0)
    handle = Handle([], [], ["stats of a new replica"])
    monkeypatch.setattr(client._application, "_handle", handle)

    assert await client.stats() == ["stats of a new replica"]


@pytest.mark.parametrize("client", [GeneratorClient("x", 5.0), ExpertClient("x", 5.0)])
def test_clients_pickle(client: GeneratorClient | ExpertClient) -> None:
    assert type(pickle.loads(pickle.dumps(client))) is type(client)


def test_a_patient_is_routed_under_one_name_that_only_the_key_gives() -> None:
    names = {routing_session(b"run", f"patient-{i}") for i in range(1000)}

    assert len(names) == 1000
    assert routing_session(b"run", "patient-7") in names
    assert routing_session(b"another run", "patient-7") not in names
    assert not any("patient" in name for name in names)


class GenerateHandle:
    """Stands for a deployment's handle: remembers what leaves the process."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []

    def options(self, session_id: str, **_: object) -> "GenerateHandle":
        self.session_id = session_id
        return self

    async def remote(self, request: GenerateRequest) -> list[object]:
        self.sent.append((self.session_id, request.session))
        return []


async def test_no_patient_id_leaves_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = GenerateHandle()
    request = GenerateRequest(
        prompt_token_ids=(1,),
        sampling=Sampling(max_tokens=1, temperature=0.0),
        least=BASE_POLICY,
        session="patient-7",
    )

    for client in (GeneratorClient("x", 5.0, b"key"), GeneratorClient("x", 9.0, b"key")):
        monkeypatch.setattr(client._application, "_handle", handle)
        await client.generate(request)

    assert handle.sent == [(routing_session(b"key", "patient-7"),) * 2] * 2
