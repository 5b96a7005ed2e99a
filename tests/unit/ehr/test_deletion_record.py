import json

import numpy as np
import pytest

from ehr.errors import DataError
from ehr.expert.plans import halves
from ehr.expert.view import ExpertScaler
from ehr.salience.deletion import bench, own_judge
from ehr.salience.deletion_json import deletion_curves, judged_patients, own_deletion
from ehr.salience.linear import LinearEnsemble
from tests.expert_cohort import FEATURES, tiny_cohort, tiny_section

COHORT = tiny_cohort()
SCALER = ExpertScaler.fit(COHORT, COHORT.splits["train"])
INPUTS = {patient: SCALER.transform(case) for patient, case in COHORT.cases.items()}
TRAINING = COHORT.splits["train"]
SCORER = LinearEnsemble.fit(
    halves(TRAINING, COHORT.labels, tiny_section(members=4, num_ensembles=1)),
    INPUTS,
    COHORT.labels,
    SCALER,
)


@pytest.fixture(scope="module")
def record() -> dict:
    return own_deletion(SCORER, INPUTS, COHORT.labels, TRAINING, 12, seed=5)


def test_the_record_says_who_was_asked_and_is_plain_json(record: dict) -> None:
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert {key: record[key] for key in ("judge", "num_patients", "seed")} == {
        "judge": "own",
        "num_patients": 12,
        "seed": 5,
    }
    assert record["num_steps"] == len(FEATURES) + 1
    for kind in ("deletion", "insertion"):
        for curve in ("method", "random", "constant"):
            heights = record[kind][curve]["mean_change_of_log_odds"]
            assert len(heights) == len(record[kind][curve]["auroc"]) == len(FEATURES) + 2
            assert heights[0] == 0


@pytest.mark.parametrize("kind", ["deletion", "insertion"])
def test_areas_are_those_between_the_recorded_curves(record: dict, kind: str) -> None:
    method, random, constant = (
        np.mean(record[kind][curve]["mean_change_of_log_odds"][1:])
        for curve in ("method", "random", "constant")
    )

    for name, other in (("vs_random", random), ("vs_constant", constant)):
        between = record[kind][name]
        assert between["area"] == pytest.approx(method - other)
        assert between["low"] <= between["area"] <= between["high"]
    # Contributions of a linear model name what moves it most.
    assert record[kind]["vs_random"]["low"] > 0


def test_at_most_so_many_patients_are_drawn_and_again_the_same() -> None:
    ids = [f"p{index}" for index in range(30)]

    drawn = judged_patients(ids, 10, seed=1)

    assert len(set(drawn)) == 10
    assert drawn == sorted(drawn, key=ids.index)
    assert drawn == judged_patients(ids, 10, seed=1) != judged_patients(ids, 10, seed=2)
    assert judged_patients(ids, 99, seed=1) == ids


def test_with_one_class_there_are_curves_and_no_auroc() -> None:
    asked = [INPUTS[patient] for patient in TRAINING if COHORT.labels[patient]]
    against = bench(own_judge(SCORER), SCALER, asked, num_steps=2)

    record = deletion_curves(against, SCORER.predict(asked).mean_scores(), [1] * len(asked))

    assert record["deletion"]["random"]["auroc"] == [None, None, None]
    assert record["deletion"]["random"]["mean_change_of_log_odds"][1] > 0


def test_without_patients_there_is_no_record() -> None:
    with pytest.raises(DataError, match="patients and at least one step"):
        own_deletion(SCORER, INPUTS, COHORT.labels, [], 10, seed=0)
