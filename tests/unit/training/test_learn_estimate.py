import pytest

from tests.typed import known
from tests.unit.training.test_arms import config, unit
from training.config.run import RunConfig
from training.experiments.arms import unit_config
from training.experiments.estimate import (
    cost_line,
    left_line,
    mean_length,
    seconds_left,
    unit_cost,
)


def cost(name: str, **evaluate: object):
    tree = config().model_dump()
    tree["evaluate"] |= evaluate
    own = unit_config(RunConfig.model_validate(tree), unit(name))
    return unit_cost(own, unit(name), 100, {"train": 136, "val": 20, "test": 84})


def test_tokens_of_a_unit_are_counted_from_its_settings() -> None:
    section = config()
    found = cost("eag_rl")
    groups = section.grpo.steps * section.grpo.patients_per_step
    answers = known(section.evaluate.num_patients) + 2 * section.evaluate.faithfulness_patients

    assert found.prefill_tokens == 100 * (groups + answers)
    assert found.decode_tokens == (
        groups * section.grpo.group_size * section.grpo.max_new_tokens
        + answers * section.evaluate.max_new_tokens
    )
    assert found.learner_tokens == groups * (
        100 + section.grpo.group_size * section.grpo.max_new_tokens
    )


def test_an_arm_that_trains_nothing_costs_its_answers_only() -> None:
    assert cost("stage1").learner_tokens == 0
    assert cost("sft").learner_tokens == 100 * 136
    assert cost("stage1").weight < cost("eag_rl").weight


def test_dynamic_sampling_may_sample_every_refill_and_trains_one_batch() -> None:
    section = config().grpo
    refilled = section.max_refills * section.steps * section.patients_per_step
    without, found = cost("stage1_grpo"), cost("stage1_dapo")

    assert section.max_refills == 2
    assert found.prefill_tokens - without.prefill_tokens == 100 * refilled
    assert found.decode_tokens - without.decode_tokens == (
        refilled * section.group_size * section.max_new_tokens
    )
    assert found.learner_tokens == without.learner_tokens
    assert found.weight == without.weight  # time is told by what is certain


def test_choosing_a_step_asks_every_policy_about_the_validation_patients() -> None:
    section = config().grpo
    without, found = cost("eag_rl"), cost("eag_rl_selected")

    assert found.prefill_tokens - without.prefill_tokens == section.steps * 20 * 100
    assert found.decode_tokens - without.decode_tokens == (
        section.steps * 20 * section.max_new_tokens
    )
    assert found.learner_tokens == without.learner_tokens


def test_an_answer_that_thinks_may_take_its_whole_budget() -> None:
    own = {"num_patients": 10, "max_new_tokens": 64, "faithfulness_patients": 0}

    assert cost("vanilla", **own).decode_tokens == 10 * 64
    assert cost("think_then_answer_json", **own).decode_tokens == 10 * 128


def test_another_cohorts_patients_are_answered_for_as_well() -> None:
    own = {"num_patients": 10, "num_samples": 3, "max_new_tokens": 200}
    without = cost("stage1", **own)
    found = cost("stage1", other_cohort={"num_patients": 60}, **own)

    assert found.prefill_tokens - without.prefill_tokens == 10 * 100
    assert found.decode_tokens - without.decode_tokens == 10 * 3 * 200
    assert not found.leaves_out_other_cohort
    assert "not counted" not in cost_line({"a": found}, {})


def test_another_cohort_of_unknown_size_is_said_to_be_left_out() -> None:
    without = cost("stage1", num_patients=None)
    found = cost("stage1", num_patients=None, other_cohort={"num_patients": 60})

    assert found.decode_tokens == without.decode_tokens
    assert found.leaves_out_other_cohort
    assert not without.leaves_out_other_cohort
    assert cost_line({"a": found}, {}).endswith("evaluate.other_cohort are not counted")
    assert "not counted" not in cost_line({"a": without}, {})


def test_time_left_is_known_from_finished_units_only() -> None:
    costs = {"a": cost("stage1"), "b": cost("eag_rl"), "c": cost("eag_rl")}

    assert seconds_left(costs, {}) is None
    assert seconds_left(costs, {"b": 60.0}) == pytest.approx(
        60 * (costs["a"].weight + costs["c"].weight) / costs["b"].weight
    )
    assert seconds_left(costs, {"a": 1.0, "b": 1.0, "c": 1.0}) == 0


def test_lines_for_the_terminal_say_what_is_left() -> None:
    costs = {"a": cost("stage1"), "b": cost("eag_rl")}

    assert cost_line(costs, {"a": 1.0}).startswith("1 of 2 units to do: at most 3,200 prompt")
    assert "first one is done" in left_line(None, 2)
    assert left_line(150, 1).startswith("1 unit left, about 2 min 30 s")
    assert left_line(150, 2).startswith("2 units left")
    assert left_line(0, 0) == "all units are done"


def test_a_mean_length_is_rounded_up() -> None:
    assert mean_length([10, 11]) == 11
    assert mean_length([]) == 0


def test_every_order_of_the_features_is_asked_about_all_patients() -> None:
    own = {"num_patients": 10, "num_samples": 3, "max_new_tokens": 200}
    orders = {"feature_order_shuffle": [0, 0.5, 1], "feature_order_seed": [1, 2]}
    without, found = cost("stage1", **own), cost("stage1", **own, **orders)

    assert found.prefill_tokens - without.prefill_tokens == 4 * 10 * 100
    assert found.decode_tokens - without.decode_tokens == 4 * 10 * 3 * 200
