"""The reward as other trainers call it; TRL is not needed to say what it is called with."""

import math

import pytest

from ehr.catalogue import BENCHMARK_17
from ehr.catalogue.names import FeatureMatcher
from ehr.config import RewardSection
from ehr.errors import DataError
from ehr.language.trajectory import parse_trajectory
from ehr.rewards import RewardContext, reward
from training.interop.reward_function import TrajectoryReward

SALIENT = ["Age & Sex", "pH", "Glucose"]
GOOD = "<Important Features>pH, Glucose</Important Features><Final answer>0.8</Final answer>"
BAD = "<Important Features>Weight</Important Features><Final answer>0.8</Final answer>"
UNREADABLE = "The patient may die."
TEXTS = [GOOD, BAD, UNREADABLE]


def expected(text, label, section, weight=None, stability=None):
    context = RewardContext(
        patient_id="p",
        label=label,
        salient_features=frozenset(SALIENT),
        stability=stability or {},
    )
    matcher = FeatureMatcher(BENCHMARK_17)
    return reward(parse_trajectory(text), context, section, matcher, weight).total


def columns(num, **more):
    """What TRL passes beside the completions: data set columns and things of its own."""
    return {
        "prompts": ["prompt"] * num,
        "completion_ids": [[1, 2, 3]] * num,
        "label": [1, 0, 1][:num],
        "salient_features": [SALIENT] * num,
        "patient_id": ["p"] * num,
        "trainer_state": object(),
        "log_extra": lambda *_: None,
        **more,
    }


def test_texts_earn_the_reward_of_the_paper():
    values = TrajectoryReward(BENCHMARK_17)(completions=TEXTS, **columns(3))

    section = RewardSection()
    assert values == [
        expected(text, label, section) for text, label in zip(TEXTS, (1, 0, 1), strict=True)
    ]
    assert values[0] > 0 > values[1] > values[2]


def test_chats_earn_what_their_assistant_says():
    chats = [[{"role": "assistant", "content": text}] for text in TEXTS]
    ask = TrajectoryReward(BENCHMARK_17)

    assert ask(completions=chats, **columns(3)) == ask(completions=TEXTS, **columns(3))


def test_section_and_weight_are_the_run_s():
    section = RewardSection(accuracy_weight=0.2, decision_threshold=0.3, margin_bonus=0.5)

    values = TrajectoryReward(BENCHMARK_17, section)(completions=[GOOD], **columns(1))
    overridden = TrajectoryReward(BENCHMARK_17, section, 1.0)(completions=[GOOD], **columns(1))

    assert values == [expected(GOOD, 1, section)]
    assert overridden == [expected(GOOD, 1, section, weight=1.0)] != values


def test_weights_of_salient_features_count_where_the_section_asks_for_them():
    section = RewardSection(attention_weighting="stability")
    weights = [0.5, 1.0, 0.25]
    ask = TrajectoryReward(BENCHMARK_17, section)

    values = ask(completions=[GOOD], **columns(1, salient_weights=[weights]))

    stability = dict(zip(SALIENT, weights, strict=True))
    assert values == [expected(GOOD, 1, section, stability=stability)]
    with pytest.raises(DataError, match="weight of every salient feature"):
        ask(completions=[GOOD], **columns(1))


def test_a_completion_that_was_cut_off_is_a_format_failure():
    ask = TrajectoryReward(BENCHMARK_17, max_completion_tokens=4)

    values = ask(
        completions=[GOOD, GOOD], **columns(2, label=[1, 1], completion_ids=[[1] * 4, [1]])
    )

    section = RewardSection()
    assert values == [expected(UNREADABLE, 1, section), expected(GOOD, 1, section)]


def test_the_parts_are_told_to_the_trainer_s_log():
    logged = {}

    TrajectoryReward(BENCHMARK_17)(
        completions=TEXTS, **columns(3, log_metric=lambda name, value: logged.update({name: value}))
    )

    assert logged["format_failure_rate"] == pytest.approx(1 / 3)
    assert logged["reward_att"] == pytest.approx((2 / 3) / 3)
    assert set(logged) == {"reward_cls", "reward_att", "format_failure_rate"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"label": [1]}, "column 'label'"),
        ({"label": [1, None]}, "label 0 or 1"),
        ({"salient_features": [SALIENT]}, "column 'salient_features'"),
        ({"salient_features": ["pH", "Glucose"]}, "list of names in column `salient_features`"),
        ({"salient_weights": [[1.0], [1.0]]}, "each of 3 salient features, got 1"),
        ({"salient_features": [SALIENT, None]}, "list of names in column `salient_features`"),
        ({"salient_features": [SALIENT, ["ph"]]}, r"the cohort's features .*got \['ph'\]"),
        ({"salient_features": [SALIENT, ["hemoglobin", "pH"]]}, r"got \['hemoglobin'\]"),
        ({"salient_features": [SALIENT, ["pH", "pH"]]}, "each name once"),
        ({"salient_weights": [[1.0] * 3, [1.0, math.nan, 1.0]]}, "finite numbers that are not"),
        ({"salient_weights": [[1.0] * 3, [1.0, -1.0, 1.0]]}, "finite numbers that are not"),
        ({"salient_weights": [[1.0] * 3, [1.0, None, "1"]]}, "finite numbers that are not"),
    ],
)
def test_a_wrong_column_is_named(wrong, message):
    with pytest.raises(DataError, match=message):
        TrajectoryReward(BENCHMARK_17)(completions=[GOOD, BAD], **columns(2, **wrong))


@pytest.mark.parametrize(
    "completion", [None, 5, GOOD.encode(), {"role": "assistant", "content": GOOD}, [GOOD]]
)
def test_what_is_no_completion_is_refused(completion):
    with pytest.raises(DataError, match="a text or a list of messages"):
        TrajectoryReward(BENCHMARK_17)(completions=[completion], **columns(1))


def test_one_text_is_no_list_of_completions():
    with pytest.raises(DataError, match="put it into a list"):
        TrajectoryReward(BENCHMARK_17)(completions=GOOD, **columns(1))


def test_a_limit_of_tokens_needs_the_tokens():
    with pytest.raises(DataError, match="the column `completion_ids`"):
        TrajectoryReward(BENCHMARK_17, max_completion_tokens=4)(
            completions=[GOOD], **columns(1, completion_ids=None)
        )


@pytest.mark.parametrize(
    "settings",
    [{"accuracy_weight": 60}, {"accuracy_weight": math.nan}, {"max_completion_tokens": 0}],
)
def test_settings_that_no_run_may_have_are_refused(settings):
    with pytest.raises(DataError, match=f"expected {next(iter(settings))}"):
        TrajectoryReward(BENCHMARK_17, **settings)


def test_content_that_is_no_text_is_refused():
    chat = [{"role": "assistant", "content": [{"type": "text", "text": GOOD}]}]

    with pytest.raises(DataError, match="content is text"):
        TrajectoryReward(BENCHMARK_17)(completions=[chat], **columns(1))
