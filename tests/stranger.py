"""What somebody writes who has the package and nothing else: `python stranger.py RUN_FOLDER`.

Uses public names only (docs/running/other_software.md, "What other projects may import"). Prints
one JSON object.
"""

import json
import math
import sys
from pathlib import Path

from ehr.answers.grounding import (
    FeatureMatcher,
    GroundingChecker,
    grounding_error_rate,
    reasoning_of,
)
from ehr.cohorts.loaders import Cohort, CohortSection, PatientCase, build_cohort
from ehr.errors import EagRlError
from ehr.metrics import Metric, paired_difference, performance
from ehr.salience.in_process import ExpertSection, fit_opinions
from training.interop.export import export
from training.interop.reward_function import RewardSection, TrajectoryReward


def last_value(cohort: Cohort, case: PatientCase, feature: str) -> float:
    """The last value that a visit has of a feature; NaN if none has."""
    column = [each.name for each in cohort.features].index(feature)
    recorded = [float(value) for value in case.values[:, column] if not math.isnan(value)]
    return recorded[-1] if recorded else math.nan


def metrics(cohort: Cohort) -> dict[str, object]:
    """Age as a risk against one risk for everybody."""
    patients = cohort.splits["test"]
    labels = [cohort.labels[patient] for patient in patients]
    ages = [cohort.cases[patient].age or 0.0 for patient in patients]
    risks = [age / 120 for age in ages]
    row = performance(labels, risks, num_resamples=50)
    difference = paired_difference(labels, risks, [0.5] * len(labels), Metric.AUROC, 50)
    return {"labels": labels, "risks": risks, "row": row, "difference": difference.difference}


def grounding(cohort: Cohort) -> dict[str, object]:
    """An answer that says one true and one wrong thing about the first patient with a pH."""
    case, value = next(
        (case, value)
        for case in cohort.cases.values()
        if not math.isnan(value := last_value(cohort, case, "pH"))
    )
    checker = GroundingChecker(cohort.features, FeatureMatcher(cohort.features))
    text = f"<think>The pH was {value:.2f}. The pH was 9.87.</think><answer>0.4</answer>"
    found = checker.check(reasoning_of(text), case)
    return {
        "claims": len(found.claims),
        "problems": [checked.problem for checked in found.wrong],
        "error_rate": grounding_error_rate(len(found.wrong), len(found.claims)),
    }


def rewards(cohort: Cohort) -> list[float]:
    """Of an answer that names two of three salient features, and of one that says nothing."""
    reward = TrajectoryReward(cohort.features, RewardSection(accuracy_weight=0.5))
    named = "<Important Features>pH, Glucose</Important Features><Final answer>0.8</Final answer>"
    return reward(
        [named, [{"role": "assistant", "content": "I do not know."}]],
        label=[1, 1],
        salient_features=[["pH", "Glucose", "Heart Rate"]] * 2,
    )


def opinions(cohort: Cohort) -> dict[str, object]:
    """Of an expert of two members that have hardly learned."""
    section = ExpertSection(members=2, whole_members=0, epochs=2, salience="attention")
    found = fit_opinions(cohort, section)
    return {
        "patients": len(found),
        "sizes": sorted({len(each.salient) for each in found.values()}),
        "risks": [found[patient].risk for patient in cohort.splits["test"]],
    }


def export_refusal(run_dir: Path) -> str:
    """Why a run that has searched nothing cannot be exported."""
    try:
        export(run_dir)
    except EagRlError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    generated = build_cohort(CohortSection(num_patients=60, num_visits=2))
    found = {
        "splits": {name: len(patients) for name, patients in generated.splits.items()},
        "metrics": metrics(generated),
        "grounding": grounding(generated),
        "rewards": rewards(generated),
        "opinions": opinions(generated),
        "export": export_refusal(Path(sys.argv[1])),
    }
    sys.stdout.write(json.dumps(found, allow_nan=False) + "\n")
