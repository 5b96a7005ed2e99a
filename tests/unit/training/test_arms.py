from pathlib import Path

import pytest
import yaml

from training.config.loading import load_config
from training.config.run import RunConfig
from training.experiments.arms import ARMS, unit_config, units_of

CONFIGS = Path(__file__).parents[3] / "configs"
PRESETS = {
    "stage1_grpo": "grpo",
    "stage1_dapo": "dapo",
    "shuffled_salience": "shuffled_salience",
    "rare_features": "rare_features",
    "without_attention_reward": "without_attention_reward",
    "without_adaptive_clip": "without_adaptive_clip",
    "without_stage1": "without_stage1",
}


def config(**learn: object) -> RunConfig:
    tree = load_config([CONFIGS / "smollm2_demo.yaml"]).model_dump()
    tree["learn"] |= learn
    return RunConfig.model_validate(tree)


def unit(name: str, seed: int = 17):
    found = units_of(config(arms=(name,), seeds=(seed,)))
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(("arm", "preset"), PRESETS.items())
def test_an_arm_is_what_its_preset_makes_of_a_run(arm: str, preset: str) -> None:
    path = CONFIGS / "presets" / f"{preset}.yaml"
    made = load_config([CONFIGS / "smollm2_demo.yaml", path])

    found = unit_config(config(), unit(arm, made.grpo.seed))

    assert found.grpo == made.grpo
    assert found.sft == made.sft
    assert set(yaml.safe_load(path.read_text())) <= {"grpo", "sft"}


@pytest.mark.parametrize("name", ARMS)
def test_a_unit_is_one_method_and_changes_nothing_that_arms_share(name: str) -> None:
    base = config()

    found = unit_config(base, unit(name))

    assert len(found.evaluate.methods) == 1
    for section in ("cohort", "prompt", "reward", "model", "expert", "search", "learner"):
        assert getattr(found, section) == getattr(base, section)
    unchanged = {"methods": base.evaluate.methods}
    assert found.evaluate.model_copy(update=unchanged) == base.evaluate


def test_the_seed_is_that_of_the_arms_own_training() -> None:
    trained, direct = (unit_config(config(), unit(name, 5)) for name in ("eag_rl", "sft"))

    assert (trained.grpo.seed, trained.direct_sft.seed) == (5, config().direct_sft.seed)
    assert (direct.direct_sft.seed, direct.grpo.seed) == (5, config().grpo.seed)
    assert direct.grpo.enabled is False
    assert trained.evaluate.seed == direct.evaluate.seed == config().evaluate.seed


def test_the_untrained_arm_is_asked_as_the_trained_ones_are() -> None:
    tree = config().model_dump()
    tree["prompt"]["kind"] = "short_answer"
    tree["search"]["method"] = "samples"

    found = unit_config(RunConfig.model_validate(tree), unit("untrained"))

    assert found.evaluate.methods == ("short_answer",)


def test_seeds_come_outermost_and_what_trains_nothing_is_asked_once() -> None:
    units = units_of(config(arms=("eag_rl", "stage1", "stage1_grpo"), seeds=(1, 2)))

    assert [each.name for each in units] == [
        "stage1/seed-1",
        "stage1_grpo/seed-1",
        "eag_rl/seed-1",
        "stage1_grpo/seed-2",
        "eag_rl/seed-2",
    ]


def test_what_was_asked_once_is_not_asked_again_at_another_seed() -> None:
    made = units_of(config(arms=("stage1", "eag_rl"), seeds=(1,)))

    units = units_of(config(arms=("untrained", "stage1", "eag_rl"), seeds=(2,)), made)

    assert [each.name for each in units] == ["untrained/seed-2", "stage1/seed-1", "eag_rl/seed-2"]


@pytest.mark.parametrize("learn", [{"arms": ()}, {"arms": ("sft", "sft")}, {"seeds": (1, 1)}])
def test_an_experiment_names_each_arm_and_seed_once(learn: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="learn"):
        config(**learn)
