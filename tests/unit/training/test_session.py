from pathlib import Path

import pandas as pd
import pytest

from ehr.catalogue import AGE_AND_SEX
from ehr.rewards import Salience
from services.cluster import check_requirements
from training.config.loading import load_config
from training.run.folder import RunFolder
from training.run.progress import Display
from training.run.requirements import requirements
from training.run.session import Session

CONFIGS = Path(__file__).parents[3] / "configs"
STAGES = ("cohort", "expert", "search", "sft", "grpo", "direct_sft", "evaluate", "report")


@pytest.mark.parametrize("name", ["demo", "tiny", "tjh_cpu"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_shipped_cpu_configurations_fit_on_two_cpus(name, stage):
    check_requirements(
        requirements(load_config([CONFIGS / f"{name}.yaml"]), stage), [{"CPU": 2.0, "GPU": 0.0}]
    )


def test_a_stage_asks_for_its_own_parts_and_the_generator_only():
    asked = requirements(load_config([CONFIGS / "demo.yaml"]), "grpo")

    assert [each.name for each in asked] == ["generator replica", "learner rank"]


def test_stages_that_use_no_cluster_ask_for_nothing():
    config = load_config([CONFIGS / "tjh_qwen2.5_7b.yaml"])

    assert requirements(config, "cohort") == requirements(config, "report") == []


def test_rewards_get_the_salience_and_its_stability_from_the_stored_table(tmp_path):
    scores = {0: (0.6, 0.3, 0.1), 1: (0.6, 0.1, 0.3)}
    rows = [
        ("p", 0, member, True, name, score, True)
        for member, row in scores.items()
        for name, score in zip(("a", "b", AGE_AND_SEX), row, strict=True)
    ]
    columns = ["patient_id", "ensemble", "member", "out_of_fold", "feature", "score", "observed"]
    (tmp_path / "expert").mkdir()
    pd.DataFrame(rows, columns=columns).to_parquet(tmp_path / "expert" / "salience.parquet")
    config = load_config([CONFIGS / "tiny.yaml"], ["expert.num_salient_features=2"])
    session = Session(config, RunFolder(tmp_path), Display())

    salience = session.salience(["p"])["p"]

    # The means of b and of age and sex are equal: b comes first in the schema.
    assert salience == Salience(features=frozenset({"a", "b"}), stability={"a": 1.0, "b": 0.5})
    assert session.salient(["p"]) == {"p": salience.features}


def session_of(folder, *overrides):
    config = load_config([CONFIGS / "tiny.yaml"], [*overrides])
    return Session(config, RunFolder(folder), Display())


def written(folder, session, dtype):
    model = {"name": "m", "dtype": dtype, "dtype_reason": "it was faster"}
    session.folder.write_config(session.config, model)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_resumed_run_goes_on_in_the_type_it_began_with(tmp_path, dtype):
    written(tmp_path, session_of(tmp_path, "model.dtype=auto"), dtype)

    resumed = session_of(tmp_path, "model.dtype=auto")

    assert resumed.precision.parameter_type == resumed.model_section.dtype == dtype
    assert resumed.precision.reason == "it was faster"


def test_a_type_that_is_named_wins_over_what_auto_came_to(tmp_path):
    written(tmp_path, session_of(tmp_path, "model.dtype=auto"), "bfloat16")

    assert session_of(tmp_path, "model.dtype=float32").model_section.dtype == "float32"


def test_a_type_that_was_named_is_no_answer_to_auto(tmp_path):
    named = session_of(tmp_path, "model.dtype=bfloat16")
    written(tmp_path, named, "bfloat16")

    assert named.folder.recorded_precision() is None


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["generator.gpus_per_replica=1", "learner.gpus_per_worker=1"], "GPUs multiply"),
        (["generator.gpus_per_replica=1"], "on this CPU"),
        (["learner.gpus_per_worker=1"], "on this CPU"),
        (["generator.gpus_per_replica=1", "sft.enabled=false", "grpo.enabled=false"], "GPUs"),
    ],
)
def test_learner_and_generator_get_one_type_and_a_cpu_among_them_decides_it(
    tmp_path, overrides, expected
):
    session = session_of(tmp_path, "model.dtype=auto", *overrides)

    assert expected in session.precision.reason
