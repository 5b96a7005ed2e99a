"""HTTP endpoint on Ray Serve: the expert's attention for one patient."""

import datetime
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from ehr.catalogue import AGE_AND_SEX, KNOWN_FEATURES, Feature
from ehr.cohort import PatientCase, Sex
from ehr.errors import DataError, ServiceError
from services.applications import (
    delete_application,
    deploy_application,
    http_application,
    wait_for_application,
)
from services.clients import ExpertClient

if TYPE_CHECKING:
    from services.expert import ExpertAnswer

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


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class VisitBody(_Body):
    """One visit: when, and what was measured."""

    day: float | None = Field(default=None, ge=0)
    """Days since the first visit; or give `date`."""
    date: datetime.date | None = None
    """Date of the visit; or give `day`."""
    values: dict[str, float | str | None]
    """Raw values by feature name; categories by code or word; leave out what was not measured."""


class PatientBody(_Body):
    """One patient's record."""

    patient_id: str = "anonymous"
    """Name of the patient in the cohort, or anything."""
    sex: Sex = Sex.UNKNOWN
    """Sex as recorded."""
    age: float | None = Field(default=None, ge=0, le=130)
    """Years at the first visit."""
    visits: list[VisitBody] = Field(min_length=1, max_length=500)
    """Visits in time order."""
    data_sha256: str | None = None
    """Hash of the cohort that this record was taken from unchanged; with the expert's own hash a
    cohort patient is answered from the stored, out-of-fold salience."""


class SalientFeature(_Body):
    """A feature and its share of the expert's attention (of `expert.salience`, as configured)."""

    feature: str
    attention: float


class AttentionReply(_Body):
    """The expert's opinion of one patient."""

    patient_id: str
    risk: float
    """Probability of the run's outcome."""
    attention: dict[str, float]
    """Share of every feature, `Age & Sex` included; sums to 1."""
    salient: list[SalientFeature]
    """The features that the language model is taught to attend to, heaviest first."""
    source: str
    """`stored`: out-of-fold, from the run's salience table; `computed`: all members, now."""
    model_sha256: str
    """Hash of the expert's parameters."""
    data_sha256: str
    """Hash of the cohort that the expert was trained on."""


def case_from_body(body: PatientBody, features: Sequence[Feature]) -> PatientCase:
    """The record as the expert reads it.

    Raises:
        DataError: if a feature, a category or the times of the visits cannot be understood.
    """
    columns = {name.casefold(): i for i, f in enumerate(features) for name in (f.name, *f.aliases)}
    values = np.full((len(body.visits), len(features)), np.nan)
    for row, visit in enumerate(body.visits):
        for name, value in visit.values.items():
            column = columns.get(" ".join(name.split()).casefold())
            if column is None:
                raise DataError(_unknown_feature(name, features))
            if value is not None:
                values[row, column] = _number(features[column], value)
    return PatientCase(
        patient_id=body.patient_id,
        sex=body.sex,
        age=body.age,
        visit_labels=tuple(str(index + 1) for index in range(len(body.visits))),
        visit_days=_days(body.visits),
        values=values,
    )


def reply_from_answer(patient_id: str, answer: "ExpertAnswer") -> AttentionReply:
    """What the endpoint sends back."""
    opinion = answer.opinion
    return AttentionReply(
        patient_id=patient_id,
        risk=opinion.risk,
        attention=opinion.attention,
        salient=[
            SalientFeature(feature=name, attention=opinion.attention[name])
            for name in opinion.salient
        ],
        source=answer.source,
        model_sha256=answer.model_sha256,
        data_sha256=answer.data_sha256,
    )


def features_by_name(names: Sequence[str]) -> tuple[Feature, ...]:
    """Catalogue entries of an expert's columns; a column the catalogue lacks is plain numeric."""
    catalogue = {feature.name: feature for feature in KNOWN_FEATURES}
    return tuple(catalogue.get(name, Feature(name=name)) for name in names)


def _number(feature: Feature, value: float | str) -> float:
    if isinstance(value, str):
        words = {word.casefold(): code for code, word in feature.categories}
        if value.strip().casefold() not in words:
            allowed = ", ".join(repr(word) for _, word in feature.categories) or "a number"
            raise DataError(f"{feature.name!r} must be {allowed}, got {value!r}")
        return words[value.strip().casefold()]
    if not np.isfinite(value):
        raise DataError(f"{feature.name!r} must be a finite number or null, got {value!r}")
    return float(value)


def _days(visits: Sequence[VisitBody]) -> tuple[float, ...]:
    dates = [visit.date for visit in visits if visit.date is not None]
    days = [visit.day for visit in visits if visit.day is not None]
    if len(dates) == len(visits) and not days:
        found = [float((each - dates[0]).days) for each in dates]
    elif len(days) == len(visits) and not dates:
        found = days
    else:
        raise DataError("every visit must have a `day`, or every visit a `date`; give one of them")
    if any(later < earlier for earlier, later in pairwise(found)):
        raise DataError("visits must be in time order; sort them by day or date")
    return tuple(each - found[0] for each in found)


def _unknown_feature(name: str, features: Sequence[Feature]) -> str:
    known = [feature.name for feature in features]
    folded = {each.casefold(): each for each in known}
    close = [folded[each] for each in get_close_matches(name.casefold(), folded, n=3, cutoff=0.3)]
    if name.casefold() in ("age", "sex", "gender", AGE_AND_SEX.casefold()):
        return f"{name!r} is not a value of a visit; give `age` and `sex` beside `visits`"
    nearest = ", ".join(repr(each) for each in close or known[:5])
    return f"unknown feature {name!r}; nearest names: {nearest} ({len(known)} features in all)"


@serve.ingress(app)
class HttpApp:
    """Serve ingress of one run."""

    def __init__(self, run_id: str, timeout_s: float) -> None:
        self._run_id = run_id
        self._expert = ExpertClient(run_id, timeout_s)
        self._probe = ExpertClient(run_id, _HEALTH_TIMEOUT_S)
        self._features: tuple[Feature, ...] = ()

    @app.post("/v1/expert/attention")
    async def attention(self, body: PatientBody) -> AttentionReply:
        """Risk, attention over all features, and the most salient ones, for one patient."""
        try:
            if not self._features:
                self._features = features_by_name(await self._expert.feature_names())
            case = case_from_body(body, self._features)
            answer = await self._expert.opinion(case, body.data_sha256)
        except DataError as error:
            raise HTTPException(status_code=422, detail=str(error)) from error
        except ServiceError as error:
            raise HTTPException(status_code=503, detail=str(error)) from error
        return reply_from_answer(body.patient_id, answer)

    @app.get("/healthz")
    async def health(self) -> dict[str, str]:
        """Whether the expert answers."""
        try:
            await self._probe.feature_names()
        except ServiceError as error:
            raise HTTPException(status_code=503, detail=str(error)) from error
        return {"status": "ok", "run": self._run_id}


def start_http_app(run_id: str, route_prefix: str, timeout_s: float) -> None:
    """Put a run's expert behind HTTP; `cluster.start_serve` has opened the port.

    Args:
        run_id: whose expert.
        route_prefix: "/" on a Ray of one's own, "/RUN" on a shared cluster.
        timeout_s: budget of one request.
    """
    delete_application(http_application(run_id))
    deployment = serve.deployment(
        name="HttpApp", max_ongoing_requests=64, ray_actor_options={"num_cpus": _CPUS}
    )(HttpApp)
    application = deployment.bind(run_id, timeout_s)
    deploy_application(application, http_application(run_id), route_prefix=route_prefix)
    wait_for_application(http_application(run_id), _START_TIMEOUT_S)


def stop_http_app(run_id: str) -> None:
    """End a run's HTTP application."""
    delete_application(http_application(run_id))
