"""Input that real cohorts hold and no model likes, for every salience method and its yardsticks."""

import dataclasses
import re
from typing import get_args

import numpy as np
import pytest

from ehr.catalogue import AGE_AND_SEX
from ehr.cohorts.cohort import Cohort, PatientCase
from ehr.config import ExpertSection
from ehr.errors import DataError
from ehr.expert.ensemble import ExpertEnsemble, expert_opinion
from ehr.expert.opinions import SalienceEnsemble
from ehr.expert.plans import MemberPlan
from ehr.expert.view import ExpertInput, ExpertScaler
from ehr.salience.agreement import agreement
from ehr.salience.deletion import (
    bench,
    common_judges,
    method_orders,
    own_judge,
)
from ehr.salience.linear import LinearEnsemble
from ehr.salience.methods import salience_ensembles
from ehr.salience.table import salience_table, salient_sets
from ehr.salience.trees import TreeEnsemble
from tests.expert_cohort import FEATURES, all_methods, fit_in_process, tiny_cohort, tiny_section

WHOLE = tiny_cohort()
TRAIN = WHOLE.splits["train"]
METHODS = get_args(ExpertSection.model_fields["salience"].annotation)
every_method = pytest.mark.parametrize("method", METHODS)

CONSTANT, NEVER = FEATURES.index("Glucose"), FEATURES.index("pH")
BARE, ONCE = WHOLE.splits["test"][0], WHOLE.splits["test"][1]
BARE_IN_TRAINING = TRAIN[0]


def damaged(case: PatientCase) -> PatientCase:
    """One feature is the same for everybody, one is never recorded, and two patients have none."""
    values = case.values.copy()
    values[:, CONSTANT] = np.where(np.isnan(values[:, CONSTANT]), np.nan, 6.0)
    values[:, NEVER] = np.nan
    if case.patient_id in (BARE, BARE_IN_TRAINING):
        values[:] = np.nan
    if case.patient_id != ONCE:
        return dataclasses.replace(case, values=values)
    return dataclasses.replace(
        case, values=values[:1], visit_days=case.visit_days[:1], visit_labels=case.visit_labels[:1]
    )


COHORT: Cohort = dataclasses.replace(
    WHOLE, cases={patient: damaged(case) for patient, case in WHOLE.cases.items()}
)
SCALER = ExpertScaler.fit(COHORT, TRAIN)
INPUTS = {patient: SCALER.transform(case) for patient, case in COHORT.cases.items()}
SECTION = tiny_section(epochs=4)


@pytest.fixture(scope="module")
def concare() -> list[ExpertEnsemble]:
    return fit_in_process(COHORT, SECTION)


@pytest.fixture(scope="module")
def ensembles(concare: list[ExpertEnsemble]) -> dict[str, list[SalienceEnsemble]]:
    return all_methods(concare, INPUTS, COHORT.labels, SECTION)


@every_method
def test_scores_of_damaged_patients_are_shares(
    ensembles: dict[str, list[SalienceEnsemble]], method: str
) -> None:
    for ensemble in ensembles[method]:
        opinions = ensemble.predict(list(INPUTS.values()))

        assert np.isfinite(opinions.risk).all()
        assert (opinions.scores >= 0).all()
        np.testing.assert_allclose(opinions.scores.sum(axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize("method", ["integrated_gradients", "logistic_regression", "tree_shap"])
@pytest.mark.parametrize("column", [CONSTANT, NEVER])
def test_a_feature_without_variance_gets_nothing_where_scores_are_effects(
    ensembles: dict[str, list[SalienceEnsemble]], method: str, column: int
) -> None:
    informed = [entry for entry in INPUTS.values() if entry.observed.any()]

    assert not ensembles[method][0].predict(informed).scores[..., column].any()


@every_method
def test_a_patient_without_any_observation_has_age_and_sex_alone(
    concare: list[ExpertEnsemble], ensembles: dict[str, list[SalienceEnsemble]], method: str
) -> None:
    table = salience_table(COHORT, ensembles[method], method)

    for ensemble in (0, 1):
        sets = salient_sets(table, 2, "observed", ensemble)
        assert sets[BARE] == sets[BARE_IN_TRAINING] == (AGE_AND_SEX,)
        assert len(salient_sets(table, 2, "paper", ensemble)[BARE]) == 2
    opinion = expert_opinion(concare[0], COHORT.cases[BARE], ensembles[method][0])
    assert opinion.salient == (AGE_AND_SEX,)


@every_method
def test_a_single_visit_is_scored(
    ensembles: dict[str, list[SalienceEnsemble]], method: str
) -> None:
    opinions = ensembles[method][0].predict([INPUTS[ONCE]])

    assert len(INPUTS[ONCE].values) == 1
    assert np.isfinite(opinions.mean_scores()).all()
    assert 0 < opinions.mean_risk()[0] < 1


@every_method
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_with_the_patient(
    ensembles: dict[str, list[SalienceEnsemble]], method: str, bad: float
) -> None:
    entry = INPUTS[ONCE]
    values = entry.values.copy()
    values[-1, 0] = bad
    broken = dataclasses.replace(entry, values=values)

    for ask in (ensembles[method][0].predict, ensembles[method][0].risks):
        with pytest.raises(DataError, match=rf"{ONCE}.* must be finite"):
            ask([INPUTS[BARE], broken])


@every_method
def test_no_patient_at_all_is_refused(
    ensembles: dict[str, list[SalienceEnsemble]], method: str
) -> None:
    with pytest.raises(DataError, match="at least one patient"):
        ensembles[method][0].predict([])


@pytest.mark.slow
@every_method
def test_an_ensemble_of_one_scores_everybody_with_the_member_there_is(method: str) -> None:
    section = tiny_section(members=1, num_ensembles=1, epochs=1)
    concare = fit_in_process(COHORT, section)

    (ensemble,) = salience_ensembles(method, concare, INPUTS, COHORT.labels, section)

    opinions = ensemble.predict([INPUTS[patient] for patient in (*TRAIN[:2], ONCE)])

    assert opinions.seen.tolist() == [[True, True, False]]
    np.testing.assert_allclose(opinions.mean_scores(), opinions.scores[0])
    np.testing.assert_allclose(opinions.mean_risk(), opinions.risk[0])


@pytest.mark.parametrize("label", [0, 1])
def test_training_patients_of_one_class_are_refused(label: int) -> None:
    cohort = dataclasses.replace(COHORT, labels=dict.fromkeys(COHORT.labels, label))

    with pytest.raises(DataError, match="at least 2 training patients of each class"):
        fit_in_process(cohort, SECTION)


@pytest.mark.parametrize("family", [LinearEnsemble, TreeEnsemble])
def test_a_half_of_one_class_is_refused(family: type[LinearEnsemble] | type[TreeEnsemble]) -> None:
    labels = COHORT.labels | dict.fromkeys(TRAIN, 0) | dict.fromkeys(TRAIN[:3], 1)
    of_one_class = MemberPlan(ensemble=0, member=0, train_ids=TRAIN[3:], seed=0)
    other = MemberPlan(ensemble=0, member=1, train_ids=TRAIN[:3], seed=1)

    with pytest.raises(DataError, match=re.escape("both classes, got labels [0]")):
        family.fit([of_one_class, other], INPUTS, labels, SCALER)


@pytest.mark.parametrize("selection", ["validation", "cross_validation"])
def test_validation_and_test_patients_of_one_class_do_not_stop_training(selection: str) -> None:
    negatives = {**dict.fromkeys(COHORT.labels, 0), **{p: COHORT.labels[p] for p in TRAIN}}
    cohort = dataclasses.replace(COHORT, labels=negatives)

    (ensemble,) = fit_in_process(cohort, tiny_section(num_ensembles=1, selection=selection))

    assert all(np.isfinite(member.state.validation_loss) for member in ensemble.members)


# Agreement


def test_patients_without_candidates_agree_on_nothing() -> None:
    measured = agreement([(), ("a",)], [(), ("a",)], 5)

    assert measured.jaccard == 0.5  # two empty sets share nothing
    assert measured.jaccard_permuted == 0
    assert measured.kappa == 0.5


def test_sets_shorter_than_the_constant_set_are_compared_as_they_are() -> None:
    measured = agreement([("a",), ("b", "c")], [("a",), ("b",)], 5)

    assert measured.jaccard == pytest.approx(0.75)
    assert measured.jaccard_permuted == 0
    assert 0 < measured.jaccard_constant < 0.75


def test_nobody_with_candidates_has_no_agreement_and_no_error() -> None:
    measured = agreement([(), ()], [(), ()], 5)

    assert (measured.jaccard, measured.jaccard_permuted, measured.jaccard_constant) == (0, 0, 0)
    assert measured.kappa == 0


# Deletion


@every_method
def test_curves_of_patients_with_few_candidates_stay_flat_after_the_last_one(
    ensembles: dict[str, list[SalienceEnsemble]], method: str
) -> None:
    ensemble = ensembles[method][0]
    asked = [INPUTS[BARE], INPUTS[ONCE], INPUTS[TRAIN[1]]]
    scores = ensemble.predict(asked).mean_scores()
    orders = method_orders(scores, asked)

    against = bench(own_judge(ensemble), SCALER, asked, num_random=1)
    curve = against.curves(orders)["deletion"]

    assert orders[0] == [len(FEATURES)]  # age and sex
    np.testing.assert_allclose(curve.log_odds[2:, 0], curve.log_odds[1, 0], atol=1e-6)
    assert np.isfinite(curve.log_odds).all()
    assert curve.auroc([0, 0, 0]) == [None] * len(curve.log_odds)


def test_common_judges_answer_for_damaged_patients(
    ensembles: dict[str, list[SalienceEnsemble]],
) -> None:
    plans = ensembles["logistic_regression"][0].plans[:2]

    for judge in common_judges(plans, INPUTS, COHORT.labels).values():
        assert np.isfinite(judge([INPUTS[BARE], INPUTS[ONCE], INPUTS[BARE_IN_TRAINING]])).all()


def test_a_bench_refuses_values_that_are_not_finite(
    ensembles: dict[str, list[SalienceEnsemble]],
) -> None:
    entry: ExpertInput = INPUTS[ONCE]
    values = entry.values.copy()
    values[0, 0] = np.nan

    with pytest.raises(DataError, match="must be finite"):
        bench(
            own_judge(ensembles["logistic_regression"][0]),
            SCALER,
            [dataclasses.replace(entry, values=values)],
            num_random=1,
        )
