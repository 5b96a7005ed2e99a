"""A run's trajectories and patients as JSON lines."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from actors.rollouts import Rollout
from actors.trajectories import SearchedTrajectory, trajectories_table
from ehr.catalogue.names import FeatureMatcher
from ehr.cohorts.cohort import save_cohort
from ehr.errors import DataError, RunFolderError
from ehr.language.chat import ChatFrame, encode_chat
from ehr.salience.table import stored_salience
from ehr.tables import column
from services.types import BASE_POLICY
from tests.expert_cohort import tiny_cohort
from tests.scripted import FRAME
from tests.tokenizers import ByteTokenizer
from training.config.run import RunConfig
from training.grpo.batch import score_group
from training.grpo.patients import GrpoPatient
from training.interop.export import export, patient_lines, trajectory_lines
from training.interop.reward_function import TrajectoryReward
from training.rewarded import reward_contexts, reward_section
from training.run.folder import RunFolder

COHORT = tiny_cohort()
TRAIN = COHORT.splits["train"]
TOKENIZER = ByteTokenizer()


def trajectory(patient: str, rank: int, **changes: Any) -> SearchedTrajectory:
    fields: dict[str, Any] = {
        "patient_id": patient,
        "text": f"<Final answer>\n0.{rank}\n</Final answer>",
        "token_ids": (1, 2),
        "prompt_token_ids": encode_chat(TOKENIZER, FRAME, f"The record of {patient} \u00b5"),
        "model_written": (True, True),
        "value_kind": "reward",
        "reward": -0.1 * rank,
        "reward_cls": -0.2,
        "reward_att": 0.5,
        "readable": True,
        "correct": True,
        "probability": 0.1 * rank,
        "features": ("pH",),
        "num_steps": 1,
        "visit_count": 1,
        "path": str(rank),
        "rank": rank,
        "kept": rank == 1,
    }
    return SearchedTrajectory(**(fields | changes))


TABLE = trajectories_table(
    [
        trajectory(TRAIN[1], 1),
        trajectory(TRAIN[0], 2, probability=None, readable=False),
        trajectory(TRAIN[0], 1),
    ]
)


def salience_table() -> pd.DataFrame:
    """Two members that agree on pH and differ in their second feature."""
    scores = {0: {"pH": 0.7, "Glucose": 0.2}, 1: {"pH": 0.6, "Weight": 0.3}}
    rows = [
        (patient, 0, member, True, feature, scores[member].get(feature, 0.0), True)
        for patient in TRAIN
        for member in scores
        for feature in ("Heart Rate", "Glucose", "pH", "Weight", "Age & Sex")
    ]
    names = ["patient_id", "ensemble", "member", "out_of_fold", "feature", "score", "observed"]
    return pd.DataFrame(rows, columns=names)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    config = RunConfig.model_validate({"expert": {"num_salient_features": 2}})
    RunFolder(tmp_path).write_config(config, None)
    save_cohort(COHORT, tmp_path / "cohort")
    return tmp_path


def test_a_trajectory_is_a_chat_of_the_prompt_that_was_shown_and_the_answer() -> None:
    lines = list(trajectory_lines(TABLE, TOKENIZER, FRAME))

    assert [(line["patient_id"], line["rank"]) for line in lines] == [
        (TRAIN[0], 1),
        (TRAIN[0], 2),
        (TRAIN[1], 1),
    ]
    assert lines[0]["messages"] == [
        {"role": "user", "content": f"The record of {TRAIN[0]} \u00b5"},
        {"role": "assistant", "content": "<Final answer>\n0.1\n</Final answer>"},
    ]
    assert lines[1]["probability"] is None
    assert lines[2] | {"messages": []} == {
        "messages": [],
        "patient_id": TRAIN[1],
        "rank": 1,
        "value_kind": "reward",
        "reward": -0.1,
        "reward_cls": -0.2,
        "reward_att": 0.5,
        "probability": 0.1,
        "kept": True,
    }


def test_a_prompt_of_another_template_is_refused() -> None:
    table = trajectories_table([trajectory("p", 1, prompt_token_ids=(72, 105))])

    with pytest.raises(DataError, match="chat template"):
        list(trajectory_lines(table, TOKENIZER, FRAME))


def test_patients_have_the_columns_that_the_reward_reads(run_dir: Path) -> None:
    lines = list(patient_lines(run_dir, salience_table(), TOKENIZER, FRAME))

    assert [line["patient_id"] for line in lines] == list(TRAIN)
    assert "Heart Rate" in lines[0]["prompt"][0]["content"]
    assert [line["label"] for line in lines] == [COHORT.labels[patient] for patient in TRAIN]
    assert lines[0]["salient_features"] == ["Weight", "pH"]
    assert lines[0]["salient_weights"] == [0.5, 1.0]
    answer = "<Important Features>pH, Weight</Important Features><Final answer>0.9</Final answer>"
    rows: dict[str, Any] = {name: [line[name] for line in lines] for name in lines[0]}
    values = TrajectoryReward.of_run(run_dir)(completions=[answer] * len(lines), **rows)
    assert {value > 0 for value, line in zip(values, lines, strict=True) if line["label"]} == {True}


ANSWERS = (
    "<Important Features>pH, Weight, pH</Important Features><Final answer>0.9</Final answer>",
    "<Important Features>Glucose</Important Features><Final answer>0.2</Final answer>",
    "<Important Features>Heart Rate, Age, pH</Important Features><Final answer>0.4</Final answer>",
    "Nothing is known.",
)

SHUFFLED = {"method": "shuffled_salience", "shuffle_salience": True}
VARIED_SCORES = {patient: index for index, patient in enumerate(TRAIN)}


def varied_salience() -> pd.DataFrame:
    """As `salience_table`, with a second feature that differs between patients."""
    table = salience_table()
    number = column(table, "patient_id").map(VARIED_SCORES)
    table.loc[(table["feature"] == "Glucose") & (number % 3 == 0), "score"] = 0.5
    table.loc[(table["feature"] == "Heart Rate") & (number % 4 == 1), "score"] = 0.9
    return table


def rollout(patient: str, text: str) -> Rollout:
    return Rollout(
        patient_id=patient,
        prompt_token_ids=(1,),
        token_ids=(2,),
        model_written=(True,),
        generator_logprobs=(-1.0,),
        constrained=(False,),
        text=text,
        truncated=False,
        oldest_policy=BASE_POLICY,
        newest_policy=BASE_POLICY,
        num_requests=1,
        num_cut_lines=0,
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"grpo": {"rare_features": True}},
        {"grpo": {"rare_features": True, "accuracy_weight": 0.3, "credit": "by_name"}},
        {"grpo": SHUFFLED},
        {"grpo": {**SHUFFLED, "rare_features": True, "scale_parts": True}},
        {"grpo": SHUFFLED, "reward": {"attention_weighting": "stability"}},
        {"grpo": {"rare_features": True}, "reward": {"repeated_names": "wrong"}},
        {"grpo": {"accuracy_weight": 1.0}, "reward": {"margin_bonus": 0.0}},
    ],
    ids=json.dumps,
)
def test_other_trainers_pay_what_stage_2_paid(run_dir: Path, settings: dict[str, Any]) -> None:
    config = RunConfig.model_validate({"expert": {"num_salient_features": 2}, **settings})
    RunFolder(run_dir).write_config(config, None)
    table = varied_salience()
    stored = stored_salience(table, TRAIN, 2, config.expert.candidates)
    contexts = reward_contexts(COHORT, stored, config)
    paid = {}
    for patient in TRAIN:
        group = score_group(
            GrpoPatient(prompt_token_ids=(1,), context=contexts[patient], in_stage1=False),
            [rollout(patient, text) for text in ANSWERS],
            reward_section(config),
            FeatureMatcher(COHORT.features),
            config.grpo,
        )
        paid[patient] = group.rewards.tolist()

    lines = [
        json.loads(json.dumps(line)) for line in patient_lines(run_dir, table, TOKENIZER, FRAME)
    ]
    reward = TrajectoryReward.of_run(run_dir)
    for place, answer in enumerate(ANSWERS):
        rows: dict[str, Any] = {name: [line[name] for line in lines] for name in lines[0]}
        assert reward(completions=[answer] * len(lines), **rows) == [
            paid[line["patient_id"]][place] for line in lines
        ]
    if config.grpo.accuracy_weight != 1:  # C_exp differs between patients, and so does what it pays
        assert len({tuple(values) for values in paid.values()}) > 2


def test_files_hold_one_json_object_a_line(run_dir: Path) -> None:
    (run_dir / "search").mkdir()
    TABLE.to_parquet(run_dir / "search" / "trajectories.parquet")

    kept = export(run_dir, open_model=lambda _: (TOKENIZER, FRAME))
    every = export(run_dir, every_trajectory=True, open_model=lambda _: (TOKENIZER, FRAME))

    assert kept[0].endswith("export/trajectories.jsonl: 2 lines")
    assert every[0].endswith("export/trajectories.jsonl: 3 lines")
    assert every[1] == "patients.jsonl: not written, the stage expert has not run"
    text = (run_dir / "export" / "trajectories.jsonl").read_text()
    assert [len(json.loads(line)["messages"]) for line in text.splitlines()] == [2, 2, 2]


def test_a_folder_without_a_run_and_a_run_without_results_are_refused(
    tmp_path: Path, run_dir: Path
) -> None:
    with pytest.raises(RunFolderError, match=r"no config\.json"):
        export(tmp_path / "none")
    with pytest.raises(DataError, match="found neither"):
        export(run_dir)


def test_a_run_is_exported_with_the_chat_frame_that_it_ran_with(run_dir: Path) -> None:
    (run_dir / "search").mkdir()
    TABLE.to_parquet(run_dir / "search" / "trajectories.parquet")
    content = {"files": "0", "chat frame": FRAME.text}
    RunFolder(run_dir).stage("search").begin({"settings": {"model content": content}})
    today = ChatFrame(prefix=f"Today: 2 January. {FRAME.prefix}", suffix=FRAME.suffix)

    export(run_dir, open_model=lambda _: (TOKENIZER, today))

    text = (run_dir / "export" / "trajectories.jsonl").read_text()
    assert json.loads(text.splitlines()[0])["messages"][0]["content"].startswith("The record of")
