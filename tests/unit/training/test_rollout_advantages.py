import math

import pytest
import torch

from ehr.rewards import Reward
from tests.scripted import CharTokenizer
from training.config.grpo import GrpoSection
from training.grpo.advantages import RolloutAdvantage, rollout_advantages, token_advantages
from training.objective.advantage import batch_advantages, group_advantages

WEIGHT = 0.6


def group(cls, att):
    return [
        Reward(total=WEIGHT * c + (1 - WEIGHT) * a, cls=c, att=a, format_failure=None)
        for c, a in zip(cls, att, strict=True)
    ]


def advantages(groups, gains=(), **settings):
    names = [[f"p{i}/{k}" for k in range(len(each))] for i, each in enumerate(groups)]
    section = GrpoSection(**settings)
    return rollout_advantages(groups, [WEIGHT] * len(groups), section, names, gains)


def whole(groups, **settings):
    return [[each.whole for each in one] for one in advantages(groups, **settings)]


def test_the_paper_has_one_advantage_of_the_whole_reward_for_every_token():
    rewards = group((-1.0, -0.5, -3.0), (0.2, 0.1, 0.4))
    total = torch.tensor([each.total for each in rewards], dtype=torch.float64)

    (found,) = advantages([rewards])

    assert [each.whole for each in found] == pytest.approx(group_advantages(total).tolist())
    assert all(each.whole == each.behind_features for each in found)


def test_parts_of_one_scale_weigh_what_lambda_says():
    # Each part tells one answer from two others: both span 3 / sqrt(2) at deviation 1.
    rewards = group((-1.0, -1.0, -4.0), (0.2, 0.1, 0.2))
    span = 3 / math.sqrt(2)
    scaled = torch.tensor([0.0, -0.4 * span, -0.6 * span], dtype=torch.float64)

    (found,) = whole([rewards], scale_parts=True)

    assert found == pytest.approx(group_advantages(scaled).tolist())


def test_the_batchs_deviation_is_that_of_all_groups():
    near, far = group((-1.0, -1.1), (0.0, 0.0)), group((-1.0, -4.0), (0.0, 0.0))
    totals = [torch.tensor([each.total for each in one]).double() for one in (near, far)]

    found = whole([near, far], advantage_scale="batch")

    expected = [each.tolist() for each in batch_advantages(totals)]
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[1] == pytest.approx(expected[1], rel=1e-5)
    assert found[1][0] / found[0][0] == pytest.approx(30, rel=1e-5)
    assert whole([near, far])[0][0] == pytest.approx(whole([near, far])[1][0])


def test_parts_of_one_scale_take_that_scale_from_the_batch_too():
    near, far = group((-1.0, -1.1), (0.1, 0.3)), group((-1.0, -4.0), (0.1, 0.3))

    found = whole([near, far], advantage_scale="batch", scale_parts=True)

    # R_att alone tells as much in both groups; R_cls tells thirty times as much in the second.
    cls = batch_advantages([torch.tensor([-1.0, -1.1]), torch.tensor([-1.0, -4.0])])
    att = batch_advantages([torch.tensor([0.1, 0.3])] * 2)
    mixed = [0.6 * c + 0.4 * a for c, a in zip(cls, att, strict=True)]
    expected = [each.tolist() for each in batch_advantages(mixed)]
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    assert found[1] == pytest.approx(expected[1], rel=1e-4)


@pytest.mark.parametrize("scale_parts", [True, False])
def test_reward_to_go_counts_r_cls_alone_behind_the_features(scale_parts):
    rewards = group((-1.0, -1.0, -4.0), (0.2, 0.1, 0.2))

    (found,) = advantages([rewards], credit="reward_to_go", scale_parts=scale_parts)
    assert advantages([rewards], credit="exact_risk", scale_parts=scale_parts) == [found]

    cls = torch.tensor([-1.0, -1.0, -4.0], dtype=torch.float64)
    assert [each.behind_features for each in found] == group_advantages(cls).tolist()
    assert found[0].whole != found[1].whole
    (paper,) = whole([rewards], scale_parts=scale_parts)
    assert [each.whole for each in found] == paper


def test_tokens_behind_the_block_have_what_is_left():
    named = "<Important Features>\npH, sodium\n"
    text = f"{named}</Important Features>\n<Final answer>\n0.90\n</Final answer>"

    found = token_advantages(
        CharTokenizer().encode(text), CharTokenizer(), RolloutAdvantage(1.0, -2.0)
    )

    assert found[: len(named)] == [1.0] * len(named)
    assert found[len(named) :] == [-2.0] * (len(text) - len(named))


@pytest.mark.parametrize("text", ["<Final answer>\n0.90\n</Final answer>", "no answer", ""])
def test_without_a_block_the_whole_answer_has_one_advantage(text):
    found = token_advantages(
        CharTokenizer().encode(text), CharTokenizer(), RolloutAdvantage(1.0, -2.0)
    )

    assert found == [1.0] * len(text)


def test_each_name_counts_what_it_adds_beside_r_cls():
    rewards = group((-1.0, -1.0, -4.0), (0.5, 0.2, 0.2))
    gains = [(0.25, 0.25), (0.25, -0.05), (-0.05, 0.25)]

    (found,) = advantages([rewards], [gains], credit="by_name", scale_parts=True)

    cls = group_advantages(torch.tensor([-1.0, -1.0, -4.0], dtype=torch.float64))
    for place in range(2):
        of_place = torch.tensor([each[place] for each in gains], dtype=torch.float64)
        expected = group_advantages(0.6 * cls + 0.4 * group_advantages(of_place))
        assert [each.of_names[place] for each in found] == pytest.approx(expected.tolist())
    assert [each.behind_features for each in found] == pytest.approx(cls.tolist())


def test_a_name_that_others_lack_is_compared_with_nothing_gained():
    rewards = group((-1.0, -1.0), (0.25, 0.5))

    (found,) = advantages([rewards], [[(0.25,), (0.25, 0.25)]], credit="by_name")

    assert [each.of_names[0] for each in found] == [0, 0]
    assert [each.of_names[1] for each in found] == pytest.approx([-1, 1])


def test_names_of_all_groups_and_places_share_the_batchs_deviation():
    near, far = group((-1.0, -1.0), (0.0, 0.1)), group((-1.0, -1.0), (0.0, 0.3))

    found = advantages(
        [near, far],
        [[(0.0, 0.0), (0.1, 0.0)], [(0.0, 0.0), (0.0, 0.3)]],
        credit="by_name",
        advantage_scale="batch",
        scale_parts=True,
    )

    first, second = (of_group[1].of_names for of_group in found)
    assert first[1] == second[0] == 0
    assert second[1] == pytest.approx(3 * first[0])


def test_a_token_belongs_to_the_name_that_it_writes_on_or_ends():
    text = "<Important Features>\npH, sodium\n</Important Features>\n<Final answer>\n0.90\n"

    found = token_advantages(
        CharTokenizer().encode(text),
        CharTokenizer(),
        RolloutAdvantage(1.0, -2.0, (3.0, 4.0)),
    )

    at = text.index("pH")
    assert found[: at - 1] == [1.0] * (at - 1)
    assert found[at : at + 4] == [3.0] * 4
    assert found[at + 4 : at + 11] == [4.0] * 7
    assert found[at + 11 :] == [-2.0] * (len(text) - at - 11)


def test_what_kind_is_meant_is_a_token_of_the_name_before_it():
    text = "<Important Features>\ncalcium, ionized, pH\n</Important Features>\n"

    found = token_advantages(
        CharTokenizer().encode(text),
        CharTokenizer(),
        RolloutAdvantage(1.0, -2.0, (3.0, 4.0)),
    )

    at, last = text.index("calcium"), text.index("pH")
    assert found[at:last] == [3.0] * (last - at)
    assert found[last : last + 2] == [4.0] * 2


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_the_scale_of_a_risk_is_what_differences_of_its_reward_are_divided_by(scale):
    rewards = [group((-1.0, -0.5, -3.0), (0.2, 0.1, 0.4)), group((-2.0, -2.5), (0.0, 0.0))]

    found = advantages(rewards, credit="exact_risk", advantage_scale=scale)

    for of_group, scored in zip(found, rewards, strict=True):
        mean = sum(each.cls for each in scored) / len(scored)
        for each, one in zip(of_group, scored, strict=True):
            assert each.risk_scale * each.behind_features == pytest.approx(one.cls - mean)


def test_a_group_whose_risks_all_earn_the_same_has_a_scale_from_the_batch_only():
    rewards = [group((-1.0, -1.0), (0.2, 0.1)), group((-2.0, -2.5), (0.0, 0.0))]

    (dead, _) = advantages(rewards, credit="exact_risk")
    (together, _) = advantages(rewards, credit="exact_risk", advantage_scale="batch")

    assert [each.risk_scale for each in dead] == [0.0, 0.0]
    assert [each.risk_scale for each in together] == pytest.approx([0.25 / 2**0.5] * 2)
