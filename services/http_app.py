"""HTTP endpoint on Ray Serve: the expert's attention for one patient."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from ray import serve

from ehr.catalogue import BENCHMARK_17, KNOWN_FEATURES, PHYSIONET2012, TJH_LABS, Feature
from ehr.errors import DataError, ServiceError
from services.applications import (
    delete_application,
    deploy_application,
    http_application,
    wait_for_application,
)
from services.clients import ExpertClient
from services.patient_body import Adjustment, Body, PatientBody, adjustments, case_from_body
from services.strict_json import StrictRoute, refuse

if TYPE_CHECKING:
    from services.expert import ExpertAnswer

logger = logging.getLogger(__name__)

_HEALTH_TIMEOUT_S = 5.0
_START_TIMEOUT_S = 120.0
_CPUS = 0.1
"""Logical CPUs of the endpoint: it checks a body and forwards it."""

app = FastAPI(
    title="EAG-RL expert",
    version="1",
    description=(
        "Risk and feature attention of the run's EHR expert (a ConCare ensemble) for one patient. "
        "Research only, not for clinical use."
    ),
)
app.router.route_class = StrictRoute
app.add_exception_handler(RequestValidationError, refuse)


class SalientFeature(Body):
    """A feature and its share of the expert's attention (of `expert.salience`, as configured)."""

    feature: str
    attention: float


class AttentionReply(Body):
    """The expert's opinion of one patient."""

    patient_id: str
    risk: float
    """Probability of the run's outcome."""
    attention: dict[str, float]
    """Share of every feature, `Age & Sex` included; sums to 1."""
    salient: list[SalientFeature]
    """The features that the language model is taught to attend to, heaviest first."""
    adjusted: list[Adjustment]
    """Values that were not taken as they were sent: implausible ones are missing, and what records
    write in another form is converted, as in the run's own data."""
    source: str
    """`stored`: out-of-fold, from the run's salience table; `computed`: all members, now, from what
    was sent. Risk and attention have the same source."""
    model_sha256: str
    """Hash of the expert's parameters."""
    data_sha256: str
    """Hash of the cohort that the expert was trained on."""


def reply_from_answer(
    patient_id: str, answer: "ExpertAnswer", adjusted: Sequence[Adjustment] = ()
) -> AttentionReply:
    """What the endpoint sends back.

    Raises:
        ServiceError: if the answer has numbers that are not finite.
    """
    answer.check()
    opinion = answer.opinion
    return AttentionReply(
        patient_id=patient_id,
        risk=opinion.risk,
        attention=opinion.attention,
        salient=[
            SalientFeature(feature=name, attention=opinion.attention[name])
            for name in opinion.salient
        ],
        adjusted=list(adjusted),
        source=answer.source,
        model_sha256=answer.model_sha256,
        data_sha256=answer.data_sha256,
    )


def features_by_name(names: Sequence[str]) -> tuple[Feature, ...]:
    """Catalogue entries of an expert's columns; a column the catalogue lacks is plain numeric.

    Sources share names with other plausible ranges: the first source that has all names counts.
    """
    for source in (BENCHMARK_17, TJH_LABS, PHYSIONET2012, KNOWN_FEATURES):
        catalogue = {feature.name: feature for feature in source}
        if catalogue.keys() >= set(names):
            break
    return tuple(catalogue.get(name, Feature(name=name)) for name in names)


@serve.ingress(app)
class HttpApp:
    """Serve ingress of one run."""

    def __init__(self, run_id: str, timeout_s: float, features: Sequence[Feature] = ()) -> None:
        self._run_id = run_id
        self._expert = ExpertClient(run_id, timeout_s)
        self._probe = ExpertClient(run_id, _HEALTH_TIMEOUT_S)
        self._features = tuple(features)

    @app.post("/v1/expert/attention")
    async def attention(self, body: PatientBody) -> AttentionReply:
        """Risk, attention over all features, and the most salient ones, for one patient."""
        try:
            if not self._features:
                self._features = features_by_name(await self._expert.feature_names())
            case = case_from_body(body, self._features)
            answer = await self._expert.opinion(case, body.data_sha256)
            return reply_from_answer(body.patient_id, answer, adjustments(body, self._features))
        except DataError as error:
            raise HTTPException(status_code=422, detail=str(error)) from error
        except ServiceError as error:
            logger.error("no answer run=%s error=%s", self._run_id, error)
            raise HTTPException(status_code=503, detail=str(error)) from error

    @app.get("/healthz")
    async def health(self) -> dict[str, str]:
        """Whether the expert answers."""
        try:
            await self._probe.feature_names()
        except ServiceError as error:
            raise HTTPException(status_code=503, detail=str(error)) from error
        return {"status": "ok", "run": self._run_id}


def start_http_app(
    run_id: str, route_prefix: str, timeout_s: float, features: Sequence[Feature] = ()
) -> None:
    """Put a run's expert behind HTTP; `cluster.start_serve` has opened the port.

    Args:
        run_id: whose expert.
        route_prefix: "/" on a Ray of one's own, "/RUN" on a shared cluster.
        timeout_s: budget of one request.
        features: of the run's cohort, which say how its values are read; by default those of the
            catalogue with the names of the expert's columns.
    """
    delete_application(http_application(run_id))
    deployment = serve.deployment(
        name="HttpApp", max_ongoing_requests=64, ray_actor_options={"num_cpus": _CPUS}
    )(HttpApp)
    application = deployment.bind(run_id, timeout_s, tuple(features))
    deploy_application(application, http_application(run_id), route_prefix=route_prefix)
    wait_for_application(http_application(run_id), _START_TIMEOUT_S)


def stop_http_app(run_id: str) -> None:
    """End a run's HTTP application."""
    delete_application(http_application(run_id))
