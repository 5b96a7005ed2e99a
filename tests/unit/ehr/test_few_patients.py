"""Fewer training patients: who stays, and what models can be fitted on them."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from ehr.cohorts.cohort import cohort_hash, summary
from ehr.cohorts.few_patients import with_fewer_patients
from ehr.cohorts.loaders import build_cohort
from ehr.config import CohortSection
from ehr.errors import DataError
from ehr.expert.baselines import BASELINES
from ehr.expert.view import ExpertScaler
from ehr.salience.methods import salience_ensembles
from ehr.salience.table import salience_table, salient_sets
from tests.expert_cohort import fit_in_process, tiny_section

SECTION = CohortSection(num_patients=120, num_visits=2)
COHORT = build_cohort(SECTION)


def positives(cohort, split):
    return sum(cohort.labels[patient] for patient in cohort.splits[split])


def test_ten_patients_keep_the_share_of_positives_and_validation_shrinks_with_them():
    few = build_cohort(SECTION.model_copy(update={"train_patients": 10}))

    assert (len(COHORT.splits["train"]), positives(COHORT, "train")) == (68, 22)
    assert (len(few.splits["train"]), positives(few, "train")) == (10, 3)
    assert (len(COHORT.splits["val"]), positives(COHORT, "val")) == (10, 3)
    assert (len(few.splits["val"]), positives(few, "val")) == (2, 1)
    assert few.splits["test"] == COHORT.splits["test"]


def test_the_summary_counts_who_was_left_out_and_says_why():
    few = with_fewer_patients(COHORT, 10, seed=0)

    assert summary(few)["dropped"] == {
        "training_patients_left_out_to_learn_from_fewer": 58,
        "validation_patients_left_out_in_proportion": 8,
    }


def test_nothing_of_those_left_out_stays():
    few = with_fewer_patients(COHORT, 10, seed=0)

    staying = {patient for ids in few.splits.values() for patient in ids}
    assert set(few.cases) == set(few.labels) == staying
    assert few.truth is not None
    assert set(few.truth["patient_id"]) == staying


def test_all_training_patients_leave_the_data_as_they_are():
    same = with_fewer_patients(COHORT, len(COHORT.splits["train"]), seed=0)

    assert cohort_hash(replace(same, dropped={})) == cohort_hash(COHORT)


def test_another_seed_chooses_others():
    chosen = [set(with_fewer_patients(COHORT, 10, seed).splits["train"]) for seed in (0, 1)]

    assert chosen[0] != chosen[1]


def test_a_rare_class_keeps_two_patients():
    labels = dict.fromkeys(COHORT.labels, 0)
    rare = dict.fromkeys((*COHORT.splits["train"][:2], COHORT.splits["val"][0]), 1)
    cohort = replace(COHORT, labels=labels | rare)

    few = with_fewer_patients(cohort, 4, seed=0)

    assert (positives(few, "train"), positives(few, "val")) == (2, 1)


@pytest.mark.parametrize("num", [3, 69])
def test_more_patients_than_there_are_or_too_few_are_refused_with_the_limits(num):
    with pytest.raises(DataError, match=rf"between 4 and the 68 training .* got {num}"):
        with_fewer_patients(COHORT, num, seed=0)


def test_a_class_with_one_training_patient_is_refused():
    labels = dict.fromkeys(COHORT.labels, 0) | {COHORT.splits["train"][0]: 1}

    with pytest.raises(DataError, match=r"at least 2 of each class.*has 1 positives"):
        with_fewer_patients(replace(COHORT, labels=labels), 10, seed=0)


def test_a_setting_below_four_is_refused():
    with pytest.raises(ValidationError, match="train_patients"):
        CohortSection(train_patients=3)


@pytest.mark.parametrize("num", [4, 10])
def test_expert_salience_and_baselines_work_with_so_few(num):
    few = with_fewer_patients(COHORT, num, seed=0)
    section = tiny_section(salience="vote", num_salient_features=5, whole_members=1, epochs=2)
    scaler = ExpertScaler.fit(few, few.splits["train"])
    inputs = {patient: scaler.transform(case) for patient, case in few.cases.items()}

    ensembles = fit_in_process(few, section)
    scorers = salience_ensembles("vote", ensembles, inputs, few.labels, section)
    salient = salient_sets(salience_table(few, scorers, "vote"), 5, "observed")
    asked = [inputs[patient] for patient in few.splits["test"]]
    training = [inputs[patient] for patient in few.splits["train"]]
    labels = [few.labels[patient] for patient in few.splits["train"]]
    risks = [ensembles[0].fair_risk(asked)]
    risks += [baseline(training, labels, asked, 0) for baseline in BASELINES.values()]

    assert set(salient) == set(few.cases)
    assert all(np.isfinite(risk).all() and ((risk >= 0) & (risk <= 1)).all() for risk in risks)
