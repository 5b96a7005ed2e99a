import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ehr.catalogue import AGE_AND_SEX
from ehr.cohorts.cohort import cohort_hash
from ehr.config import ExpertSection
from ehr.errors import DataError, TrainingError
from ehr.expert.ensemble import ExpertEnsemble, expert_opinion, save_ensembles
from ehr.expert.member import MemberState, fit_member
from ehr.expert.member_file import member_file, member_key, read_member
from ehr.expert.opinions import Opinions, token_names
from ehr.expert.plans import halves
from ehr.expert.view import ExpertInput, ExpertScaler
from ehr.salience.table import (
    salience_table,
    salient_features,
    salient_sets,
    stability_weights,
)
from ehr.tables import rows
from tests.expert_cohort import FEATURES, fit_in_process, tiny_case, tiny_cohort, tiny_section
from tests.typed import untyped

COHORT = tiny_cohort()
SCALER = ExpertScaler.fit(COHORT, COHORT.splits["train"])
IDS = [patient for ids in COHORT.splits.values() for patient in ids]
INPUTS = [SCALER.transform(COHORT.cases[patient]) for patient in IDS]
LABELS = [COHORT.labels[patient] for patient in IDS]
INPUT_OF = dict(zip(IDS, INPUTS, strict=True))
TRAIN = [IDS.index(patient) for patient in COHORT.splits["train"]]
VAL = [IDS.index(patient) for patient in COHORT.splits["val"]]


def fit(section: ExpertSection, seed: int = 0) -> MemberState:
    return fit_member(INPUTS, LABELS, TRAIN, VAL, section, seed)


@pytest.fixture(scope="module")
def trained() -> list[ExpertEnsemble]:
    return fit_in_process(COHORT, tiny_section(members=4))


@pytest.fixture(scope="module")
def table(trained: list[ExpertEnsemble]) -> pd.DataFrame:
    return salience_table(COHORT, trained)


# Halves


def test_pairs_hold_complementary_stratified_halves() -> None:
    train = COHORT.splits["train"]

    plans = halves(train, COHORT.labels, tiny_section(members=4))

    assert [(plan.ensemble, plan.member) for plan in plans] == [
        (ensemble, member) for ensemble in (0, 1) for member in range(4)
    ]
    for first, second in zip(plans[::2], plans[1::2], strict=True):
        assert set(first.train_ids) | set(second.train_ids) == set(train)
        assert not set(first.train_ids) & set(second.train_ids)
        positives = [sum(COHORT.labels[p] for p in plan.train_ids) for plan in (first, second)]
        assert abs(positives[0] - positives[1]) <= 1
    assert len({plan.train_ids for plan in plans}) == 8
    assert len({plan.seed for plan in plans}) == 8


def test_halves_of_odd_classes_differ_by_no_patient_in_size() -> None:
    labels = {f"p{index}": int(index < 5) for index in range(12)}

    first, second = halves(list(labels), labels, tiny_section(members=2, num_ensembles=1))

    assert len(first.train_ids) == len(second.train_ids) == 6


def test_halves_do_not_depend_on_the_order_of_patients() -> None:
    train = COHORT.splits["train"]

    assert halves(train, COHORT.labels, tiny_section()) == halves(
        train[::-1], COHORT.labels, tiny_section()
    )


def test_a_single_member_takes_every_training_patient() -> None:
    plans = halves(COHORT.splits["train"], COHORT.labels, tiny_section(members=1))

    assert [plan.train_ids for plan in plans] == [COHORT.splits["train"]] * 2


def test_a_class_with_one_patient_cannot_be_halved() -> None:
    with pytest.raises(DataError, match=r"at least 2 .* 1 positives.*expert.members=1"):
        halves(["a", "b", "c"], {"a": 1, "b": 0, "c": 0}, tiny_section())


# Members


def test_a_member_is_the_same_whatever_was_done_before() -> None:
    first = fit(tiny_section())
    torch.manual_seed(99)
    torch.randn(7)

    second = fit(tiny_section())

    assert first.validation_loss == second.validation_loss
    assert all(torch.equal(first.parameters[n], second.parameters[n]) for n in first.parameters)


def test_training_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(4)
    expected = torch.randn(1)
    torch.manual_seed(4)

    fit(tiny_section(epochs=1))

    assert torch.equal(torch.randn(1), expected)


def test_seeds_give_different_members() -> None:
    assert fit(tiny_section(), 0).validation_loss != fit(tiny_section(), 1).validation_loss


def test_the_epoch_with_the_lowest_validation_loss_is_kept() -> None:
    losses: list[float] = []
    section = tiny_section(epochs=25, patience=4, learning_rate=0.05)

    state = fit_member(
        INPUTS, LABELS, TRAIN, VAL, section, 0, on_epoch=lambda _, loss: losses.append(loss)
    )

    assert state.validation_loss == min(losses)
    assert state.best_epoch == 1 + int(np.argmin(losses))
    assert state.num_epochs == len(losses) == min(25, state.best_epoch + 4)


def test_a_member_learns_the_signal() -> None:
    state = fit(tiny_section(epochs=30, learning_rate=0.02))

    assert state.validation_loss < 0.4


def test_one_training_patient_in_the_last_batch_is_no_trouble() -> None:
    section = tiny_section(batch_size=len(TRAIN) - 1, epochs=1)

    assert np.isfinite(fit(section).validation_loss)


def test_a_feature_without_variance_trains_to_a_finite_result() -> None:
    constant = [
        dataclasses.replace(entry, values=entry.values * [0, 1, 1, 1]).values for entry in INPUTS
    ]
    inputs = [
        dataclasses.replace(entry, values=values.astype(np.float32))
        for entry, values in zip(INPUTS, constant, strict=True)
    ]

    state = fit_member(inputs, LABELS, TRAIN, VAL, tiny_section(), 0)

    assert np.isfinite(state.validation_loss)
    assert all(value.isfinite().all() for value in state.parameters.values())


@pytest.mark.parametrize("field", ["values", "days", "demographics"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_input_that_is_not_finite_is_refused_with_the_patient(field: str, bad: float) -> None:
    inputs = list(INPUTS)
    broken = getattr(inputs[3], field).copy()
    broken.flat[0] = bad
    inputs[3] = dataclasses.replace(inputs[3], **{field: broken})

    with pytest.raises(DataError, match=rf"{field} of patient 'p003' must be finite"):
        fit_member(inputs, LABELS, TRAIN, VAL, tiny_section(), 0)


def test_a_loss_that_explodes_stops_with_the_setting_to_change() -> None:
    section = tiny_section(learning_rate=1e30)

    with pytest.raises(TrainingError, match=r"expert\.learning_rate"):
        fit(section)


@pytest.mark.parametrize(("train", "val"), [([], VAL), (TRAIN, [])])
def test_an_empty_split_is_refused(train: list[int], val: list[int]) -> None:
    with pytest.raises(DataError, match="training and validation patients"):
        fit_member(INPUTS, LABELS, train, val, tiny_section(), 0)


def test_a_members_key_changes_with_what_it_depends_on_only() -> None:
    section = tiny_section()
    plan, other = halves(COHORT.splits["train"], COHORT.labels, section)[:2]
    key = member_key(plan, section, "data")

    assert key == member_key(plan, tiny_section(num_workers=3, num_salient_features=4), "data")
    assert key != member_key(plan, tiny_section(learning_rate=0.5), "data")
    assert key != member_key(plan, tiny_section(time_attention="pyhealth"), "data")
    assert key != member_key(plan, section, "other data")
    assert key != member_key(other, section, "data")


# Ensemble


@pytest.mark.parametrize("together_patients", [0, 10_000], ids=["one by one", "one recurrence"])
def test_members_answer_together_as_they_do_alone(
    trained: list[ExpertEnsemble], monkeypatch: pytest.MonkeyPatch, together_patients: int
) -> None:
    monkeypatch.setattr("ehr.expert.ensemble._TOGETHER_PATIENTS", together_patients)
    ensemble = trained[0]
    together = ensemble.predict(INPUTS)
    monkeypatch.setattr("ehr.expert.ensemble._TOGETHER_PATIENTS", 0)

    for index, member in enumerate(ensemble.members):
        alone = ExpertEnsemble([member], SCALER, ensemble.section, "").predict(INPUTS)
        np.testing.assert_allclose(together.risk[index], alone.risk[0], atol=1e-6)
        np.testing.assert_allclose(together.scores[index], alone.scores[0], atol=1e-6)


def test_an_opinion_does_not_depend_on_the_other_patients(trained: list[ExpertEnsemble]) -> None:
    together = trained[0].predict(INPUTS)

    alone = trained[0].predict(INPUTS[:1])

    np.testing.assert_allclose(together.scores[:, :1], alone.scores, atol=1e-6)


def test_more_patients_than_one_pass_takes_are_answered_in_order(
    trained: list[ExpertEnsemble], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained[0].predict(INPUTS)

    monkeypatch.setattr("ehr.expert.ensemble.PREDICT_PATIENTS", 5)

    np.testing.assert_allclose(trained[0].predict(INPUTS).risk, whole.risk, atol=1e-6)


def test_a_training_patients_opinion_leaves_out_members_that_saw_it() -> None:
    opinions = Opinions(
        patient_ids=("train", "new", "everywhere"),
        risk=np.array([[0.2, 0.2, 0.2], [0.8, 0.8, 0.8]]),
        scores=np.array([[[1.0, 0.0]] * 3, [[0.0, 1.0]] * 3]),
        seen=np.array([[True, False, True], [False, False, True]]),
    )

    np.testing.assert_allclose(opinions.mean_risk(), [0.8, 0.5, 0.5])
    np.testing.assert_allclose(opinions.mean_scores(), [[0, 1], [0.5, 0.5], [0.5, 0.5]])


def test_a_saved_ensemble_answers_the_same_after_loading(
    trained: list[ExpertEnsemble], tmp_path: Path
) -> None:
    save_ensembles(trained, tmp_path)

    for index, ensemble in enumerate(trained):
        loaded = ExpertEnsemble.load(tmp_path, index)
        case = tiny_case("new", seed=77, level=1)
        assert expert_opinion(loaded, case) == expert_opinion(ensemble, case)
        assert loaded.model_sha256 == ensemble.model_sha256
        assert loaded.data_sha256 == cohort_hash(COHORT)
        assert token_names(loaded.scaler) == (*FEATURES, AGE_AND_SEX)


def test_saving_twice_writes_the_same_bytes(trained: list[ExpertEnsemble], tmp_path: Path) -> None:
    save_ensembles(trained, tmp_path / "a")
    save_ensembles(trained, tmp_path / "b")

    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 9
    assert all(
        (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files
    )


def test_a_folder_without_an_expert_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expert\.json.*Run the expert stage"):
        ExpertEnsemble.load(tmp_path)


def test_a_folder_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "expert.json").write_text(json.dumps({"format_version": 99}))

    with pytest.raises(DataError, match="format version 2, got 99"):
        ExpertEnsemble.load(tmp_path)


def test_an_ensemble_that_was_not_trained_is_refused(
    trained: list[ExpertEnsemble], tmp_path: Path
) -> None:
    save_ensembles(trained[:1], tmp_path)

    with pytest.raises(DataError, match=r"no ensemble 1: use one of \[0\]"):
        ExpertEnsemble.load(tmp_path, 1)


@pytest.mark.parametrize("content", [b"", b"not a tensor file"])
def test_a_broken_member_file_is_refused(
    trained: list[ExpertEnsemble], tmp_path: Path, content: bytes
) -> None:
    save_ensembles(trained, tmp_path)
    path = tmp_path / member_file(trained[0].members[0].plan)
    path.write_bytes(content)

    with pytest.raises(DataError, match="must hold an expert member"):
        read_member(path)


# Opinions of single cases


def test_an_opinion_is_a_risk_and_a_distribution_with_its_heaviest_features(
    trained: list[ExpertEnsemble],
) -> None:
    opinion = expert_opinion(trained[0], tiny_case("new", seed=77))

    assert 0 < opinion.risk < 1
    assert list(opinion.attention) == [*FEATURES, AGE_AND_SEX]
    assert sum(opinion.attention.values()) == pytest.approx(1)
    assert len(opinion.salient) == 2
    assert opinion.attention[opinion.salient[0]] >= opinion.attention[opinion.salient[1]]


def test_a_single_visit_is_answered(trained: list[ExpertEnsemble]) -> None:
    assert 0 < expert_opinion(trained[0], tiny_case("new", seed=5, num_visits=1)).risk < 1


def test_a_patient_without_any_observation_has_age_and_sex_alone_as_salient(
    trained: list[ExpertEnsemble],
) -> None:
    case = tiny_case("new", seed=5)
    empty = dataclasses.replace(case, values=np.full_like(case.values, np.nan))

    opinion = expert_opinion(trained[0], empty)

    assert 0 < opinion.risk < 1
    assert opinion.salient == (AGE_AND_SEX,)


def test_a_case_without_visits_is_refused(trained: list[ExpertEnsemble]) -> None:
    entry = ExpertInput(
        patient_id="empty",
        values=np.zeros((0, 4), dtype=np.float32),
        days=np.zeros(0, dtype=np.float32),
        demographics=np.zeros(2, dtype=np.float32),
        observed=np.zeros(4, dtype=bool),
    )

    with pytest.raises(DataError, match=r"'empty' must have at least one visit"):
        trained[0].predict([entry])


def test_no_patient_at_all_is_refused(trained: list[ExpertEnsemble]) -> None:
    with pytest.raises(DataError, match="at least one patient"):
        trained[0].predict([])


def test_a_case_with_other_features_is_refused(trained: list[ExpertEnsemble]) -> None:
    case = tiny_case("new", seed=5)

    with pytest.raises(DataError, match="4 features"):
        expert_opinion(trained[0], dataclasses.replace(case, values=case.values[:, :3]))


# Salience


def test_the_table_has_every_member_patient_and_token_once(table: pd.DataFrame) -> None:
    assert list(table.columns) == [
        "patient_id",
        "split",
        "ensemble",
        "member",
        "out_of_fold",
        "feature",
        "score",
        "observed",
        "rank",
        "method",
        "record",
    ]
    assert len(table) == 2 * 4 * len(IDS) * (len(FEATURES) + 1)
    assert not table.duplicated(["patient_id", "ensemble", "member", "feature"]).any()


def test_scores_of_a_member_and_patient_sum_to_one_and_are_ranked(table: pd.DataFrame) -> None:
    groups = table.groupby(["patient_id", "ensemble", "member"])

    for _, group in groups:
        assert np.isclose(group["score"].sum(), 1)
        assert group.sort_values("rank")["score"].is_monotonic_decreasing
        assert sorted(group["rank"]) == [1, 2, 3, 4, 5]


def test_out_of_fold_says_which_members_did_not_see_the_patient(
    table: pd.DataFrame, trained: list[ExpertEnsemble]
) -> None:
    per_patient = table.drop_duplicates(["patient_id", "ensemble", "member"])
    shares = {
        split: set(untyped(of_split.groupby("patient_id")["out_of_fold"].mean()))
        for split, of_split in per_patient.groupby("split")
    }

    assert shares == {"train": {0.5}, "val": {1}, "test": {1}}
    seen = per_patient[~per_patient["out_of_fold"] & (per_patient["ensemble"] == 1)]
    for member in trained[1].members:
        of_member = seen[seen["member"] == member.plan.member]
        assert sorted(of_member["patient_id"]) == list(member.plan.train_ids)


def test_salience_survives_parquet(table: pd.DataFrame, tmp_path: Path) -> None:
    table.to_parquet(tmp_path / "salience.parquet", index=False)
    read = pd.read_parquet(tmp_path / "salience.parquet")

    assert salient_sets(read, 2, "observed") == salient_sets(table, 2, "observed")


def test_salient_features_are_those_of_the_opinion(
    table: pd.DataFrame, trained: list[ExpertEnsemble]
) -> None:
    for patient in COHORT.splits["test"]:
        expected = expert_opinion(trained[0], COHORT.cases[patient]).salient

        assert salient_features(table, patient, 2, "observed") == expected


def hand_table(rows: list[tuple[int, bool, str, float, bool]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["member", "out_of_fold", "feature", "score", "observed"])
    return table.assign(patient_id="p", ensemble=0)


def test_salience_of_a_training_patient_ignores_members_that_saw_it() -> None:
    table = hand_table(
        [
            (0, False, "a", 0.9, True),
            (0, False, AGE_AND_SEX, 0.1, True),
            (1, True, "a", 0.2, True),
            (1, True, AGE_AND_SEX, 0.8, True),
        ]
    )

    assert salient_features(table, "p", 1, "observed") == (AGE_AND_SEX,)


def test_salience_averages_all_members_if_all_saw_the_patient() -> None:
    table = hand_table([(0, False, "a", 0.6, True), (0, False, AGE_AND_SEX, 0.4, True)])

    assert salient_features(table, "p", 1, "observed") == ("a",)


def test_ties_go_to_the_feature_that_comes_first_in_the_schema() -> None:
    table = hand_table([(0, True, name, 0.25, True) for name in ("z", "a", "m", AGE_AND_SEX)])

    assert salient_features(table, "p", 3, "observed") == ("z", "a", "m")


def test_unobserved_features_are_salient_in_the_papers_reading_only() -> None:
    table = hand_table(
        [(0, True, "a", 0.7, False), (0, True, "b", 0.2, True), (0, True, AGE_AND_SEX, 0.1, True)]
    )

    assert salient_features(table, "p", 2, "observed") == ("b", AGE_AND_SEX)
    assert salient_features(table, "p", 2, "paper") == ("a", "b")


def members_table(scores: dict[tuple[int, bool], list[float]], names: list[str]) -> pd.DataFrame:
    return hand_table(
        [
            (member, outside, name, score, True)
            for (member, outside), row in scores.items()
            for name, score in zip(names, row, strict=True)
        ]
    )


def test_stability_is_the_share_of_outside_members_that_choose_the_feature() -> None:
    table = members_table(
        {
            (0, False): [0.0, 0.0, 1.0],  # saw the patient: its choice does not count
            (1, True): [0.6, 0.3, 0.1],
            (2, True): [0.6, 0.1, 0.3],
        },
        ["a", "b", AGE_AND_SEX],
    )

    weights = stability_weights(table, {"p": ("a", "b")}, 2, "observed")

    assert weights == {"p": {"a": 1.0, "b": 0.5}}


def test_all_members_vote_on_a_patient_that_all_saw() -> None:
    table = members_table({(0, False): [0.9, 0.1], (1, False): [0.2, 0.8]}, ["a", AGE_AND_SEX])

    assert stability_weights(table, {"p": ("a",)}, 1, "observed") == {"p": {"a": 0.5}}


def test_a_feature_that_only_the_mean_favours_counts_as_half_a_member() -> None:
    table = members_table(
        {(0, True): [0.6, 0.4, 0.0], (1, True): [0.0, 0.4, 0.6]}, ["a", "b", AGE_AND_SEX]
    )
    salient = salient_sets(table, 1, "observed")

    assert salient == {"p": ("b",)}
    assert stability_weights(table, salient, 1, "observed") == {"p": {"b": 0.25}}


def test_ties_of_a_member_go_to_the_feature_that_comes_first() -> None:
    table = members_table({(0, True): [0.25] * 4}, ["z", "a", "m", AGE_AND_SEX])

    weights = stability_weights(table, {"p": ("z", "a", "m")}, 2, "observed")

    assert weights == {"p": {"z": 1.0, "a": 1.0, "m": 0.5}}


def test_members_choose_among_the_same_candidates_as_the_expert() -> None:
    table = hand_table(
        [(0, True, "a", 0.7, False), (0, True, "b", 0.2, True), (0, True, AGE_AND_SEX, 0.1, True)]
    )

    observed = stability_weights(table, {"p": ("b", AGE_AND_SEX)}, 2, "observed")
    paper = stability_weights(table, {"p": ("a", "b")}, 1, "paper")

    assert observed == {"p": {"b": 1.0, AGE_AND_SEX: 1.0}}
    assert paper == {"p": {"a": 1.0, "b": 0.5}}


def test_stability_of_a_trained_ensemble_is_what_counting_by_hand_gives(
    table: pd.DataFrame,
) -> None:
    salient = salient_sets(table, 2, "observed")
    weights = stability_weights(table, salient, 2, "observed")

    for patient in (*COHORT.splits["train"][:3], *COHORT.splits["test"][:3]):
        of_patient = (table["patient_id"] == patient) & (table["ensemble"] == 0)
        outside = rows(table, of_patient & table["out_of_fold"])
        choices = [
            set(salient_sets(member, 2, "observed")[patient])
            for _, member in outside.groupby("member")
        ]
        for feature in salient[patient]:
            votes = sum(feature in choice for choice in choices)
            assert weights[patient][feature] == max(votes, 0.5) / len(choices)


def test_stability_of_a_patient_that_is_not_in_the_table_is_refused(table: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="no patients"):
        stability_weights(table, {"nobody": ("a",)}, 2, "observed")


def test_a_patient_that_is_not_in_the_table_is_refused(table: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="no patient 'nobody'"):
        salient_features(table, "nobody", 5, "observed")


# Whole members


def with_whole_members(**settings: object) -> ExpertEnsemble:
    section = tiny_section(num_ensembles=1, whole_members=2, **settings)
    return fit_in_process(COHORT, section)[0]


def test_whole_members_give_the_risk_of_strangers_and_half_samples_that_of_training_patients() -> (
    None
):
    ensemble = with_whole_members()
    assert ensemble.whole is not None
    asked = [INPUT_OF[COHORT.splits[split][0]] for split in ("test", "train", "val")]

    risk = ensemble.fair_risk(asked)

    whole, halves_alone = (each.predict(asked).mean_risk() for each in (ensemble.whole, ensemble))
    np.testing.assert_allclose(risk, [whole[0], halves_alone[1], whole[2]])
    assert not np.isclose(whole, halves_alone).any()


def test_whole_members_see_all_training_patients_and_the_half_samples_stay_as_they_are() -> None:
    ensemble = with_whole_members()
    assert ensemble.whole is not None

    alone = fit_in_process(COHORT, tiny_section(num_ensembles=1))[0]

    assert ensemble.plans == alone.plans
    assert [plan.train_ids for plan in ensemble.whole.plans] == [COHORT.splits["train"]] * 2
    for one, other in zip(ensemble.members, alone.members, strict=True):
        assert one.state.losses == other.state.losses


def test_whole_members_take_the_epoch_that_the_half_samples_choose() -> None:
    ensemble = with_whole_members(selection="cross_validation", epochs=6)

    assert len({member.state.best_epoch for member in ensemble.all_members}) == 1


def test_a_single_member_has_no_whole_members_beside_it() -> None:
    ensemble = with_whole_members(members=1)

    assert ensemble.whole is None
    np.testing.assert_allclose(ensemble.fair_risk(INPUTS), ensemble.predict(INPUTS).mean_risk())


def test_whole_members_are_saved_and_served(tmp_path: Path) -> None:
    ensemble = with_whole_members()
    save_ensembles([ensemble], tmp_path)

    loaded = ExpertEnsemble.load(tmp_path)

    np.testing.assert_array_equal(loaded.fair_risk(INPUTS), ensemble.fair_risk(INPUTS))
    assert loaded.model_sha256 == ensemble.model_sha256
    stranger = tiny_case("new", seed=5)
    entry = ensemble.scaler.transform(stranger)
    assert expert_opinion(loaded, stranger).risk == pytest.approx(ensemble.fair_risk([entry])[0])


def test_nobody_has_no_risk() -> None:
    with pytest.raises(DataError, match="at least one patient"):
        with_whole_members().fair_risk([])
