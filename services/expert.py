"""The expert on Ray Serve: risk and feature scores of a patient, stored or computed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pandas as pd
from ray import serve

from ehr.cohorts.cohort import PatientCase, record_hash
from ehr.errors import DataError, ServiceError
from ehr.expert.ensemble import ExpertEnsemble, Opinion, expert_opinion
from ehr.expert.opinions import SalienceEnsemble
from ehr.salience.methods import load_scorer
from ehr.salience.table import salient_features, stability_weights
from services.applications import (
    delete_application,
    deploy_application,
    expert_application,
    wait_for_application,
)

_SERVED_ENSEMBLE = 0
"""The other one only measures how far two ensembles agree."""
EXPERT_CPUS = 0.5
"""Logical CPUs of the expert: an answer takes milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertAnswer:
    """An opinion and where it comes from."""

    opinion: Opinion
    source: Literal["stored", "computed"]
    """`stored`: the run's out-of-fold salience table; `computed`: all members, now."""
    model_sha256: str
    data_sha256: str
    """The cohort that the expert was trained on."""
    stability: Mapping[str, float] = field(default_factory=dict, hash=False)
    """How many members agree on each salient feature, `ehr.salience.table.stability_weights`; of
    stored opinions only. For rewards: the HTTP endpoint does not show it."""

    def check(self) -> None:
        """Nothing, if the risk is a probability and all attention is a finite number.

        Raises:
            ServiceError: naming what is not; such an answer says nothing about the patient.
        """
        wrong = [] if 0 <= self.opinion.risk <= 1 else [f"risk {self.opinion.risk!r}"]
        wrong += [
            f"attention to {name!r} {score!r}"
            for name, score in self.opinion.attention.items()
            if not math.isfinite(score)
        ]
        if wrong:
            raise ServiceError(
                f"the expert ({self.model_sha256[:12]}) must answer with finite numbers, but gave "
                f"{', '.join(wrong[:3])}; its parameters are broken. Train it again (--redo expert)"
            )


class StoredOpinions:
    """Answers for cohort patients from the salience table, for everybody else from the members."""

    def __init__(
        self,
        ensemble: ExpertEnsemble,
        table: pd.DataFrame,
        scorer: SalienceEnsemble | None = None,
    ) -> None:
        """Answers of one run's expert.

        Args:
            ensemble: gives the risk.
            table: the run's salience, by the method of `scorer`.
            scorer: scores features of unknown patients; by default the ensemble's attention.
        """
        self._ensemble = ensemble
        self._scorer = scorer
        self._table = {
            str(patient): rows for patient, rows in table.groupby("patient_id", observed=True)
        }

    def answer(self, case: PatientCase, data_sha256: str | None) -> ExpertAnswer:
        """The opinion of a case: risk and salience of one record, both stored or both computed.

        It is stored only if the caller names the cohort that the case comes from and the record is
        that cohort's own: the table says nothing about other values under a patient's name.

        Raises:
            ServiceError: if the expert's numbers are not finite.
        """
        known = data_sha256 == self._ensemble.data_sha256 and self._has(case)
        if known:
            opinion = self._stored(case)
            stability = self._stability(case.patient_id, opinion.salient)
        else:
            # A stranger with a training patient's name must not lose the members that saw the name.
            stranger = replace(case, patient_id="")
            opinion, stability = expert_opinion(self._ensemble, stranger, self._scorer), {}
        answer = ExpertAnswer(
            opinion=opinion,
            source="stored" if known else "computed",
            model_sha256=self._ensemble.model_sha256,
            data_sha256=self._ensemble.data_sha256,
            stability=stability,
        )
        answer.check()
        return answer

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Columns that a case must have, in order."""
        return self._ensemble.scaler.features

    def _has(self, case: PatientCase) -> bool:
        """Whether the table scored exactly this record; one without hashes cannot tell."""
        rows = self._table.get(case.patient_id)
        if rows is None or "record" not in rows:
            return False
        return int(rows["record"].iloc[0]) == record_hash(case)

    def _stored(self, case: PatientCase) -> Opinion:
        # Only the risk is computed: by the members that were not trained on this patient.
        risk = self._ensemble.fair_risk([self._ensemble.scaler.transform(case)])[0]
        rows = self._table[case.patient_id]
        served = rows.loc[rows["ensemble"] == _SERVED_ENSEMBLE]
        outside = served.loc[served["out_of_fold"]]
        fair = served if outside.empty else outside
        attention = fair.groupby("feature", sort=False, observed=True)["score"].mean()
        section = self._ensemble.section
        return Opinion(
            risk=float(risk),
            attention={str(name): float(score) for name, score in attention.items()},
            salient=salient_features(
                rows, case.patient_id, section.num_salient_features, section.candidates
            ),
        )

    def _stability(self, patient_id: str, salient: tuple[str, ...]) -> dict[str, float]:
        section = self._ensemble.section
        return stability_weights(
            self._table[patient_id],
            {patient_id: salient},
            section.num_salient_features,
            section.candidates,
            _SERVED_ENSEMBLE,
        )[patient_id]


class ExpertReplica:
    """Serve deployment: the expert of one run."""

    def __init__(self, expert_dir: str) -> None:
        folder = Path(expert_dir)
        checkpoint = folder / "checkpoint"
        ensemble = ExpertEnsemble.load(checkpoint, _SERVED_ENSEMBLE)
        scorer = load_scorer(checkpoint, ensemble, _SERVED_ENSEMBLE)
        try:
            table = pd.read_parquet(folder / "salience.parquet")
        except OSError as error:
            raise DataError(
                f"expected {folder / 'salience.parquet'} beside the expert's checkpoint, it cannot "
                f"be read ({error}); run the expert stage of this run folder"
            ) from error
        self._opinions = StoredOpinions(ensemble, table, scorer)

    async def opinion(self, case: PatientCase, data_sha256: str | None) -> ExpertAnswer:
        """The opinion of a case."""
        return self._opinions.answer(case, data_sha256)

    async def feature_names(self) -> tuple[str, ...]:
        """Columns that a case must have, in order."""
        return self._opinions.feature_names


def start_expert(run_id: str, run_dir: Path, timeout_s: float) -> None:
    """Serve the expert that a run has trained; returns when it answers.

    Raises:
        ServiceError: if it does not start in time.
    """
    delete_application(expert_application(run_id))
    deployment = serve.deployment(
        name="ExpertReplica", max_ongoing_requests=64, ray_actor_options={"num_cpus": EXPERT_CPUS}
    )(ExpertReplica)
    application = deployment.bind(str(run_dir / "expert"))
    deploy_application(application, expert_application(run_id), route_prefix=None)
    wait_for_application(expert_application(run_id), timeout_s)


def stop_expert(run_id: str) -> None:
    """End a run's expert."""
    delete_application(expert_application(run_id))
