"""Members that did not see a training patient: its label decides nothing of their salience."""

from functools import cache

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ehr.expert.opinions import Opinions, SalienceEnsemble
from ehr.expert.plans import halves
from ehr.expert.view import ExpertScaler
from ehr.salience.methods import fit_cheap
from tests.expert_cohort import tiny_cohort, tiny_section

COHORT = tiny_cohort()
TRAIN = COHORT.splits["train"]
SCALER = ExpertScaler.fit(COHORT, TRAIN)
INPUTS = {patient: SCALER.transform(COHORT.cases[patient]) for patient in TRAIN}
PLANS = halves(TRAIN, COHORT.labels, tiny_section(num_ensembles=1))


@cache
def fitted(method: str, flipped: str | None = None) -> SalienceEnsemble:
    """One pair of members, with one patient's outcome the other way round."""
    labels = dict(COHORT.labels)
    if flipped is not None:
        labels[flipped] = 1 - labels[flipped]
    # The halves stay: they are drawn by outcome, and are not what is asked about.
    return fit_cheap(method, [PLANS], INPUTS, labels, SCALER)[0]


def check(method: str, patient: str) -> None:
    opinions = [fitted(method, each).predict(list(INPUTS.values())) for each in (None, patient)]
    place = list(INPUTS).index(patient)
    is_out = ~opinions[0].seen[:, place]

    assert is_out.sum() == 1
    for before, after in zip(parts(opinions[0]), parts(opinions[1]), strict=True):
        # A member that excludes the patient answers for everybody as before, to the last bit.
        np.testing.assert_array_equal(after[is_out], before[is_out])
    # The other one has changed: the label is not ignored by everybody.
    assert (opinions[1].risk[~is_out] != opinions[0].risk[~is_out]).any()


def parts(opinions: Opinions) -> tuple[np.ndarray, np.ndarray]:
    return opinions.scores, opinions.risk


@settings(max_examples=6)
@given(patient=st.sampled_from(TRAIN))
def test_contributions_out_of_fold_do_not_depend_on_the_patients_label(patient: str) -> None:
    check("logistic_regression", patient)


def test_shapley_values_out_of_fold_do_not_depend_on_the_patients_label() -> None:
    check("tree_shap", TRAIN[3])
