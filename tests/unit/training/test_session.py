from pathlib import Path

import pytest

from services.cluster import check_requirements
from training.config_loading import load_config
from training.session import requirements

CONFIGS = Path(__file__).parents[3] / "configs"
STAGES = ("cohort", "expert", "search", "sft", "grpo", "evaluate", "report")


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
