"""Requests to the HTTP endpoint: what is taken, what is said about it, and what is refused."""

import json
import logging
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from ehr.catalogue import BENCHMARK_17, PHYSIONET2012, PHYSIONET2012_BENCHMARK, TJH_LABS
from ehr.cohorts.cohort import Cohort, PatientCase, record_hash
from ehr.cohorts.synthetic import generate
from ehr.config import CohortSection
from services.http_app import features_by_name
from services.strict_json import MAX_BODY_BYTES
from tests.http_client import PATH, RecordingExpert, client_of

JSON = {"content-type": "application/json"}
EXPERT = RecordingExpert()
CLIENT = client_of(EXPERT, BENCHMARK_17)


@pytest.fixture(scope="module", autouse=True)
def _one_event_loop():
    with CLIENT:
        yield


def post(body: object, client: TestClient = CLIENT):
    """The reply to a body, which may hold what strict JSON does not know."""
    text = body if isinstance(body, str | bytes) else json.dumps(body)
    return client.post(PATH, content=text, headers=JSON)


def visit(day: float = 0, **values: object) -> dict[str, object]:
    return {"day": day, "values": values}


def seen(name: str, features=BENCHMARK_17) -> list[float]:
    column = [feature.name for feature in features].index(name)
    return EXPERT.asked[-1][0].values[:, column].tolist()


# What the reader of a record does not take as it stands


def test_implausible_values_are_read_as_the_record_is_and_said():
    values = {"Temperature": 98.6, "pH": 735, "Fraction inspired oxygen": 0.4, "Heart Rate": -1}

    reply = post({"sex": "female", "age": 40, "visits": [{"day": 0, "values": values}]})

    assert reply.status_code == 200
    assert [
        (each["feature"], each["visit"], each["value"], each["became"])
        for each in reply.json()["adjusted"]
    ] == [
        ("Temperature", 1, 98.6, None),
        ("pH", 1, 735, 7.35),
        ("Fraction inspired oxygen", 1, 0.4, 40),
        ("Heart Rate", 1, -1, None),
    ]
    assert "25 to 45 C" in reply.json()["adjusted"][0]["reason"]
    assert (seen("pH"), seen("Fraction inspired oxygen")) == ([7.35], [40])
    assert all(math.isnan(seen(name)[0]) for name in ("Temperature", "Heart Rate"))


@pytest.mark.parametrize(
    ("name", "value", "became"),
    [
        ("pH", 73.5, 7.35),
        ("pH", 0.735, None),
        ("pH", 65, 6.5),
        ("pH", 14, None),
        ("Fraction inspired oxygen", 1, 100),
        ("Fraction inspired oxygen", 0.21, 21),
        ("Fraction inspired oxygen", 0.05, None),
        ("Fraction inspired oxygen", 2, None),
        ("Height", 1.75, None),
        ("Glucose", 0, None),
        ("Systolic blood pressure", 1e300, None),
        ("Glasgow coma scale total", 16, None),
    ],
)
def test_each_adjusted_value_is_what_the_expert_saw(name: str, value: float, became: float | None):
    reply = post({"visits": [visit(0, **{name: value})]}).json()

    assert [each["became"] for each in reply["adjusted"]] == [became]
    assert seen(name) == [became] if became is not None else math.isnan(seen(name)[0])


@pytest.mark.parametrize(
    ("name", "value"),
    [("pH", 7.35), ("pH", 6.5), ("Fraction inspired oxygen", 21), ("Heart Rate", 300)],
)
def test_plausible_values_are_taken_as_they_stand(name: str, value: float):
    assert post({"visits": [visit(0, **{name: value})]}).json()["adjusted"] == []
    assert seen(name) == [value]


@pytest.mark.parametrize(
    ("features", "age", "became"),
    [
        (PHYSIONET2012, 14, None),
        (PHYSIONET2012_BENCHMARK, 5, None),
        (PHYSIONET2012, 15, 15),
        (TJH_LABS, 5, 5),
        (BENCHMARK_17, 5, 5),
    ],
)
def test_an_age_is_read_as_the_reader_of_the_source_does(features, age, became):
    expert = RecordingExpert()

    reply = post({"age": age, "visits": [visit(0)]}, client_of(expert, features)).json()

    assert expert.asked[-1][0].age == became
    assert [(each["feature"], each["value"], each["became"]) for each in reply["adjusted"]] == (
        [("Age", age, None)] if became is None else []
    )


def test_a_tongji_record_keeps_what_is_high_and_loses_what_is_negative():
    client = client_of(EXPERT, TJH_LABS)
    sent = {"White blood cell count": 1726, "glucose": -1, "PH value": 735}

    reply = post({"visits": [visit(0, **sent)]}, client).json()

    assert [(each["feature"], each["became"]) for each in reply["adjusted"]] == [("glucose", None)]
    assert seen("White blood cell count", TJH_LABS) == [1726]


def test_the_range_is_that_of_the_source_which_has_all_the_names():
    for source in (BENCHMARK_17, TJH_LABS, PHYSIONET2012):
        assert features_by_name([feature.name for feature in source]) == source


# What is refused, by the name of its field


def with_value(value: str) -> str:
    return '{"visits":[{"day":0,"values":{"Heart Rate":' + value + "}}]}"


def with_field(name: str, value: str) -> str:
    return '{"' + name + '":' + value + ',"visits":[{"day":0,"values":{"pH":7.2}}]}'


def with_visits(visits: str) -> str:
    return '{"visits":' + visits + "}"


@pytest.mark.parametrize(
    "value",
    [
        *(
            "NaN",
            "Infinity",
            "-Infinity",
            "1e400",
            "true",
            "false",
            '"7.2"',
            '""',
            "[7.2]",
            "[[1]]",
        ),
        *('{"a":1}', "9" * 320, "9" * 5000, '"\\ud800"'),
    ],
    ids=lambda value: value[:12],
)
def test_what_is_no_number_is_refused_by_the_name_of_its_feature(value: str):
    reply = post(with_value(value))

    assert reply.status_code == 422
    assert "Heart Rate" in json.dumps(reply.json(), allow_nan=False)


@pytest.mark.parametrize(
    "value",
    [
        *("NaN", "-Infinity", "1e400", "true", '"61"', '""', "[61]", '"old"', "9" * 400),
        *("-1", "-0.5", "120.5", "121", "130", "200"),
    ],
    ids=lambda value: value[:12],
)
def test_what_is_no_age_is_refused(value: str):
    reply = post(with_field("age", value))

    assert reply.status_code == 422
    assert ["body", "age"] in [each["loc"] for each in reply.json()["detail"]]


@pytest.mark.parametrize("value", ["0", "0.5", "120", "120.0"])
def test_the_ages_of_the_youngest_and_the_oldest_are_taken(value: str):
    assert post(with_field("age", value)).status_code == 200
    assert EXPERT.asked[-1][0].age == float(value)


@pytest.mark.parametrize("value", ["true", "null", "1", '"F"', '"X"', '""', "NaN", "[]"])
def test_what_is_no_sex_is_refused(value: str):
    reply = post(with_field("sex", value))

    assert reply.status_code == 422
    assert reply.json()["detail"][0]["loc"] == ["body", "sex"]


@pytest.mark.parametrize(
    "value",
    [
        *("NaN", "true", "1", "null", '""', '" "', '"a\\u0000b"', '"a\\nb"', '"\\ud800"', "[]"),
        '"' + "x" * 1_000_000 + '"',
    ],
    ids=lambda value: value[:12],
)
def test_what_is_no_name_is_refused(value: str):
    reply = post(with_field("patient_id", value))

    assert reply.status_code == 422
    assert reply.json()["detail"][0]["loc"] == ["body", "patient_id"]
    assert len(reply.content) < 1_000


@pytest.mark.parametrize(
    "value",
    [
        *(
            "86400",
            "true",
            '"86400"',
            '"2020-02-30"',
            '"20200201"',
            '"2020-W05-1"',
            '""',
            '"today"',
        ),
        *('"2020-02-01T12:00:00"', '"01.02.2020"', "1580515200.0", "NaN", '"2020-13-01"'),
    ],
)
def test_what_is_no_date_is_refused(value: str):
    reply = post(with_visits('[{"date":' + value + ',"values":{}}]'))

    assert reply.status_code == 422
    assert reply.json()["detail"][0]["loc"] == ["body", "visits", 0, "date"]


@pytest.mark.parametrize("value", ["-1", "true", '"0"', "NaN", "1e400", "1e300", '""', "[0]"])
def test_what_is_no_day_is_refused(value: str):
    reply = post(with_visits('[{"day":' + value + ',"values":{}}]'))

    assert reply.status_code == 422
    assert reply.json()["detail"][0]["loc"] == ["body", "visits", 0, "day"]


@pytest.mark.parametrize(
    ("visits", "said"),
    [
        ([], "at least 1"),
        ([visit(0)] * 501, "at most 500"),
        ([visit(1), visit(0)], "visit 2 must be later"),
        ([visit(1), visit(1)], "visit 2 must be later"),
        ([{"date": "2020-02-01", "values": {}}] * 2, "visit 2 must be later"),
        ([{"date": "0001-01-01", "values": {}}, {"date": "2020-01-01", "values": {}}], "36525"),
        ([visit(0), {"date": "2020-02-01", "values": {}}], "every visit a `date`"),
        ([{"day": 0, "date": "2020-02-01", "values": {}}], "give one of them"),
        ([{"day": 0, "hours": -5, "values": {}}], "hours"),
        ([{"values": {}}], "must have a `day`"),
        ([{"day": 0}], "values"),
        ([{"day": 0, "values": None}], "values"),
        ([{"day": 0, "values": [7.2]}], "values"),
        ([[]], "visits"),
        (None, "visits"),
        ({}, "visits"),
        ([visit(0, HR=80, **{"Heart Rate": 90})], "'Heart Rate' twice"),
        ([visit(0, **{"heart rate": 80, "Heart  Rate": 80})], "'Heart Rate' twice"),
        ([visit(0, **{"Capillary refill rate": 7})], "'Capillary refill rate' must be 0 or"),
        ([visit(0, **{"Capillary refill rate": 0.5})], "'Capillary refill rate'"),
        ([visit(0, **{"Capillary refill rate": True})], "Capillary refill rate"),
        ([visit(0, **{"Glasgow coma scale eye opening": 0})], "eye opening"),
        ([visit(0, **{"Glasgow coma scale eye opening": "awake"})], "3 or 'To Speech'"),
        ([visit(0, **{"Pre-albumin": 3})], "unknown feature 'Pre-albumin'"),
        ([visit(0, **{"x" * 100_000: 3})], "100000 characters"),
        ([visit(0, **{"": 3})], "unknown feature ''"),
        ([visit(0, Sex="male")], "beside `visits`"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_visits_that_cannot_be_understood_are_refused_and_said(visits: object, said: str):
    reply = post({"visits": visits})

    assert reply.status_code == 422
    assert said in reply.text.replace('\\"', '"')
    assert len(reply.content) < 10_000


def test_ten_thousand_visits_are_refused_before_they_are_looked_at():
    reply = post({"visits": [visit(day, pH="x") for day in range(10_000)]})

    assert reply.status_code == 422
    assert len(reply.json()["detail"]) <= 20


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "body"),
        (b"not JSON", "must be JSON"),
        (b'{"visits":', "must be JSON"),
        (b"[]", "body"),
        (b"null", "body"),
        (b'"text"', "body"),
        (b'{"age":40,"age":41,"visits":[{"day":0,"values":{}}]}', "stands twice"),
        (b'{"visits":[{"day":0,"values":{"pH":7.1,"pH":7.3}}]}', "stands twice"),
        (b'{"patient_id":"\xff","visits":[{"day":0,"values":{}}]}', "UTF-8"),
        (b'\xff\xfe{"a":1}', "UTF-8"),
        (b'{"age":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
        (b'{"\\ud800":1,"visits":[{"day":0,"values":{}}]}', "surrogate"),
        (b'{"label":1,"visits":[{"day":0,"values":{}}]}', "label"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_body_that_is_no_record_is_refused(text: bytes, said: str):
    reply = post(text)

    assert reply.status_code == 422
    assert said in reply.text


def test_a_body_that_is_too_long_is_refused_whatever_its_header_says():
    text = json.dumps({"patient_id": "x" * MAX_BODY_BYTES, "visits": []}).encode()
    parts = (text[at : at + 2**16] for at in range(0, len(text), 2**16))

    whole = CLIENT.post(PATH, content=text, headers=JSON)
    in_parts = CLIENT.post(PATH, content=parts, headers=JSON)

    assert (whole.status_code, in_parts.status_code) == (413, 413)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "\xff"])
def test_another_content_type_is_refused(kind: str):
    body = json.dumps({"visits": [visit(0)]})

    reply = CLIENT.post(PATH, content=body, headers={b"content-type": kind.encode("latin-1")})

    assert reply.status_code == 415
    assert "application/json" in reply.json()["detail"]


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
def test_other_methods_are_refused(method: str):
    assert CLIENT.request(method, PATH).status_code == 405


def test_a_charset_beside_the_content_type_is_fine():
    body = json.dumps({"visits": [visit(0)]})
    headers = {"content-type": "application/json; charset=utf-8"}

    assert CLIENT.post(PATH, content=body, headers=headers).status_code == 200


def test_what_may_be_left_out_may_be_null_or_missing():
    assert post({"visits": [visit(0, pH=None)], "age": None, "data_sha256": None}).json() == {
        **post({"visits": [visit(0)]}).json()
    }


# The expert's own numbers


@pytest.mark.parametrize(
    "expert",
    [
        RecordingExpert(risk=math.nan),
        RecordingExpert(risk=math.inf),
        RecordingExpert(risk=1.5),
        RecordingExpert(score=math.nan),
    ],
    ids=["risk nan", "risk inf", "risk 1.5", "attention nan"],
)
def test_an_answer_that_is_not_finite_is_an_error_and_logged(
    expert: RecordingExpert, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.ERROR):
        reply = post({"visits": [visit(0, pH=7.2)]}, client_of(expert, BENCHMARK_17))

    assert reply.status_code == 503
    assert "must answer with finite numbers" in reply.json()["detail"]
    assert "must answer with finite numbers" in caplog.text


# Any body


_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([10**400, -1, 735, 0.4, "2020-02-01", "\ud800", "male", "To Pain", ""])
    | st.text(max_size=8)
)
_ANYTHING = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
_FEATURES = st.sampled_from([*(feature.name for feature in BENCHMARK_17), "HR", "age", "x"])
_NEARLY = st.fixed_dictionaries(
    {
        "visits": st.lists(
            st.fixed_dictionaries(
                {"values": st.dictionaries(_FEATURES, _SCALARS, max_size=4) | _ANYTHING},
                optional={"day": _SCALARS, "date": _SCALARS, "hours": _SCALARS},
            ),
            max_size=3,
        )
    },
    optional={
        "age": _ANYTHING,
        "sex": _ANYTHING,
        "patient_id": _ANYTHING,
        "data_sha256": _ANYTHING,
        "more": _ANYTHING,
    },
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=_NEARLY | _ANYTHING)
def test_any_body_is_answered_or_refused_in_json(body: Any):
    reply = post(json.dumps(body))  # a text as JSON's own, with lone surrogates escaped

    assert reply.status_code in (200, 422)
    json.dumps(reply.json(), allow_nan=False)


@settings(max_examples=25, deadline=None)
@given(text=st.binary(max_size=60) | st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_bytes_are_refused(text: bytes | str):
    assert post(text).status_code == 422


# A cohort's own records


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return generate(CohortSection(num_patients=40))


def sent_by(case: PatientCase, features) -> dict[str, Any]:
    names = [feature.name for feature in features]
    return {
        "patient_id": case.patient_id,
        "sex": str(case.sex),
        "age": case.age,
        "visits": [
            {
                "day": day,
                "values": {
                    name: float(value)
                    for name, value in zip(names, row, strict=True)
                    if not np.isnan(value)
                },
            }
            for day, row in zip(case.visit_days, case.values, strict=True)
        ],
    }


def test_a_cohorts_own_record_arrives_as_it_is(cohort: Cohort):
    for case in list(cohort.cases.values())[:20]:
        reply = post(sent_by(case, cohort.features))

        assert reply.json()["adjusted"] == []
        assert record_hash(EXPERT.asked[-1][0]) == record_hash(case)
