"""Typed clients of the Serve applications: retries within a budget, and this project's errors."""

import asyncio
import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc
from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from ehr.cohorts.cohort import PatientCase
from ehr.errors import EagRlError, ServiceError
from services.applications import expert_application, generator_application
from services.policy_store import PolicyRecord, commit_to_store
from services.types import (
    Acknowledgement,
    Completion,
    GenerateRequest,
    GeneratorStats,
    PolicyVersion,
    RiskReading,
    RiskRequest,
    Scored,
)

if TYPE_CHECKING:
    # Answers arrive with torch behind them; who asks for none does not load it.
    from services.expert import ExpertAnswer

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
"""Pauses between retries double up to this: a replacement replica takes about a minute."""


_BY_VALUE: dict[str, Any] = {
    "_by_reference": False,
    "request_serialization": "pickle",
    "response_serialization": "pickle",
}
"""Options of a handle whose calls go to the replica's own gRPC server instead of through Ray's
objects: about half the CPU on both sides (benchmarks.search, part control)."""


class _NoReplicaError(RayServeException):
    """A broadcast reached nobody: all replicas are being replaced."""


class _ReplicaEndedError(RayServeException):
    """A replica gave up a request because it is being ended."""


class _Application:
    """A Serve application by name; the handle is looked up where it is used, so this pickles."""

    def __init__(self, name: str, timeout_s: float) -> None:
        self._name = name
        self._timeout_s = timeout_s
        self._handle: DeploymentHandle | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"_name": self._name, "_timeout_s": self._timeout_s, "_handle": None}

    def handle(self) -> DeploymentHandle:
        if self._handle is None:
            self._handle = serve.get_app_handle(self._name)
        return self._handle

    async def retried(self, attempt: Callable[[], Awaitable[Any]]) -> Any:
        """The result of `attempt`, again and again while replicas die, until the time is up."""
        deadline = time.monotonic() + self._timeout_s
        pause = _FIRST_PAUSE_S
        while True:
            try:
                # Not wait_for: in Python 3.11 it returns an answer that has come when cancelled.
                async with asyncio.timeout(max(deadline - time.monotonic(), 0.001)):
                    return await attempt()
            except (RayError, RayServeException, grpc.RpcError) as error:
                if _is_own_failure(error):
                    raise _own_error(self._name, error) from error
                if time.monotonic() + pause > deadline:
                    raise ServiceError(self._gave_up(repr(error))) from error
            except TimeoutError as error:
                raise ServiceError(self._gave_up("no answer in time")) from error
            except EagRlError:
                raise
            except Exception as error:  # what a replica raised comes back as it is through gRPC
                raise _own_error(self._name, error) from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _gave_up(self, reason: str) -> str:
        return (
            f"{self._name!r} did not answer within {self._timeout_s:.0f} s, retries included "
            f"({reason[:300]}); see its log in Ray's session folder under logs/serve, or raise "
            "generator.request_timeout_s"
        )


class GeneratorClient:
    """A run's generator; implements `services.types.Generator`. Cheap, and pickles."""

    def __init__(self, run_id: str, timeout_s: float, routing_key: bytes | None = None) -> None:
        """A client of one run.

        Args:
            run_id: whose generator.
            timeout_s: budget of one call, retries included (`generator.request_timeout_s`).
            routing_key: secret that hides patients in what routers see, up to 64 bytes; clients
                with the same one send a patient to the same replica. None = one of its own.
        """
        self._run_id = run_id
        self._timeout_s = timeout_s
        self._routing_key = secrets.token_bytes(16) if routing_key is None else routing_key
        self._application = _Application(generator_application(run_id), timeout_s)

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """The completions of a request, in sample order.

        `request.session`, a patient's id, leaves this process as a keyed hash only.

        Raises:
            StalePolicyError: if the run does not serve a policy that the request accepts.
            ServiceError: if no replica answers in time.
        """
        return await self._asked("generate", request)

    async def read_risk(self, request: RiskRequest) -> RiskReading:
        """How likely each of the hundred risks is to be written next.

        Raises:
            ModelError: if the engine does not know the whole distribution; says what to set.
            StalePolicyError: if the run does not serve a policy that the request accepts.
            ServiceError: if no replica answers in time.
        """
        return await self._asked("read_risk", request)

    async def score(
        self,
        prompt_token_ids: tuple[int, ...],
        response_token_ids: tuple[int, ...],
        least: PolicyVersion,
    ) -> list[Scored]:
        """Log-probabilities of a response by every replica: the canary of a sync."""
        return await self._broadcast("score", prompt_token_ids, response_token_ids, least)

    async def stats(self) -> list[GeneratorStats]:
        """Counters of every replica since it started."""
        return await self._broadcast("stats")

    async def publish(self, record: PolicyRecord) -> list[Acknowledgement]:
        """Make a committed policy the current one, and have every replica load it now.

        Returns:
            What each replica serves, all of them this policy.

        Raises:
            StalePolicyError: if the store refuses it, because it goes back or changes a version.
            ServiceError: if the store or a replica does not answer in time.
        """
        await commit_to_store(self._run_id, record, self._timeout_s)
        replies: list[Acknowledgement] = await self._broadcast("sync")
        wanted = (record.version, record.checksum)
        others = [each for each in replies if (each.version, each.checksum) != wanted]
        if others:
            raise ServiceError(
                f"expected every replica to serve {record.version} after the sync, got "
                f"{others[:5]}; is something else publishing under this run's name?"
            )
        return replies

    async def _asked(self, method: str, request: GenerateRequest | RiskRequest) -> Any:
        session = routing_session(self._routing_key, request.session)
        hidden = replace(request, session=session)

        async def attempt() -> Any:
            handle = self._application.handle().options(
                method_name=method, session_id=session, **_BY_VALUE
            )
            return await _unless_ended(handle.remote(hidden))

        return await self._application.retried(attempt)

    async def _broadcast(self, method: str, *arguments: object) -> list[Any]:
        async def attempt() -> list[Any]:
            handle = self._application.handle()
            replies = await handle.broadcast(method, *arguments).results_async()
            if not replies:
                raise _NoReplicaError("no replica is running")
            return replies

        return await self._application.retried(attempt)


def routing_session(key: bytes, patient_id: str) -> str:
    """The name under which a patient's requests are routed: a keyed hash of its id.

    It stands in headers, logs and metrics of Serve. Without the key nobody can tell whose it is,
    not even by trying all ids. It decides which prefix cache is warm, and nothing else.
    """
    return hashlib.blake2b(patient_id.encode(), key=key, digest_size=12).hexdigest()


class ExpertClient:
    """A run's expert. Cheap, and pickles."""

    def __init__(self, run_id: str, timeout_s: float) -> None:
        """A client of one run; `timeout_s` is the budget of one call, retries included."""
        self._application = _Application(expert_application(run_id), timeout_s)

    async def opinion(self, case: PatientCase, data_sha256: str | None = None) -> "ExpertAnswer":
        """The expert's opinion of a case.

        Args:
            case: the patient.
            data_sha256: hash of the cohort that the case was taken from unchanged; with the
                expert's own and a record as the cohort has it, the stored out-of-fold salience
                answers.

        Raises:
            DataError: if the case does not fit the expert.
            ServiceError: if the expert does not answer in time, or its numbers are not finite.
        """

        async def attempt() -> "ExpertAnswer":
            return await self._application.handle().opinion.remote(case, data_sha256)

        return await self._application.retried(attempt)

    async def feature_names(self) -> tuple[str, ...]:
        """Columns that a case must have, in order."""

        async def attempt() -> tuple[str, ...]:
            return await self._application.handle().feature_names.remote()

        return await self._application.retried(attempt)


async def _unless_ended(answer: Awaitable[Any]) -> Any:
    """The answer; a replica's own cancellation must not pass for one of this task."""
    try:
        return await answer
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise _ReplicaEndedError("the replica gave the request up") from None


def _is_own_failure(error: Exception) -> bool:
    """Whether a replica answered, with a failure of its own."""
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code() == grpc.StatusCode.UNKNOWN
    return isinstance(error, RayTaskError) and not isinstance(error, RayActorError)


def _own_error(name: str, error: Exception) -> Exception:
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, EagRlError):
        return cause
    return ServiceError(f"{name!r} failed: {cause!r}; its log has the traceback")
