"""What the HTTP endpoint understands, and what it refuses."""

import numpy as np
import pytest
from pydantic import ValidationError

from ehr.catalogue import BENCHMARK_17
from ehr.cohorts.cohort import Sex
from ehr.errors import DataError
from ehr.expert.ensemble import Opinion
from services.expert import ExpertAnswer
from services.http_app import PatientBody, case_from_body, features_by_name, reply_from_answer

NAMES = tuple(feature.name for feature in BENCHMARK_17)


def body(*visits: dict[str, object], **fields: object) -> PatientBody:
    return PatientBody.model_validate({"visits": list(visits), **fields})


def case(*visits: dict[str, object], **fields: object):
    return case_from_body(body(*visits, **fields), BENCHMARK_17)


def test_values_land_in_their_columns_and_the_rest_is_missing() -> None:
    found = case(
        {"day": 0, "values": {"Heart Rate": 88, "pH": None}},
        {"day": 2, "values": {"heart  rate": 91.5}},
        sex="male",
        age=70,
    )

    column = NAMES.index("Heart Rate")
    assert found.values[:, column].tolist() == [88.0, 91.5]
    assert int(np.isnan(found.values).sum()) == 2 * len(NAMES) - 2
    assert (found.sex, found.age, found.visit_days) == (Sex.MALE, 70.0, (0.0, 2.0))


def test_dates_become_days_since_the_first_visit() -> None:
    found = case({"date": "2020-02-27", "values": {}}, {"date": "2020-03-01", "values": {}})

    assert found.visit_days == (0.0, 3.0)


def test_categories_may_be_words_or_codes() -> None:
    name = "Glasgow coma scale eye opening"
    found = case({"day": 0, "values": {name: "to speech"}}, {"day": 1, "values": {name: 3}})

    assert found.values[:, NAMES.index(name)].tolist() == [3.0, 3.0]


def test_an_unknown_feature_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(DataError, match="unknown feature 'Hart Rate'; nearest names: 'Heart Rate'"):
        case({"day": 0, "values": {"Hart Rate": 80}})


def test_age_among_the_values_is_refused_with_where_it_belongs() -> None:
    with pytest.raises(DataError, match="beside `visits`"):
        case({"day": 0, "values": {"Age": 80}})


def test_a_word_for_a_number_is_refused() -> None:
    with pytest.raises(DataError, match="'Heart Rate' must be a number, got 'fast'"):
        case({"day": 0, "values": {"Heart Rate": "fast"}})


def test_visits_out_of_order_are_refused() -> None:
    with pytest.raises(DataError, match="time order"):
        case({"day": 3, "values": {}}, {"day": 1, "values": {}})


def test_visits_without_a_time_are_refused() -> None:
    with pytest.raises(DataError, match="a `day`, or every visit a `date`"):
        case({"values": {}})


@pytest.mark.parametrize(
    "fields", [{"age": 200}, {"sex": "X"}, {"visits": []}, {"label": 1}, {"age": "old"}]
)
def test_a_body_with_wrong_fields_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PatientBody.model_validate({"visits": [{"day": 0, "values": {}}], **fields})


def test_a_reply_lists_the_salient_features_with_their_attention() -> None:
    opinion = Opinion(risk=0.4, attention={"pH": 0.7, "Glucose": 0.3}, salient=("pH",))
    answer = ExpertAnswer(opinion=opinion, source="stored", model_sha256="m", data_sha256="d")

    reply = reply_from_answer("p1", answer)

    assert [(each.feature, each.attention) for each in reply.salient] == [("pH", 0.7)]
    assert (reply.risk, reply.source, reply.model_sha256) == (0.4, "stored", "m")


def test_columns_that_the_catalogue_lacks_are_plain_numbers() -> None:
    features = features_by_name(("pH", "an odd marker"))

    assert [feature.name for feature in features] == ["pH", "an odd marker"]
    assert features[1].categories == ()
