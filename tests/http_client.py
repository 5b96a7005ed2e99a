"""The HTTP endpoint in this process: its app with an expert that answers without a model."""

from collections.abc import Sequence
from contextvars import ContextVar
from types import SimpleNamespace

from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from starlette.types import Receive, Scope, Send

from ehr.catalogue import AGE_AND_SEX, Feature
from ehr.cohorts.cohort import PatientCase
from ehr.expert.ensemble import Opinion
from services.expert import ExpertAnswer
from services.http_app import app
from tests.typed import known

PATH = "/v1/expert/attention"


class RecordingExpert:
    """Answers any case with one risk, and keeps what it was asked."""

    def __init__(self, risk: float = 0.25, score: float = 0.5) -> None:
        self.risk = risk
        self.score = score
        self.asked: list[tuple[PatientCase, str | None]] = []

    async def opinion(self, case: PatientCase, data_sha256: str | None = None) -> ExpertAnswer:
        self.asked.append((case, data_sha256))
        return ExpertAnswer(
            opinion=Opinion(
                risk=self.risk,
                attention={"pH": self.score, AGE_AND_SEX: 1 - self.score},
                salient=("pH",),
            ),
            source="computed",
            model_sha256="m",
            data_sha256="d",
        )


_REPLICA: ContextVar[SimpleNamespace] = ContextVar("replica")


async def _get_replica() -> SimpleNamespace:
    return _REPLICA.get()


_route = next(route for route in app.routes if isinstance(route, APIRoute) and route.path == PATH)
# What Serve injects as `self`.
app.dependency_overrides[known(_route.dependant.dependencies[0].call)] = _get_replica


def client_of(expert: RecordingExpert, features: Sequence[Feature]) -> TestClient:
    """A client of the app as a replica with this expert would serve it.

    What the app raises past its handlers is a 500 here, as it is behind Ray Serve.
    """
    replica = SimpleNamespace(_run_id="run", _expert=expert, _probe=expert, _features=features)

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        _REPLICA.set(replica)
        await app(scope, receive, send)

    return TestClient(served, raise_server_exceptions=False)
