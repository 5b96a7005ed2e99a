"""Models of the record on another cohort's patients, through a map of features."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ehr.cohorts.cohort import Cohort
from ehr.cohorts.schema_map import SchemaMap
from ehr.expert.baselines import BASELINES
from ehr.expert.ensemble import ExpertEnsemble

SHARED = "_shared"
"""Ends the name of a baseline that was trained on the features which both cohorts have."""


def transferred_risks(
    ensemble: ExpertEnsemble,
    trained_on: Cohort,
    other: Cohort,
    patient_ids: Sequence[str],
    schema: SchemaMap,
) -> dict[str, Float[np.ndarray, " patients"]]:
    """Risks of another cohort's patients by models trained on this one's training patients.

    `concare` and the baselines are those of the expert stage: a feature that the other cohort lacks
    has the training median for everybody. The baselines ending in `SHARED` never saw such features,
    which is what one would train for this purpose.

    Args:
        ensemble: the expert, with its scaler.
        trained_on: its cohort.
        other: the other cohort.
        patient_ids: of `other`, to answer for.
        schema: maps `other`'s records to the features of `trained_on`.
    """
    scaler, seed = ensemble.scaler, ensemble.section.seed
    train = trained_on.splits["train"]
    labels = [trained_on.labels[patient] for patient in train]
    training = [scaler.transform(trained_on.cases[patient]) for patient in train]
    asked = [scaler.transform(schema.case(other.cases[patient])) for patient in patient_ids]
    lacking = [column for column, name in enumerate(scaler.features) if name in schema.missing]
    shared = [scaler.mask(entry, lacking) for entry in training]
    risks = {"concare": ensemble.fair_risk(asked)}
    for name, baseline in BASELINES.items():
        risks[name] = baseline(training, labels, asked, seed)
        risks[name + SHARED] = baseline(shared, labels, asked, seed)
    return risks
