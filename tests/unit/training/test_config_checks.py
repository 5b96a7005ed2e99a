"""Settings that contradict each other: refused when a configuration is loaded, both named."""

from pathlib import Path

import pytest

from ehr.errors import ConfigurationError
from training.config.loading import load_config

CONFIGS = Path(__file__).parents[3] / "configs"
ADAPTERS = "generator.sync=adapter"

CONTRADICTIONS = {
    "a row twice": (["evaluate.methods=[concare, vanilla, concare]"], ["evaluate.methods"]),
    "no row": (["evaluate.methods=[]"], ["evaluate.methods"]),
    "no row left of Stage 2": (
        ["grpo.enabled=false", "evaluate.methods=[stage2]"],
        ["evaluate.methods", "grpo.enabled=false"],
    ),
    "no row left of either stage": (
        ["sft.enabled=false", "grpo.enabled=false", "evaluate.methods=[stage1, stage2]"],
        ["evaluate.methods", "sft.enabled=false", "grpo.enabled=false"],
    ),
    "an arm twice": (["learn.arms=[eag_rl, eag_rl]"], ["learn.arms"]),
    "a seed twice": (["learn.seeds=[17, 17]"], ["learn.seeds"]),
    "a size twice": (["learn.train_patients=[null, null]"], ["learn.train_patients"]),
    "rank above the engine's": (
        [ADAPTERS, "generator.max_lora_rank=8", "learner.lora_rank=64"],
        ["learner.lora_rank", "generator.max_lora_rank"],
    ),
    "a rank the engine has no room for": (
        [ADAPTERS, "generator.max_lora_rank=100"],
        ["generator.max_lora_rank", ADAPTERS],
    ),
    "rows too short for a prompt": (
        ["learner.max_row_tokens=900"],
        ["learner.max_row_tokens", "prompt.max_prompt_tokens"],
    ),
    "rows too short for a rollout": (
        ["learner.max_row_tokens=1300", "grpo.max_new_tokens=900"],
        ["learner.max_row_tokens", "grpo.max_new_tokens"],
    ),
    "context too short for a search": (
        ["search.final_tokens=1100"],
        ["model.max_model_len", "search.question_tokens"],
    ),
    "context too short for sampled answers": (
        ["search.method=samples", "prompt.kind=short_answer", "search.final_tokens=1100"],
        ["model.max_model_len", "search.final_tokens"],
    ),
    "context too short for an answer": (
        ["evaluate.max_new_tokens=1200"],
        ["model.max_model_len", "prompt.max_prompt_tokens"],
    ),
    "context too short for reasoning": (
        ["evaluate.methods=[think_then_answer]", "prompt.think_budget_tokens=1100"],
        ["model.max_model_len", "prompt.max_prompt_tokens"],
    ),
    "exact risks without a pattern": (
        ["grpo.credit=exact_risk", "prompt.format=free"],
        ["grpo.credit", "prompt.format"],
    ),
    "rows too short for the branches of a risk": (
        ["grpo.credit=exact_risk", "learner.max_row_tokens=1284"],  # enough without
        ["learner.max_row_tokens", "set it to 1294"],
    ),
    "more kept than made": (
        ["search.num_rollouts=1"],
        ["search.num_kept_trajectories", "search.num_rollouts"],
    ),
    "sampling again without batches for it": (
        ["grpo.dynamic_sampling=true", "grpo.max_refills=0"],
        ["grpo.dynamic_sampling", "grpo.max_refills"],
    ),
    "a control of a reward that is off": (
        ["grpo.shuffle_salience=true", "reward.accuracy_weight=1"],
        ["grpo.shuffle_salience", "reward.accuracy_weight"],
    ),
    "a variation of a reward that is off in Stage 2": (
        ["grpo.rare_features=true", "grpo.accuracy_weight=1"],
        ["grpo.rare_features", "grpo.accuracy_weight"],
    ),
    "two weightings": (
        ["grpo.rare_features=true", "reward.attention_weighting=stability"],
        ["grpo.rare_features", "reward.attention_weighting"],
    ),
    "without Stage 1, with it": (
        ["grpo.method=without_stage1"],
        ["grpo.method", "sft.enabled"],
    ),
    "Stage 1 in the name only": (
        ["grpo.method=stage1_grpo", "sft.enabled=false"],
        ["grpo.method", "sft.enabled"],
    ),
    "without the attention reward, with it": (
        ["grpo.method=without_attention_reward"],
        ["grpo.method", "grpo.accuracy_weight"],
    ),
    "without the adaptive clip, with it": (
        ["grpo.method=without_adaptive_clip"],
        ["grpo.method", "grpo.clip_high_min"],
    ),
    "shuffled in the name only": (
        ["grpo.method=shuffled_salience"],
        ["grpo.method", "grpo.shuffle_salience"],
    ),
    "shuffled under the name of another row": (
        ["grpo.shuffle_salience=true"],
        ["grpo.shuffle_salience=true", "'eag_rl'", "grpo.method=shuffled_salience"],
    ),
    "shuffled, and called rare": (
        ["grpo.shuffle_salience=true", "grpo.rare_features=true", "grpo.method=rare_features"],
        ["grpo.shuffle_salience=true", "'rare_features'", "grpo.method=shuffled_salience"],
    ),
    "selected in the name only": (
        ["grpo.method=eag_rl_selected"],
        ["grpo.method", "grpo.select"],
    ),
    "a discharge that nobody knows": (["cohort.gap_days=3"], ["cohort.gap_days", "cohort.source"]),
    "an epoch by a half that is not there": (
        ["expert.members=1", "expert.selection=cross_validation"],
        ["expert.selection", "expert.members"],
    ),
    "warm-up beyond the last step": (["grpo.warmup_steps=3"], ["grpo.warmup_steps", "grpo.steps"]),
    "more updates than groups": (
        ["grpo.updates_per_step=3"],
        ["grpo.updates_per_step", "grpo.patients_per_step"],
    ),
    "files that nobody reads": (["cohort.path=/data/tjh"], ["cohort.path", "cohort.source"]),
    "files of another cohort that nobody reads": (
        ["evaluate.other_cohort={source: synthetic, path: /data}"],
        ["evaluate.other_cohort.path", "evaluate.other_cohort.source"],
    ),
    "visits that nobody has": (["cohort.min_visits=4"], ["cohort.min_visits", "cohort.num_visits"]),
    "one port for two": (["serve.port=8265"], ["serve.port", "cluster.dashboard_port"]),
    "a GPU and a half": (["learner.gpus_per_worker=1.5"], ["learner.gpus_per_worker"]),
    "heads that do not divide": (
        ["expert.num_heads=3"],
        ["expert.hidden_size", "expert.num_heads"],
    ),
    "a search of labels for results": (["search.split=test"], ["search.split", "search.value"]),
}


@pytest.mark.parametrize(("settings", "named"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_settings_that_contradict_each_other_are_named_when_they_are_loaded(settings, named):
    with pytest.raises(ConfigurationError) as caught:
        load_config([CONFIGS / "smollm2_demo.yaml"], settings)

    assert [name for name in named if name not in str(caught.value)] == []


@pytest.mark.parametrize(
    "settings",
    [
        ["grpo.enabled=false", "evaluate.methods=[stage1, stage2]"],
        ["generator.max_lora_rank=8", "learner.lora_rank=64"],  # merged: nothing is served as LoRA
        [ADAPTERS, "generator.max_lora_rank=64", "learner.lora_rank=64"],
        ["sft.enabled=false", "search.num_rollouts=1"],  # no search
        ["grpo.enabled=false", "grpo.method=without_attention_reward"],  # no such row
        ["learner.gpus_per_worker=2"],
        ["learner.gpus_per_worker=0.5"],
        ["cluster.dashboard=false", "serve.port=8265"],
        ["learner.max_row_tokens=2048"],  # a row as long as the context holds everything
        ["cohort.path=null"],
        ["expert.members=1", "expert.selection=validation"],
        ["grpo.method=shuffled_salience", "grpo.shuffle_salience=true"],
        ["grpo.enabled=false", "grpo.shuffle_salience=true"],
    ],
)
def test_settings_that_look_like_a_contradiction_and_are_none(settings):
    load_config([CONFIGS / "smollm2_demo.yaml"], settings)


@pytest.mark.parametrize(
    ("arms", "settings"),
    [
        ("[without_stage1]", ["evaluate.methods=[stage1]"]),
        ("[without_stage1]", ["evaluate.methods=[stage1, vanilla]"]),
        ("[vanilla]", ["grpo.method=shuffled_salience", "grpo.shuffle_salience=true"]),
    ],
)
def test_an_experiment_without_stage_1_has_the_rows_of_its_arms(arms, settings):
    from training.experiments.arms import shared_config

    config = load_config([CONFIGS / "smollm2_demo.yaml"], [f"learn.arms={arms}", *settings])

    assert shared_config(config).sft.enabled is False
