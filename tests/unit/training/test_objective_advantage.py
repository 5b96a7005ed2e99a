import math

import pytest
import torch

from ehr.errors import TrainingError
from training.objective.advantage import (
    batch_advantages,
    group_advantages,
    is_dead,
    weigh_parts,
)


def test_advantages_have_mean_zero_and_population_deviation_one():
    advantage = group_advantages(torch.tensor([1.0, 2.0, 3.0, 4.0]))

    # mean 2.5, population variance 1.25
    expected = torch.tensor([-1.5, -0.5, 0.5, 1.5], dtype=torch.float64) / math.sqrt(1.25)
    torch.testing.assert_close(advantage, expected)


@pytest.mark.parametrize("group_size", range(2, 17))
@pytest.mark.parametrize("value", [0.7, -2.763102111592855, 0.1 + 0.2])
def test_equal_rewards_give_exactly_zero(group_size, value):
    reward = torch.full((group_size,), value, dtype=torch.float32)

    assert group_advantages(reward).tolist() == [0.0] * group_size


def test_rewards_within_the_span_are_a_dead_group():
    assert is_dead(torch.tensor([0.5, 0.5 + 9e-7], dtype=torch.float64))
    assert not is_dead(torch.tensor([0.5, 0.5 + 2e-6], dtype=torch.float64))


def test_a_live_group_with_a_tiny_span_is_still_normalized():
    reward = torch.tensor([0.5, 0.5 + 2e-6], dtype=torch.float64)

    torch.testing.assert_close(
        group_advantages(reward), torch.tensor([-1.0, 1.0], dtype=torch.float64)
    )


def test_parts_weigh_what_their_weight_says_whatever_their_scale():
    cls, att = torch.tensor([-4.0, 0.0, -4.0, 0.0]), torch.tensor([0.01, 0.01, 0.02, 0.02])

    found = weigh_parts([group_advantages(cls), group_advantages(att)], [0.6, 0.4])

    expected = torch.tensor([-1.0, 0.2, -0.2, 1.0], dtype=torch.float64)
    torch.testing.assert_close(found, expected)


def test_an_equal_part_counts_for_nothing():
    reward = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)

    equal = group_advantages(torch.full((3,), 0.1 + 0.2))

    found = weigh_parts([group_advantages(reward), equal], [0.6, 0.4])

    torch.testing.assert_close(group_advantages(found), group_advantages(reward))
    assert is_dead(weigh_parts([equal, equal], [0.6, 0.4]))


def test_a_batch_has_one_deviation_for_all_groups():
    small, large = torch.tensor([0.0, 1.0]), torch.tensor([10.0, 16.0])
    dead = torch.full((3,), 0.1 + 0.2)

    found = batch_advantages([small, dead, large])

    # Differences from the means are .5 and 3; 7 trajectories share one mean square.
    deviation = math.sqrt((2 * 0.5**2 + 2 * 3.0**2) / 7)
    assert found[0].tolist() == pytest.approx([-0.5 / deviation, 0.5 / deviation])
    assert found[1].tolist() == [0.0] * 3
    assert found[2].tolist() == pytest.approx([-3 / deviation, 3 / deviation])
    assert torch.cat(found).square().mean().item() == pytest.approx(1)
    assert [each.tolist() for each in batch_advantages([dead, dead])] == [[0.0] * 3] * 2


def test_one_deviation_keeps_the_log_score_where_the_risk_is_and_a_groups_own_does_not():
    # Patients of risk .7, all answered .6 to .8: the log score's best answer is what is given.
    answers = torch.tensor([0.6, 0.65, 0.7, 0.75, 0.8], dtype=torch.float64)
    rewards = [answers.log()] * 7 + [(1 - answers).log()] * 3

    def push_upwards(advantages):
        return sum(float(each @ (answers - answers.mean())) for each in advantages)

    by_group = push_upwards([group_advantages(reward) for reward in rewards])
    by_batch = push_upwards(batch_advantages(rewards))

    assert by_group > 10 * abs(by_batch)


def test_a_batch_names_the_sample_that_is_not_finite():
    names = [["p1/0", "p1/1"], ["p2/0", "p2/1"]]
    with pytest.raises(TrainingError, match="p2/1=nan"):
        batch_advantages([torch.ones(2), torch.tensor([0.0, math.nan])], names)


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="at least two rewards, got 1"):
        group_advantages(torch.tensor([1.0]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_stops_with_the_sample(bad):
    with pytest.raises(TrainingError, match=r"p7/2=(nan|-?inf)"):
        group_advantages(torch.tensor([0.1, 0.2, bad]), ["p7/0", "p7/1", "p7/2"])
