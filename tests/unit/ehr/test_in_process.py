"""An expert trained and asked in this process."""

import numpy as np
import pytest
import torch

from ehr.expert.ensemble import expert_opinion
from ehr.salience.in_process import fit_opinions
from ehr.salience.methods import salience_ensembles
from ehr.salience.table import salience_table, salient_sets
from tests.expert_cohort import fit_in_process, tiny_cohort, tiny_section

COHORT = tiny_cohort()


@pytest.mark.parametrize("method", ["attention", "logistic_regression"])
def test_opinions_are_those_of_the_stages_first_ensemble(method: str):
    section = tiny_section(salience=method, whole_members=1)
    ensembles = fit_in_process(COHORT, section)
    scaler = ensembles[0].scaler
    inputs = {patient: scaler.transform(case) for patient, case in COHORT.cases.items()}
    scorers = salience_ensembles(method, ensembles, inputs, COHORT.labels, section)
    sets = salient_sets(salience_table(COHORT, scorers, method), 2, section.candidates)

    opinions = fit_opinions(COHORT, section)

    assert {patient: each.salient for patient, each in opinions.items()} == sets
    risks = ensembles[0].fair_risk([inputs[patient] for patient in opinions])
    assert [each.risk for each in opinions.values()] == pytest.approx(risks.tolist())
    alone = expert_opinion(ensembles[0], COHORT.cases["p047"], scorers[0])
    assert alone.risk == pytest.approx(opinions["p047"].risk)
    assert alone.attention == pytest.approx(opinions["p047"].attention)


def test_the_signal_is_salient_and_the_threads_are_as_before():
    threads = torch.get_num_threads()
    section = tiny_section(epochs=20, learning_rate=0.01, salience="logistic_regression")

    opinions = fit_opinions(COHORT, section)

    test = COHORT.splits["test"]
    first = [opinions[patient].salient[0] for patient in test]
    risk = np.array([opinions[patient].risk for patient in test])
    label = np.array([COHORT.labels[patient] for patient in test])
    assert first.count("Heart Rate") > len(test) / 2
    assert risk[label == 1].mean() > risk[label == 0].mean()
    assert torch.get_num_threads() == threads
