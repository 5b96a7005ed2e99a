"""Which step's policy Stage 2 keeps, where validation patients choose it."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from ehr.catalogue import BENCHMARK_17
from ehr.catalogue.names import FeatureMatcher
from ehr.cohorts.loaders import build_cohort
from ehr.config import CohortSection, RewardSection
from ehr.errors import DataError
from ehr.language.trajectory import ParsedTrajectory
from ehr.rewards import RewardContext, reward
from services.adapters import adapter_checksum
from tests.typed import untyped
from training.config.grpo import GrpoSection
from training.config.run import RunConfig
from training.evaluation.answers import Answers
from training.evaluation.selection import (
    StepScore,
    candidate_steps,
    choose_step,
    is_pooled,
    read_selection,
    require_validation,
    selection_text,
    step_score,
)
from training.grpo import selecting as selection_stage
from training.grpo.patients import require_patients
from training.grpo.selecting import select_policy
from training.learner.checkpoints import ADAPTER_CONFIG_FILE, PolicyFolder, VersionRecord
from training.run.progress import Display

MATCHER = FeatureMatcher(BENCHMARK_17)
COHORT = build_cohort(CohortSection(num_patients=100, num_visits=1))


def curve(*aurocs: float, rewards: tuple[float, ...] = ()) -> list[StepScore]:
    rewards = rewards or (0.0,) * len(aurocs)
    return [
        StepScore(step=step, auroc=auroc, reward=mean, parse_failure_rate=0.0)
        for step, (auroc, mean) in enumerate(zip(aurocs, rewards, strict=True), start=1)
    ]


def test_the_best_auroc_is_kept_and_the_mean_reward_decides_between_equal_ones() -> None:
    assert choose_step(curve(0.6, 0.8, 0.7), pooled=False).step == 2
    assert choose_step(curve(0.8, 0.8, 0.7, rewards=(-1.0, -0.5, 0.5)), pooled=False).step == 2
    assert choose_step(curve(0.8, 0.8), pooled=False).step == 1, "the earlier of equals"
    assert choose_step(curve(0.5), pooled=True).step == 1


def test_a_pooled_score_is_the_mean_over_a_step_and_those_beside_it() -> None:
    lucky = curve(0.5, 0.9, 0.5, 0.7, 0.7, 0.7)

    choice = choose_step(lucky, pooled=True)

    assert choice.scores == pytest.approx((0.7, 1.9 / 3, 0.7, 1.9 / 3, 0.7, 0.7))
    assert choose_step(lucky, pooled=False).step == 2
    assert choose_step(curve(0.5, 0.9, 0.5, 0.7, 0.8, 0.8), pooled=True).step == 6


def test_equal_pooled_scores_are_told_apart_by_the_pooled_reward() -> None:
    equal = curve(0.7, 0.7, 0.7, rewards=(0.0, 0.1, 0.5))

    assert choose_step(equal, pooled=True).step == 3


@pytest.mark.parametrize(
    ("every", "steps", "expected"),
    [(1, 3, [1, 2, 3]), (2, 5, [2, 4, 5]), (2, 4, [2, 4]), (9, 4, [4])],
)
def test_every_so_many_steps_are_looked_at_and_the_last(
    every: int, steps: int, expected: list[int]
) -> None:
    assert candidate_steps(GrpoSection(select_every=every, steps=steps)) == expected


def test_few_validation_patients_are_pooled_and_too_few_are_refused() -> None:
    chosen = GrpoSection(select="validation")

    assert is_pooled([1] * 49 + [0] * 500)
    assert not is_pooled([1] * 50 + [0] * 50)
    require_validation([1] * 5 + [0] * 5, chosen)
    require_validation([1], GrpoSection())
    for labels in ([1] * 4 + [0] * 90, [0] * 4 + [1] * 90, []):
        with pytest.raises(DataError, match=r"5 validation patients of each class.*select=last"):
            require_validation(labels, chosen)


def test_a_cohort_without_enough_validation_patients_is_refused_before_anything_is_trained() -> (
    None
):
    cohort = build_cohort(CohortSection(num_patients=60, num_visits=1))  # five in validation

    require_patients(cohort, RunConfig())
    with pytest.raises(DataError, match=re.escape("grpo.select=validation needs 5")):
        require_patients(cohort, RunConfig.model_validate({"grpo": {"select": "validation"}}))


def answers(*rows: tuple[int, float | None, tuple[str, ...]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "patient_id": str(number),
                "label": label,
                "probability": 0.4 if probability is None else probability,
                "parse_failed": probability is None,
                "features": list(names),
                "salient": ["pH", "Weight"],
            }
            for number, (label, probability, names) in enumerate(rows)
        ]
    )


def test_a_steps_score_has_auroc_mean_reward_and_failures() -> None:
    section = RewardSection(margin_bonus=0.0)

    found = step_score(
        4, answers((1, 0.8, ("pH",)), (0, 0.3, ()), (0, None, ())), section, MATCHER, None
    )

    readable = 0.6 * np.log(0.8) + 0.4 * 0.5, 0.6 * np.log(0.7)
    assert found.step == 4
    assert found.auroc == 1.0
    assert found.reward == pytest.approx((sum(readable) + 0.6 * np.log(0.01)) / 3)
    assert found.parse_failure_rate == pytest.approx(1 / 3)


def test_the_reward_of_a_step_is_that_of_stage_2() -> None:
    context = RewardContext(
        patient_id="0", label=1, salient_features=frozenset({"pH", "Weight"}), stability={}
    )
    parsed = ParsedTrajectory(probability=0.8, features=("pH",))
    weighted = RewardSection(attention_weighting="stability")

    found = step_score(1, answers((1, 0.8, ("pH",)), (0, 0.8, ("pH",))), weighted, MATCHER, 1.0)

    other = reward(
        parsed,
        RewardContext(patient_id="1", label=0, salient_features=frozenset()),
        RewardSection(),
        MATCHER,
        1.0,
    )
    mine = reward(parsed, context, RewardSection(), MATCHER, 1.0)
    assert found.reward == pytest.approx((mine.total + other.total) / 2)
    assert found.auroc == 0.5


class FakeSession:
    """What the choice needs of a session, without Ray and a served model."""

    def __init__(self, folder, steps: int) -> None:
        self.config = RunConfig.model_validate({"grpo": {"select": "validation", "steps": steps}})
        self.cohort = COHORT
        self.matcher = FeatureMatcher(COHORT.features)
        self.folder = folder
        self.display = Display()
        self.served: list[int] = []
        policies = PolicyFolder(folder / "grpo" / "policies")
        for version in range(steps + 1):
            adapter = f"adapter {version}".encode()
            record = VersionRecord(
                run_id="r",
                version=version,
                step=version,
                attempt=1,
                sha256=adapter_checksum(adapter),
                scaling=1.0,
                metrics={},
            )
            policies.commit(record, adapter, "{}")

    def path(self, stage):
        return self.folder / stage

    def lineage(self, stage):
        return stage

    def salient(self, patients):
        return dict.fromkeys(patients, frozenset({"pH"}))

    def case_prompts(self, patients, kind):
        return dict.fromkeys(patients)

    def serve_adapter(self, version, adapter):
        self.served.append(version.version)
        return version


def asked_of(*good: int):
    """Answers that are all right by the policies of these steps, and .5 by the others."""

    def ask(session, least, question, tell):
        labels = {patient: session.cohort.labels[patient] for patient in question.shown}
        risks = {1: 0.9, 0: 0.1} if least.version in good else {1: 0.5, 0: 0.5}
        texts = {
            patient: (
                f"<Important Features>pH</Important Features><Final answer>{risks[label]}"
                "</Final answer>",
                False,
            )
            for patient, label in labels.items()
        }
        cases = {patient: session.cohort.cases[patient] for patient in texts}
        return Answers(kind=question.kind, texts=texts, shown=cases)

    return ask


def test_the_chosen_policy_becomes_the_stages_adapter_and_the_curve_is_kept(
    tmp_path, monkeypatch
) -> None:
    session = FakeSession(tmp_path, steps=4)
    monkeypatch.setattr(selection_stage, "ask_policy", asked_of(2, 3, 4))

    select_policy(untyped(session), lambda done, total, text: None)

    found = read_selection(tmp_path / "grpo")
    assert session.served == [1, 2, 3, 4]
    assert found is not None
    assert found["step"] == 3
    assert found["pooled"]
    assert found["num_patients"] == len(COHORT.splits["val"])
    assert [each["step"] for each in found["curve"]] == [1, 2, 3, 4]
    assert [each["auroc"] for each in found["curve"]] == [0.5, 1.0, 1.0, 1.0]
    assert [each["score"] for each in found["curve"]] == pytest.approx([0.75, 2.5 / 3, 1.0, 1.0])
    adapter = tmp_path / "grpo" / "adapter"
    assert (adapter / "adapter_model.safetensors").read_bytes() == b"adapter 3"
    assert (adapter / ADAPTER_CONFIG_FILE).read_text() == "{}"
    assert selection_text(found).startswith(
        "Stage 2 keeps step 3 by AUROC on 9 validation patients (3 positive)"
    )


def test_an_interrupted_choice_asks_only_the_policies_that_were_not_asked(
    tmp_path, monkeypatch
) -> None:
    session = FakeSession(tmp_path, steps=3)
    answer = asked_of(1)

    def stopped(session, least, question, tell):
        if least.version == 2:
            raise KeyboardInterrupt
        return answer(session, least, question, tell)

    monkeypatch.setattr(selection_stage, "ask_policy", stopped)
    with pytest.raises(KeyboardInterrupt):
        select_policy(untyped(session), lambda done, total, text: None)
    monkeypatch.setattr(selection_stage, "ask_policy", answer)
    select_policy(untyped(session), lambda done, total, text: None)

    assert session.served == [1, 2, 2, 3]
    assert json.loads((tmp_path / "grpo" / "selection.json").read_text())["step"] == 1


def test_a_run_without_a_choice_has_none(tmp_path) -> None:
    assert read_selection(tmp_path) is None
