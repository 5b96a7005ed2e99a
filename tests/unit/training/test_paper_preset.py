"""The presets `paper` and `tuned`: all are valid, and `paper` says what the paper says."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.typed import known
from training.config.loading import load_config
from training.config.run import RunConfig
from training.experiments.arms import shared_config
from training.run.pipeline import OPERATIONAL

CONFIGS = Path(__file__).parents[3] / "configs"
PRESETS = CONFIGS / "presets"
MODELS = {
    "tjh_qwen2.5_7b": "Qwen/Qwen2.5-7B-Instruct",
    "tjh_qwen2.5_3b": "Qwen/Qwen2.5-3B-Instruct",
    "tjh_llama3.1_8b": "meta-llama/Llama-3.1-8B-Instruct",
}
VARIANTS = (
    "grpo",
    "dapo",
    "without_stage1",
    "without_stage2",
    "without_attention_reward",
    "without_adaptive_clip",
    "shuffled_salience",
    "rare_features",
    "selected",
)
STATED = {
    "cohort.seed": (42, "App. F: fixed random seed (42) for dataset splitting"),
    "cohort.gap_days": (0, "Table 3"),
    "cohort.train_patients": (None, "Table 3"),
    "prompt.kind": ("question_decomposition", "3.2"),
    "prompt.format": ("free", "3.2"),
    "prompt.feature_names": ("free", "Table 4"),
    "prompt.units": (False, "Table 4"),
    "prompt.reference_ranges": (False, "Table 4"),
    "prompt.time": ("dates", "Table 4"),
    "prompt.worked_example": (True, "App. D: Example Output"),
    "reward.accuracy_weight": (0.6, "App. F: lambda_2"),
    "reward.decision_threshold": (0.5, "3.2: theta = 0.5"),
    "reward.score": ("log", "Eq. 4"),
    "reward.attention_weighting": ("none", "Eq. 6"),
    "reward.repeated_names": ("ignored", "Eq. 6"),
    "expert.salience": ("attention", "3.2"),
    "expert.members": (1, "3.2: a pretrained expert EHR model"),
    "expert.whole_members": (0, "3.2"),
    "expert.num_ensembles": (1, "3.2"),
    "expert.candidates": ("paper", "Table 4"),
    "expert.num_salient_features": (5, "Table 4: Expert Features"),
    "expert.selection": ("validation", "4.1"),
    "expert.time_attention": ("paper", "3.2: Ma et al. 2020"),
    "search.method": ("tree", "Alg. 1"),
    "search.value": ("reward", "Alg. 1"),
    "search.split": ("train", "3.2"),
    "search.num_rollouts": (8, "App. F: N"),
    "search.num_candidates": (3, "App. F: d"),
    "search.max_depth": (7, "App. F: T"),
    "search.num_kept_trajectories": (2, "App. F: k"),
    "search.exploration_weight": (1.0, "App. F: lambda_1"),
    "search.answers": ("eager", "Alg. 1, line 15"),
    "search.only_correct": (False, "Alg. 1, line 40"),
    "learner.lora_rank": (64, "App. F"),
    "learner.lora_alpha": (32, "App. F"),
    "sft.reduction": ("sum", "Eq. 8"),
    "direct_sft.num_predictions": (1000, "App. F: 500 positive, 500 negative"),
    "direct_sft.replay": (True, "App. F"),
    "grpo.group_size": (8, "App. F: the rollout number during training"),
    "grpo.learning_rate": (3e-6, "App. F"),
    "grpo.clip_low": (0.2, "App. F: epsilon"),
    "grpo.clip_high_min": (0.2, "App. F: epsilon_min"),
    "grpo.clip_high_max": (0.4, "App. F: epsilon_max"),
    "grpo.clip_least_span": (0.0, "Eq. 10"),
    "grpo.aggregation": ("sequence_mean", "Eq. 18"),
    "grpo.advantage_scale": ("group", "Eq. 14"),
    "grpo.credit": ("trajectory", "Eq. 17"),
    "grpo.scale_parts": (False, "Eq. 7"),
    "grpo.accuracy_weight": (None, "App. F: one lambda_2"),
    "grpo.importance_cap": (None, "Eq. 15"),
    "grpo.salient_tokens": ("features_block", "Eq. 9"),
    "grpo.temperature": (1.0, "Eq. 13"),
    "grpo.dynamic_sampling": (False, "App. F: DAPO's"),
    "grpo.rare_features": (False, "Eq. 6"),
    "grpo.shuffle_salience": (False, "3.3"),
    "grpo.max_depth": (7, "App. F: T"),
    "grpo.select": ("validation", "4.1, App. F"),
    "evaluate.num_patients": (None, "Table 3: 200 test patients"),
    "evaluate.balance": (False, "Table 3"),
    "evaluate.max_depth": (7, "App. F: T"),
    "learn.seeds": ((17,), "App. F: each experiment is run once"),
}
"""Value and place in the paper of each setting that it states."""
TABLE_ROWS = {
    "evaluate.methods": {
        *("vanilla", "think_then_answer", "question_decomposition", "sft", "stage1", "stage2"),
        "concare",
    },
    "learn.arms": {
        *("vanilla", "think_then_answer", "untrained", "sft", "stage1", "stage1_grpo"),
        *("stage1_dapo", "eag_rl", "without_stage1", "without_attention_reward"),
        "without_adaptive_clip",
    },
}
"""Rows of Tables 1 and 2; `untrained` is Question Decomposition, and `stage1` is w/o Stage-2."""

OURS = (
    "not stated in the paper: OUR choice because ",
    "the paper contradicts itself: OUR choice because ",
)


def configured(model: str, *presets: str) -> RunConfig:
    return load_config(
        [CONFIGS / f"{model}.yaml", *(PRESETS / f"{each}.yaml" for each in presets)],
        ["cohort.path=data/tjh"],
    )


def setting(config: RunConfig, name: str) -> Any:
    section, _, key = name.partition(".")
    return getattr(getattr(config, section), key)


def set_in(preset: str) -> dict[str, object]:
    tree = yaml.safe_load((PRESETS / f"{preset}.yaml").read_text())
    return {f"{section}.{key}": value for section in tree for key, value in tree[section].items()}


def comments(preset: str) -> dict[str, str]:
    """What stands above or behind each setting of a preset."""
    found: dict[str, str] = {}
    section, above = "", ""
    for line in (PRESETS / f"{preset}.yaml").read_text().splitlines():
        if match := re.match(r"(\w+):$", line):
            section = match[1]
        elif match := re.match(r"  (\w+): [^#]*(#.*)?$", line):
            found[f"{section}.{match[1]}"] = f"{above} {match[2] or ''}".strip("# ")
        above = line.strip("# ") if line.startswith("  #") else ""
    return found


@pytest.mark.parametrize(("model", "preset"), itertools.product(MODELS, ("paper", "tuned")))
def test_every_model_and_preset_are_a_run_and_an_experiment(model: str, preset: str) -> None:
    config = configured(model, preset)

    assert config.run.name == model
    assert config.model.name == MODELS[model]
    assert config.cohort.source == "tjh"
    assert config.prompt.format == "free"
    assert shared_config(config).sft.enabled


@pytest.mark.parametrize(("preset", "variant"), itertools.product(("paper", "tuned"), VARIANTS))
def test_every_further_preset_goes_behind_both(preset: str, variant: str) -> None:
    # For one model: files of models and presets set different keys, as a test below says.
    config = configured("tjh_qwen2.5_7b", preset, variant)

    assert config.grpo.enabled == (variant != "without_stage2")
    assert config.sft.enabled == (variant != "without_stage1")
    assert config.grpo.group_size == 8


@pytest.mark.parametrize("model", MODELS)
def test_the_paper_preset_has_the_papers_values(model: str) -> None:
    config = configured(model, "paper")

    found = {name: setting(config, name) for name in STATED}
    assert found == {name: value for name, (value, _) in STATED.items()}
    for name, rows in TABLE_ROWS.items():
        assert rows <= set(setting(config, name))


def test_a_setting_of_the_paper_preset_has_its_place_or_is_marked_as_ours() -> None:
    said = comments("paper")

    assert said.keys() == set_in("paper").keys()
    ours = {name for name, comment in said.items() if comment.startswith(OURS)}
    assert all(len(said[name].partition("because ")[2]) > 5 for name in ours)
    assert {name for name in ours if said[name].startswith(OURS[1])} == {
        *("cohort.stratified", "cohort.min_visits", "prompt.missing"),
    }
    assert said.keys() - ours == STATED.keys() | TABLE_ROWS.keys()
    place = re.compile(r"Table|App\.|Eq\.|Alg\.|\d\.\d")
    assert all(place.search(said[name]) for name in said.keys() - ours)


@pytest.mark.parametrize("section", ["reward", "search", "sft", "direct_sft", "grpo"])
def test_the_paper_preset_leaves_no_setting_of_the_method_to_a_default(section: str) -> None:
    elsewhere = {  # what kind of run it is, and seeds
        *("grpo.method", "grpo.enabled", "sft.enabled", "search.usefulness_weight"),
        *(f"{section}.seed", "direct_sft.validation_share"),
    }

    model = known(RunConfig.model_fields[section].annotation)
    fields = {f"{section}.{key}" for key in model.model_fields}

    assert fields - OPERATIONAL - elsewhere <= set_in("paper").keys()


def test_the_tuned_preset_gives_a_reason_wherever_it_differs() -> None:
    paper, tuned = set_in("paper"), set_in("tuned")

    differing = {name for name in tuned if tuned[name] != paper[name]}
    said = comments("tuned")
    assert tuned.keys() == paper.keys()
    assert differing == {name for name, comment in said.items() if comment}
    for name in differing:
        before, _, reason = said[name].removeprefix("instead of ").partition(": ")
        assert yaml.safe_load(before) == paper[name]
        assert len(reason) > 5
    assert {"grpo.learning_rate", "grpo.importance_cap", "grpo.balance"} <= differing


def test_a_file_of_a_model_says_nothing_of_the_method() -> None:
    for model in MODELS:
        tree = yaml.safe_load((CONFIGS / f"{model}.yaml").read_text())
        said = {f"{section}.{key}" for section in tree for key in tree[section]}
        assert not said & set_in("paper").keys()
