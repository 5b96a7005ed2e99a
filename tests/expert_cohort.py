"""A small cohort with a signal, for tests of the expert; made in milliseconds."""

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest

from ehr.catalogue import AGE_AND_SEX, Feature
from ehr.cohorts.cohort import Cohort, PatientCase, Sex
from ehr.cohorts.schema import CONTRIBUTION_PREFIX, SALIENT_COLUMNS
from ehr.config import ExpertSection, Task
from ehr.expert.ensemble import ExpertEnsemble
from ehr.expert.opinions import SalienceEnsemble
from ehr.expert.selection import fit_ensembles
from ehr.expert.view import ExpertInput
from ehr.salience import methods
from ehr.salience.in_process import one_thread

FEATURES = ("Heart Rate", "Glucose", "pH", "Weight")
METHODS = get_args(ExpertSection.model_fields["salience"].annotation)


def tiny_section(**fields: object) -> ExpertSection:
    """Members that train in a tenth of a second."""
    small = {
        "members": 2,
        "num_ensembles": 2,
        "whole_members": 0,
        "hidden_size": 8,
        "num_heads": 2,
        "feedforward_size": 8,
        "epochs": 3,
        "patience": 3,
        "batch_size": 8,
        "num_salient_features": 2,
    }
    return ExpertSection.model_validate(small | fields)


def tiny_case(patient_id: str, seed: int, level: float = 0.0, num_visits: int = 2) -> PatientCase:
    """A case whose heart rate lies `level` above normal."""
    rng = np.random.default_rng(seed)
    values = rng.normal([80, 6, 7.4, 70], [8, 1, 0.05, 10], size=(num_visits, len(FEATURES)))
    values[:, 0] += 30 * level
    values[rng.random(values.shape) < 0.2] = np.nan
    return PatientCase(
        patient_id=patient_id,
        sex=Sex.FEMALE if seed % 2 else Sex.MALE,
        age=50.0 + seed % 30,
        visit_labels=tuple(
            (date(2020, 1, 1) + timedelta(days=2 * visit)).isoformat()
            for visit in range(num_visits)
        ),
        visit_days=tuple(2.0 * visit for visit in range(num_visits)),
        values=values,
    )


def tiny_cohort(num_patients: int = 48, seed: int = 0) -> Cohort:
    """Every second patient is positive and has a fast heart; half train, a sixth val, rest test."""
    ids = [f"p{index:03d}" for index in range(num_patients)]
    labels = {patient: index % 2 for index, patient in enumerate(ids)}
    cases = {
        patient: tiny_case(patient, 1000 * seed + index, labels[patient], 1 + index % 3)
        for index, patient in enumerate(ids)
    }
    cut = (num_patients // 2, num_patients * 2 // 3)
    truth = pd.DataFrame({"patient_id": ids, "base_log_odds": 0.0})
    truth["true_risk"] = [0.2 + 0.6 * labels[patient] for patient in ids]
    for rank, column in enumerate(SALIENT_COLUMNS):
        truth[column] = (*FEATURES, AGE_AND_SEX)[rank]
    for rank, name in enumerate((*FEATURES, AGE_AND_SEX)):
        truth[CONTRIBUTION_PREFIX + name] = 1.0 - 0.1 * rank
    return Cohort(
        name="tiny",
        task=Task.MORTALITY,
        horizon_days=30,
        features=tuple(Feature(name=name) for name in FEATURES),
        cases=cases,
        labels=labels,
        splits={
            "train": tuple(ids[: cut[0]]),
            "val": tuple(ids[cut[0] : cut[1]]),
            "test": tuple(ids[cut[1] :]),
        },
        has_dates=True,
        truth=truth,
    )


def fit_in_process(cohort: Cohort, section: ExpertSection) -> list[ExpertEnsemble]:
    """The ensembles that the expert stage would train, without Ray, to the last bit."""
    with one_thread():
        return fit_ensembles(cohort, section)


def all_methods(
    concare: Sequence[ExpertEnsemble],
    inputs: Mapping[str, ExpertInput],
    labels: Mapping[str, int],
    section: ExpertSection,
) -> dict[str, list[SalienceEnsemble]]:
    """Every method's ensembles by its name; what two methods have in common is fitted once.

    The vote's voters are the methods' own ensembles, which take the longest.
    """
    known: dict[str, list[SalienceEnsemble]] = {}
    fit = methods.fit_cheap

    def fit_once(method: str, *rest: Any) -> list[SalienceEnsemble]:
        if method not in known:
            known[method] = fit(method, *rest)
        return known[method]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "fit_cheap", fit_once)
        return {
            method: methods.salience_ensembles(method, concare, inputs, labels, section)
            for method in METHODS
        }
