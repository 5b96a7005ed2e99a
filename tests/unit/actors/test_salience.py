"""C_exp as it is asked of the served expert."""

import asyncio
from typing import Literal

import pytest

from actors.salience import ServedSalience
from ehr.cohorts.cohort import PatientCase
from ehr.errors import ServiceError
from ehr.expert.ensemble import Opinion
from services.expert import ExpertAnswer
from tests.scripted import case_of
from tests.typed import untyped


class _Expert:
    def __init__(self, source: Literal["stored", "computed"]) -> None:
        self._source: Literal["stored", "computed"] = source

    async def opinion(self, case: PatientCase, data_sha256: str) -> ExpertAnswer:
        return ExpertAnswer(
            opinion=Opinion(risk=0.2, attention={"pH": 1.0}, salient=("pH",)),
            source=self._source,
            model_sha256="m",
            data_sha256=data_sha256,
            stability={"pH": 0.75},
        )


def test_a_stored_opinion_is_taken() -> None:
    ask = ServedSalience(untyped(_Expert("stored")), "abc")

    answer = asyncio.run(ask(case_of()))

    assert answer.features == {"pH"}
    assert answer.stability == {"pH": 0.75}
    assert answer.risk == 0.2


def test_an_opinion_that_members_which_saw_the_patient_may_have_computed_is_refused() -> None:
    ask = ServedSalience(untyped(_Expert("computed")), "abc")

    with pytest.raises(ServiceError, match="computed"):
        asyncio.run(ask(case_of()))
