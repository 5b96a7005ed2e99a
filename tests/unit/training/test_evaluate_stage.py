"""The evaluate stage with a scripted model: what it asks, keeps and writes, and how it resumes."""

import asyncio
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from actors.case_prompts import PromptKind, case_prompt
from actors.rollouts import RolloutBatch, RolloutPlan, RolloutPrompt, RolloutSampler
from ehr.catalogue.names import FeatureMatcher
from ehr.cohorts.loaders import build_cohort
from ehr.config import CohortSection
from ehr.errors import DataError
from ehr.expert.ensemble import save_ensembles
from ehr.language.prompts import PromptContext
from services.types import BASE_POLICY
from tests.expert_cohort import fit_in_process, tiny_section
from tests.scripted import FRAME, CharTokenizer, ScriptedGenerator
from training.config.run import RunConfig
from training.evaluation import stage as evaluate_stage
from training.evaluation.answers import Answers
from training.evaluation.methods import prompt_kind
from training.evaluation.table import order_table

COHORT = build_cohort(CohortSection(num_patients=60, num_visits=2))


def writes(call):
    """Names two features; what it predicts depends on the heart rate's line."""
    line = next(row for row in call.prompt.splitlines() if row.startswith("- Heart Rate: ["))
    match call.kind:
        case "choice":
            return "F"
        case "features":
            return "Heart Rate, Age\n"
        case "probability":
            return "0.20\n" if line.strip("]").endswith("NaN") else "0.80\n"
        case _:
            return "nothing else\n"


class FakeSession:
    """What the evaluate stage needs of a session, without Ray and a served model."""

    def __init__(self, folder: Path, num_masked: int = 3, **evaluate: object) -> None:
        self.config = RunConfig.model_validate(
            {
                "prompt": {"max_prompt_tokens": 9000},
                "model": {"max_model_len": 20000},
                "learner": {"max_row_tokens": 20000},
                "evaluate": {
                    "methods": ["vanilla", "question_decomposition", "stage2", "concare"],
                    "num_patients": 6,
                    "num_resamples": 100,
                    "max_depth": 1,
                    "faithfulness_patients": num_masked,
                    **evaluate,
                },
            }
        )
        self.cohort = COHORT
        self.matcher = FeatureMatcher(COHORT.features)
        self.folder = folder
        self.asked: list[tuple[str, object, tuple[str, ...]]] = []
        self.prompts: dict[tuple[str, object, str], list[str]] = {}
        (folder / "expert").mkdir(parents=True, exist_ok=True)
        (folder / "evaluate").mkdir()
        test = list(COHORT.splits["test"])
        pd.DataFrame(
            {
                "method": "concare",
                "patient_id": test,
                "split": "test",
                "label": [COHORT.labels[patient] for patient in test],
                "probability": 0.4,
            }
        ).to_parquet(folder / "expert" / "predictions.parquet")

    def path(self, stage):
        return self.folder / stage

    def salient(self, patients):
        return dict.fromkeys(patients, frozenset({"Heart Rate", "pH"}))

    def case_prompts(self, patients, kind):
        return self.prompts_of({patient: COHORT.cases[patient] for patient in patients}, kind)

    def prompts_of(self, cases, kind, cohort=COHORT, order=None):
        context = PromptContext.of(cohort, self.config.prompt, order)
        return {
            patient: case_prompt(case, kind, context, CharTokenizer(), FRAME)
            for patient, case in cases.items()
        }


class FakeAsker:
    """`training.evaluation.asking.Asker` in this process."""

    fails_on_masked = False
    script = staticmethod(writes)

    def __init__(self, session, method):
        self.session, self.method = session, method
        self.kind: PromptKind = prompt_kind(method, session.config.prompt.kind)

    def patients(self, patients, tell):
        return self._ask("patients", self.session.case_prompts(patients, self.kind))

    def patients_of(self, cohort, patients, tell):
        cases = {patient: cohort.cases[patient] for patient in patients}
        return self._ask("other cohort", self.session.prompts_of(cases, self.kind, cohort))

    def reordered(self, patients, order, tell):
        cases = {patient: COHORT.cases[patient] for patient in patients}
        return self._ask(order, self.session.prompts_of(cases, self.kind, order=order))

    def cases(self, cases):
        if FakeAsker.fails_on_masked:
            raise KeyboardInterrupt
        return self._ask("cases", self.session.prompts_of(cases, self.kind))

    def _ask(self, what, shown):
        self.session.asked.append((self.method, what, tuple(shown)))
        for patient, prompt in shown.items():
            text = CharTokenizer().decode(prompt.token_ids)
            self.session.prompts[self.method, what, patient] = text.splitlines()
        plan = RolloutPlan(
            format="guided", kind=self.kind, max_depth=1, max_new_tokens=600, temperature=0.0
        )
        prompts = tuple(
            RolloutPrompt(patient_id=patient, token_ids=prompt.token_ids)
            for patient, prompt in shown.items()
        )
        batch = RolloutBatch(prompts=prompts, group_size=1, least=BASE_POLICY, seed=1)
        sampler = RolloutSampler(ScriptedGenerator(script=self.script), CharTokenizer(), plan)
        groups = asyncio.run(sampler.sample_groups(batch))
        return Answers(
            kind=self.kind,
            texts={group[0].patient_id: (group[0].text, group[0].truncated) for group in groups},
            shown={patient: prompt.case for patient, prompt in shown.items()},
        )


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setattr(evaluate_stage, "Asker", FakeAsker)
    monkeypatch.setattr(FakeAsker, "fails_on_masked", False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    section = tiny_section(epochs=1, num_ensembles=1, whole_members=1)
    folder = tmp_path_factory.mktemp("expert") / "checkpoint"
    save_ensembles(fit_in_process(COHORT, section), folder)
    return folder


@pytest.fixture
def expert_folder(tmp_path, checkpoint):
    shutil.copytree(checkpoint, tmp_path / "expert" / "checkpoint")
    return tmp_path


def evaluate(session):
    evaluate_stage.evaluate_methods(session, lambda done, total, text: None)
    rows = json.loads((session.path("evaluate") / "results.json").read_text())
    return {row["method"]: row for row in rows}


def test_the_first_patients_are_asked_about_twice_more_by_rows_that_name_features(tmp_path):
    session = FakeSession(tmp_path)

    rows = evaluate(session)

    masked = [(method, len(ids)) for method, what, ids in session.asked if what == "cases"]
    asked = next(ids for _, what, ids in session.asked if what == "patients")
    assert masked == [("question_decomposition", 3)] * 2 + [("stage2", 3)] * 2
    assert all(ids == asked[:3] for _, what, ids in session.asked if what == "cases")
    assert rows["eag_rl"]["faithfulness"]["difference"] == pytest.approx(0.6)
    assert rows["eag_rl"]["faithfulness"]["num_judged"] == 3
    assert rows["vanilla"]["faithfulness"] is None
    assert rows["concare"]["faithfulness"] is None
    table = pd.read_parquet(tmp_path / "evaluate" / "faithfulness.parquet")
    assert set(table["method"]) == {"question_decomposition", "eag_rl"}
    assert not (tmp_path / "evaluate" / "parts").exists()


def test_zero_patients_switch_it_off(tmp_path):
    session = FakeSession(tmp_path, num_masked=0)

    rows = evaluate(session)

    assert {what for _, what, _ in session.asked} == {"patients"}
    assert rows["eag_rl"]["faithfulness"] is None
    assert not (tmp_path / "evaluate" / "faithfulness.parquet").exists()
    assert not (tmp_path / "evaluate" / "feature_order.json").exists()


def test_an_interrupted_evaluation_asks_only_what_it_has_not_kept(tmp_path, monkeypatch):
    session = FakeSession(tmp_path)
    monkeypatch.setattr(FakeAsker, "fails_on_masked", True)
    with pytest.raises(KeyboardInterrupt):
        evaluate(session)
    before = [(method, what) for method, what, _ in session.asked]

    monkeypatch.setattr(FakeAsker, "fails_on_masked", False)
    session.asked.clear()
    rows = evaluate(session)

    assert before == [("vanilla", "patients"), ("question_decomposition", "patients")]
    assert [(method, what) for method, what, _ in session.asked] == [
        ("question_decomposition", "cases"),
        ("question_decomposition", "cases"),
        ("stage2", "patients"),
        ("stage2", "cases"),
        ("stage2", "cases"),
    ]
    assert rows["question_decomposition"]["faithfulness"]["num_judged"] == 3


OTHER = {"source": "synthetic", "num_patients": 80, "num_visits": 4, "seed": 5}
"""Patients with the ids of the run's own."""


def test_another_cohort_is_asked_about_by_language_models_and_models_of_the_record(expert_folder):
    session = FakeSession(expert_folder, num_masked=0, other_cohort=OTHER)
    other = build_cohort(CohortSection.model_validate(OTHER))

    evaluate(session)

    found = json.loads((session.path("evaluate") / "other_cohort.json").read_text())
    rows = {row["method"]: row for row in found["rows"]}
    asked = [ids for _, what, ids in session.asked if what == "other cohort"]
    assert [method for method, what, _ in session.asked if what == "other cohort"] == [
        "vanilla",
        "question_decomposition",
        "stage2",
    ]
    assert all(len(ids) == 6 and set(ids) <= set(other.splits["test"]) for ids in asked)
    assert [*rows] == [
        "vanilla",
        "question_decomposition",
        "eag_rl",
        "concare",
        "logistic_regression",
        "logistic_regression_shared",
        "gradient_boosting",
        "gradient_boosting_shared",
    ]
    assert rows["eag_rl"]["n"] == 6
    assert rows["eag_rl"]["reward_att"] is None
    assert rows["concare"]["n"] == len(other.splits["test"])
    assert rows["gradient_boosting_shared"]["same_patients"]["n"] == 6
    assert len(found["map"]["pairs"]) == 17
    assert found["map"]["missing"] == []
    assert found["cohort"]["test_patients"] == len(other.splits["test"])
    table = pd.read_parquet(session.path("evaluate") / "other_cohort_predictions.parquet")
    own = pd.read_parquet(session.path("evaluate") / "predictions.parquet")
    assert list(table.columns) == list(own.columns)
    assert [other.labels[patient] for patient in table["patient_id"]] == table["label"].tolist()
    assert table["salient"].dropna().empty
    assert table["reward_att"].dropna().empty
    assert set(own["patient_id"]) <= set(COHORT.splits["test"])


def test_an_interrupted_evaluation_keeps_the_other_cohorts_answers(expert_folder, monkeypatch):
    session = FakeSession(expert_folder, other_cohort=OTHER)
    monkeypatch.setattr(FakeAsker, "fails_on_masked", True)
    with pytest.raises(KeyboardInterrupt):
        evaluate(session)

    monkeypatch.setattr(FakeAsker, "fails_on_masked", False)
    session.asked.clear()
    evaluate(session)

    assert [method for method, what, _ in session.asked if what == "other cohort"] == [
        "question_decomposition",
        "stage2",
    ]


def by_place(call):
    """Reads the record's fourth feature, whichever that is: a policy that learned places."""
    if call.kind != "probability":
        return writes(call)
    return "0.80\n" if call.prompt.split("\n- ")[7].startswith("Glasgow coma") else "0.20\n"


def test_rows_are_asked_again_with_other_orders_of_the_features(tmp_path, monkeypatch):
    monkeypatch.setattr(FakeAsker, "script", staticmethod(by_place))
    session = FakeSession(
        tmp_path, num_masked=0, feature_order_shuffle=[0, 0.25, 1], feature_order_seed=[1, 2]
    )

    rows = evaluate(session)

    found = json.loads((tmp_path / "evaluate" / "feature_order.json").read_text())
    by_order = {(row["method"], row["share"], row["seed"]): row for row in found["rows"]}
    methods = ("vanilla", "question_decomposition", "eag_rl")
    shares = [(0.0, None), *[(share, seed) for share in (0.25, 1.0) for seed in (1, 2)]]
    assert [*by_order] == [(method, *each) for method in methods for each in shares]
    assert by_order["eag_rl", 0.0, None]["auroc"] == rows["eag_rl"]["auroc"] == 0.5
    assert {row["share"]: row["moved_features"] for row in found["rows"]} == {0: 0, 0.25: 4, 1: 17}
    assert found["num_features"] == 17
    # Every patient's own prompt has so many lines elsewhere; those of the other rows have none.
    patients = next(ids for _, what, ids in session.asked if what == "patients")
    for order in session.config.evaluate.feature_orders:
        for patient in patients:
            plain = session.prompts["stage2", "patients", patient]
            other = session.prompts["stage2", order, patient]
            moved = sum(a != b for a, b in zip(plain, other, strict=True))
            assert moved == order.num_moved(17)
    answers = pd.read_parquet(tmp_path / "evaluate" / "feature_order_predictions.parquet")
    assert len(answers) == len(methods) * 4 * len(patients)
    stored = answers[(answers["method"] == "eag_rl") & (answers["share"] == 1)]
    assert set(stored["seed"]) == {1, 2}
    means = {(mean["method"], mean["share"]): mean for mean in found["means"]}
    of_seeds = [by_order["eag_rl", 1.0, seed]["auroc"] for seed in (1, 2)]
    assert means["eag_rl", 1.0]["auroc"] == pytest.approx(sum(of_seeds) / 2)
    assert means["eag_rl", 1.0]["auroc_sd"] == pytest.approx(
        abs(of_seeds[0] - of_seeds[1]) / 2**0.5
    )
    assert means["eag_rl", 0.0]["auroc_sd"] is None
    difference = by_order["eag_rl", 1.0, 1]["differences"][0]
    assert (difference["metric"], difference["n"]) == ("auroc", len(patients))
    assert difference["difference"] == pytest.approx(by_order["eag_rl", 1.0, 1]["auroc"] - 0.5)
    table = order_table(found).splitlines()
    assert table[0].split("  ")[0] == "Method"
    assert "4 of 17 (p = 0.25)" in table[3]


def test_another_cohort_with_patients_that_were_learnt_from_is_refused(expert_folder):
    again = {"source": "synthetic", "num_patients": 60, "num_visits": 2, "test_fraction": 0.5}
    session = FakeSession(expert_folder, num_masked=0, other_cohort=again)

    with pytest.raises(DataError, match=r"of its 30 test patients.* among the 39 training and val"):
        evaluate(session)

    assert session.asked == []


def test_test_patients_of_the_run_are_counted_among_another_cohorts(expert_folder):
    same = {"source": "synthetic", "num_patients": 60, "num_visits": 2}
    session = FakeSession(expert_folder, num_masked=0, methods=["vanilla"], other_cohort=same)

    evaluate(session)

    found = json.loads((session.path("evaluate") / "other_cohort.json").read_text())
    assert found["cohort"]["own_test_patients"] == len(COHORT.splits["test"])
