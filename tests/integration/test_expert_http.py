"""The expert behind real Ray Serve, by handle and by HTTP."""

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from ehr.catalogue import Feature
from ehr.cohorts.cohort import cohort_hash
from ehr.errors import ResourceError
from ehr.expert.ensemble import save_ensembles
from ehr.salience.table import salience_table
from services.clients import ExpertClient
from services.cluster import Cluster, start_serve
from services.config import ServeSection
from services.expert import start_expert, stop_expert
from services.http_app import start_http_app, stop_http_app
from tests.expert_cohort import tiny_case
from tests.unit.services.test_expert import COHORT, train

TIMEOUT_S = 120.0
PATIENT = COHORT.splits["train"][0]
# The cohort's heart rates and weights are charted; its glucose is in no unit of the catalogue.
FEATURES = tuple(
    Feature(name=feature.name, plausible=(10, 300) if feature.name == "Heart Rate" else None)
    for feature in COHORT.features
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    ensemble = train()
    save_ensembles([ensemble], folder / "expert" / "checkpoint")
    salience_table(COHORT, [ensemble]).to_parquet(folder / "expert" / "salience.parquet")
    return folder


@pytest.fixture(scope="module")
def endpoint(run_dir: Path, local_ray: Cluster, http_port: int) -> Iterator[str]:
    start_expert("clinic", run_dir, TIMEOUT_S)
    start_http_app("clinic", "/clinic", TIMEOUT_S, FEATURES)
    yield f"http://127.0.0.1:{http_port}/clinic"
    stop_http_app("clinic")
    stop_expert("clinic")


def record(**values: float) -> dict[str, object]:
    return {
        "patient_id": "q1",
        "sex": "female",
        "age": 61,
        "visits": [{"date": "2020-02-01", "values": values}, {"date": "2020-02-03", "values": {}}],
    }


async def test_a_cohort_patient_is_answered_from_the_stored_table(endpoint: str) -> None:
    client = ExpertClient("clinic", TIMEOUT_S)

    stored = await client.opinion(COHORT.cases[PATIENT], cohort_hash(COHORT))
    computed = await client.opinion(tiny_case("q1", seed=3))

    assert (stored.source, computed.source) == ("stored", "computed")
    assert len(stored.opinion.salient) == 2


def test_http_answers_for_one_patient(endpoint: str) -> None:
    reply = httpx.post(
        f"{endpoint}/v1/expert/attention", json=record(Glucose=6.1, pH=7.3), timeout=TIMEOUT_S
    )

    answer = reply.json()
    assert reply.status_code == 200
    assert 0 <= answer["risk"] <= 1
    assert sum(answer["attention"].values()) == pytest.approx(1.0)
    assert [each["feature"] for each in answer["salient"]] != []
    assert answer["source"] == "computed"
    assert answer["data_sha256"] == cohort_hash(COHORT)


def test_a_cohorts_own_record_is_stored_and_a_changed_one_computed(endpoint: str) -> None:
    case = COHORT.cases[PATIENT]
    body = {
        "patient_id": PATIENT,
        "sex": str(case.sex),
        "age": case.age,
        "data_sha256": cohort_hash(COHORT),
        "visits": [
            {
                "day": day,
                "values": {
                    feature.name: None if np.isnan(value) else float(value)
                    for feature, value in zip(FEATURES, row, strict=True)
                },
            }
            for day, row in zip(case.visit_days, case.values, strict=True)
        ],
    }
    url = f"{endpoint}/v1/expert/attention"

    own = httpx.post(url, json=body, timeout=TIMEOUT_S).json()
    body["visits"][-1]["values"]["Heart Rate"] = -1
    changed = httpx.post(url, json=body, timeout=TIMEOUT_S).json()

    assert (own["source"], own["adjusted"]) == ("stored", [])
    assert changed["source"] == "computed"
    assert [(each["feature"], each["became"]) for each in changed["adjusted"]] == [
        ("Heart Rate", None)
    ]


def test_a_number_that_is_none_is_a_422_behind_serve_too(endpoint: str) -> None:
    reply = httpx.post(
        f"{endpoint}/v1/expert/attention",
        content='{"age":NaN,"patient_id":"\\ud800","visits":[{"day":0,"values":{"pH":7.2}}]}',
        headers={"content-type": "application/json"},
        timeout=TIMEOUT_S,
    )

    assert reply.status_code == 422
    assert [each["loc"][1] for each in reply.json()["detail"]] == ["patient_id", "age"]


def test_an_unknown_feature_is_a_422_with_the_nearest_names(endpoint: str) -> None:
    reply = httpx.post(
        f"{endpoint}/v1/expert/attention", json=record(Glucos=6.1), timeout=TIMEOUT_S
    )

    assert reply.status_code == 422
    assert "nearest names: 'Glucose'" in reply.json()["detail"]


def test_the_endpoint_describes_itself_and_says_that_it_is_well(endpoint: str) -> None:
    docs = httpx.get(f"{endpoint}/docs", timeout=TIMEOUT_S)
    schema = httpx.get(f"{endpoint}/openapi.json", timeout=TIMEOUT_S).json()
    health = httpx.get(f"{endpoint}/healthz", timeout=TIMEOUT_S).json()

    assert docs.status_code == 200
    assert "/v1/expert/attention" in schema["paths"]
    assert health == {"status": "ok", "run": "clinic"}


def test_a_port_that_is_taken_is_refused_before_serve_starts(
    local_ray: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.cluster._serve_runs", lambda: False)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        taken = ServeSection(port=server.getsockname()[1])

        with pytest.raises(ResourceError, match=r"serve.port=PORT"):
            start_serve(taken, listen=True, shared=False)
