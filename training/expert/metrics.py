"""The expert's own figures: metrics, agreement, and the truth where it is known."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from ehr.cohorts.cohort import Cohort
from ehr.cohorts.truth import ceilings
from ehr.config import ExpertSection
from ehr.expert.baselines import BASELINES
from ehr.expert.ensemble import ExpertEnsemble
from ehr.expert.selection import (
    Selection,
)
from ehr.expert.view import ExpertInput
from ehr.metrics import performance
from ehr.salience.agreement import agreement
from ehr.salience.table import salient_sets, true_overlap

_AGREEMENT_KEYS = ("jaccard", "jaccard_permuted", "jaccard_constant", "kappa")


def predictions_table(
    cohort: Cohort, inputs: Mapping[str, ExpertInput], ensemble: ExpertEnsemble
) -> pd.DataFrame:
    """Probabilities of the expert and of every baseline for the test patients."""
    train, test = cohort.splits["train"], cohort.splits["test"]
    asked = [inputs[patient] for patient in test]
    training = [inputs[patient] for patient in train]
    labels = [cohort.labels[patient] for patient in train]
    answers = {"concare": ensemble.fair_risk(asked)}
    for name, baseline in BASELINES.items():
        answers[name] = baseline(training, labels, asked, ensemble.section.seed)
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "method": method,
                    "patient_id": test,
                    "split": "test",
                    "label": [cohort.labels[patient] for patient in test],
                    "probability": probabilities,
                }
            )
            for method, probabilities in answers.items()
        ],
        ignore_index=True,
    )


def expert_metrics(
    cohort: Cohort,
    section: ExpertSection,
    ensembles: Sequence[ExpertEnsemble],
    table: pd.DataFrame,
    predictions: pd.DataFrame,
) -> dict[str, Any]:
    """What `metrics.json` says of an expert."""
    rows = {
        str(method): performance(
            frame["label"].to_numpy(), frame["probability"].to_numpy(), seed=section.seed
        )
        for method, frame in predictions.groupby("method", sort=False)
    }
    sets = [
        salient_sets(table, section.num_salient_features, section.candidates, ensemble)
        for ensemble in range(len(ensembles))
    ]
    return {
        "test": rows["concare"] | _agreement(sets, cohort.splits["test"], section),
        **_agreement(sets, cohort.splits["train"], section),
        "baselines": {name: rows[name] for name in BASELINES},
        "out_of_fold": section.members > 1,
        "num_salient_features": section.num_salient_features,
        "candidates": section.candidates,
        "salience": section.salience,
        "truth": _truth(cohort, section, sets[0]),
        "data_sha256": ensembles[0].data_sha256,
        "model_sha256": [ensemble.model_sha256 for ensemble in ensembles],
        "members": [
            {
                "ensemble": member.plan.ensemble,
                "member": member.plan.member,
                "whole": member.plan.whole,
                "num_patients": len(member.plan.train_ids),
                "best_epoch": member.state.best_epoch,
                "num_epochs": member.state.num_epochs,
                "validation_loss": member.state.validation_loss,
            }
            for ensemble in ensembles
            for member in ensemble.all_members
        ],
    }


def selected_salience(selection: Selection, ensembles: Sequence[ExpertEnsemble]) -> dict[str, Any]:
    """The rule that chose epochs, and the epoch of each ensemble or each member's own."""
    epochs = [[member.state.best_epoch for member in each.members] for each in ensembles]
    is_common = selection.rule == "cross_validation"
    return asdict(selection) | {
        "epochs": [each[0] for each in epochs] if is_common else epochs,
        "mean_held_out_loss": [
            float(np.mean([member.state.validation_loss for member in each.members]))
            for each in ensembles
        ],
    }


def _agreement(
    sets: Sequence[Mapping[str, tuple[str, ...]]], ids: Sequence[str], section: ExpertSection
) -> dict[str, float | None]:
    """Agreement of the two ensembles on these patients; null if there is one ensemble only."""
    if len(sets) < 2:
        return dict.fromkeys(_AGREEMENT_KEYS)
    first, second = ([chosen[patient] for patient in ids] for chosen in sets)
    measured = agreement(first, second, section.num_salient_features)
    return {key: getattr(measured, key) for key in _AGREEMENT_KEYS}


def _truth(
    cohort: Cohort, section: ExpertSection, salient: Mapping[str, tuple[str, ...]]
) -> dict[str, dict[str, float | None]] | None:
    """How close salience comes to a generated cohort's truth, and the best metrics there are."""
    if cohort.truth is None:
        return None
    result: dict[str, dict[str, float | None]] = {}
    for split, ids in cohort.splits.items():
        reached, constant = true_overlap(cohort, salient, ids, section.num_salient_features)
        result[split] = {
            "jaccard": reached,
            "jaccard_constant": constant,
            **ceilings(cohort, ids),
        }
    return result
