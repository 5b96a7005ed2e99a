"""C_exp and risk of cohort patients, asked of the served expert."""

from ehr.cohorts.cohort import PatientCase
from ehr.errors import ServiceError
from ehr.rewards import Salience
from services.clients import ExpertClient


class ServedSalience:
    """Salient features as the expert's service stores them: out of fold for training patients.

    Args:
        client: the run's expert.
        data_sha256: hash of the cohort whose cases are asked about.
    """

    def __init__(self, client: ExpertClient, data_sha256: str) -> None:
        self._client = client
        self._data_sha256 = data_sha256

    async def __call__(self, case: PatientCase) -> Salience:
        """C_exp of a patient, the stability of its features, and the expert's risk.

        Raises:
            ServiceError: if the service has no stored opinion: one that it computes now comes from
                members that may have been trained on the patient.
        """
        answer = await self._client.opinion(case, self._data_sha256)
        if answer.source != "stored":
            raise ServiceError(
                f"expected the stored opinion of patient {case.patient_id!r}, the expert computed "
                f"one: it was trained on cohort {answer.data_sha256[:12]}, asked about "
                f"{self._data_sha256[:12]}, or its table was made of another record of the "
                "patient; train the expert again with --redo expert"
            )
        return Salience(
            features=frozenset(answer.opinion.salient),
            stability=dict(answer.stability),
            risk=answer.opinion.risk,
        )
