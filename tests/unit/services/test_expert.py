"""Stored and computed opinions."""

import math
from dataclasses import replace

import numpy as np
import pytest

from ehr.cohorts.cohort import PatientCase, Sex, cohort_hash
from ehr.errors import ServiceError
from ehr.expert.ensemble import ExpertEnsemble
from ehr.expert.member import Member, fit_member
from ehr.expert.member_file import member_key
from ehr.expert.plans import halves
from ehr.expert.view import ExpertScaler
from ehr.salience.integrated_gradients import IntegratedGradients
from ehr.salience.table import salience_table, salient_features
from services.expert import StoredOpinions
from tests.expert_cohort import tiny_case, tiny_cohort, tiny_section

COHORT = tiny_cohort()
HASH = cohort_hash(COHORT)


def train() -> ExpertEnsemble:
    section = tiny_section(num_ensembles=1, epochs=1, patience=1, salience="attention")
    scaler = ExpertScaler.fit(COHORT, COHORT.splits["train"])
    ids = list(COHORT.cases)
    inputs = [scaler.transform(COHORT.cases[patient]) for patient in ids]
    labels = [COHORT.labels[patient] for patient in ids]
    validation = [ids.index(patient) for patient in COHORT.splits["val"]]
    members: list[Member] = []
    for plan in halves(COHORT.splits["train"], COHORT.labels, section):
        rows = [ids.index(patient) for patient in plan.train_ids]
        state = fit_member(inputs, labels, rows, validation, section, plan.seed)
        members.append(Member(plan=plan, state=state, key=member_key(plan, section, HASH)))
    return ExpertEnsemble(members, scaler, section, HASH)


@pytest.fixture(scope="module")
def ensemble() -> ExpertEnsemble:
    return train()


@pytest.fixture(scope="module")
def opinions(ensemble: ExpertEnsemble) -> StoredOpinions:
    return StoredOpinions(ensemble, salience_table(COHORT, [ensemble]))


def test_a_cohort_patient_is_answered_from_the_table(
    opinions: StoredOpinions, ensemble: ExpertEnsemble
) -> None:
    patient = COHORT.splits["train"][0]

    answer = opinions.answer(COHORT.cases[patient], HASH)

    table = salience_table(COHORT, [ensemble])
    assert answer.source == "stored"
    assert answer.opinion.salient == salient_features(table, patient, 2, "observed")
    assert sum(answer.opinion.attention.values()) == pytest.approx(1.0)
    # One of the two members did not see the patient: its own choice is C_exp, fully agreed.
    assert answer.stability == dict.fromkeys(answer.opinion.salient, 1.0)


def test_a_stored_opinion_leaves_out_the_members_that_saw_the_patient(
    opinions: StoredOpinions, ensemble: ExpertEnsemble
) -> None:
    patient = COHORT.splits["train"][0]
    raw = ensemble.predict([ensemble.scaler.transform(COHORT.cases[patient])])

    answer = opinions.answer(COHORT.cases[patient], HASH)

    outside = [m for m in range(len(ensemble.members)) if not raw.seen[m, 0]]
    assert len(outside) == 1
    assert answer.opinion.risk == pytest.approx(raw.risk[outside[0], 0])
    assert list(answer.opinion.attention.values()) == pytest.approx(raw.scores[outside[0], 0])


def test_a_stranger_is_computed_by_all_members(opinions: StoredOpinions) -> None:
    answer = opinions.answer(tiny_case("stranger", seed=5), HASH)

    assert answer.source == "computed"
    assert answer.stability == {}
    assert 0 <= answer.opinion.risk <= 1


@pytest.mark.parametrize("data_sha256", [None, "of another cohort"])
def test_the_same_name_in_other_data_is_computed(
    opinions: StoredOpinions, data_sha256: str | None
) -> None:
    patient = COHORT.splits["train"][0]
    case = COHORT.cases[patient]

    named = opinions.answer(case, data_sha256)
    anonymous = opinions.answer(replace(case, patient_id="nobody"), None)

    assert named.source == "computed"
    assert named.opinion == anonymous.opinion


def changed(case: PatientCase, what: str) -> PatientCase:
    values = case.values.copy()
    match what:
        case "value":
            values[-1, 0] = 200.0
        case "last digit":
            values[-1, 1] = np.nextafter(7.0 if np.isnan(values[-1, 1]) else values[-1, 1], 9.0)
        case "missing":
            values[:, 3] = np.nan
        case "age":
            return replace(case, age=None)
        case "sex":
            return replace(case, sex=Sex.UNKNOWN)
        case "days":
            return replace(case, visit_days=tuple(3 * day + 1 for day in case.visit_days))
        case "visits":
            return replace(
                case, visit_days=(*case.visit_days, 90.0), values=np.vstack([values, values[-1:]])
            )
    return replace(case, values=values)


@pytest.mark.parametrize("what", ["value", "last digit", "missing", "age", "sex", "days", "visits"])
def test_other_values_under_a_patients_name_and_hash_are_computed_altogether(
    opinions: StoredOpinions, what: str
) -> None:
    case = changed(COHORT.cases[COHORT.splits["train"][0]], what)

    named = opinions.answer(case, HASH)

    assert named.source == "computed"
    assert named.opinion == opinions.answer(replace(case, patient_id="nobody"), None).opinion


def test_the_labels_of_visits_are_no_part_of_a_record(opinions: StoredOpinions) -> None:
    case = COHORT.cases[COHORT.splits["train"][0]]

    numbered = replace(case, visit_labels=tuple(map(str, range(case.num_visits))))

    assert opinions.answer(numbered, HASH).source == "stored"


def test_a_table_without_hashes_of_records_stores_nothing(ensemble: ExpertEnsemble) -> None:
    table = salience_table(COHORT, [ensemble]).drop(columns="record")

    answer = StoredOpinions(ensemble, table).answer(COHORT.cases[COHORT.splits["train"][0]], HASH)

    assert answer.source == "computed"


def test_numbers_that_are_not_finite_are_no_answer(
    ensemble: ExpertEnsemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = salience_table(COHORT, [ensemble])
    broken = StoredOpinions(ensemble, table.assign(score=math.nan))
    patient = COHORT.cases[COHORT.splits["train"][0]]

    with pytest.raises(ServiceError, match="attention to 'Heart Rate' nan"):
        broken.answer(patient, HASH)
    monkeypatch.setattr(ensemble, "fair_risk", lambda inputs: np.full(len(inputs), math.nan))
    for data_sha256 in (HASH, None):
        with pytest.raises(ServiceError, match="risk nan"):
            StoredOpinions(ensemble, table).answer(patient, data_sha256)


def test_answers_carry_the_hashes_of_model_and_data(
    opinions: StoredOpinions, ensemble: ExpertEnsemble
) -> None:
    answer = opinions.answer(tiny_case("stranger", seed=5), None)

    assert (answer.model_sha256, answer.data_sha256) == (ensemble.model_sha256, HASH)


def test_a_stranger_is_scored_by_the_runs_method(ensemble: ExpertEnsemble) -> None:
    scorer = IntegratedGradients(ensemble)
    table = salience_table(COHORT, [scorer], "integrated_gradients")
    case = tiny_case("stranger", seed=5)
    entry = replace(ensemble.scaler.transform(case), patient_id="")

    answer = StoredOpinions(ensemble, table, scorer).answer(case, HASH)

    assert answer.source == "computed"
    assert list(answer.opinion.attention.values()) == pytest.approx(
        scorer.predict([entry]).mean_scores()[0]
    )
    assert answer.opinion.risk == StoredOpinions(ensemble, table).answer(case, HASH).opinion.risk
