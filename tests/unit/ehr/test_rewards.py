import dataclasses
import math

import pytest

from ehr.catalogue import BENCHMARK_17
from ehr.catalogue.names import FeatureMatcher
from ehr.config import RewardSection
from ehr.errors import DataError
from ehr.language.trajectory import ParsedTrajectory, parse_trajectory
from ehr.rewards import (
    RewardContext,
    attention_gains,
    attention_reward,
    classification_reward,
    reward,
    weighted_attention_reward,
)

SECTION = RewardSection(accuracy_weight=0.6, decision_threshold=0.5, margin_bonus=1.0)
MATCHER = FeatureMatcher(BENCHMARK_17)
# Table 4 of the paper.
CONTEXT = RewardContext(
    patient_id="p1",
    label=1,
    salient_features=frozenset({"Age & Sex", "pH", "Glucose", "Height", "Systolic blood pressure"}),
)


def parsed(features, probability):
    return ParsedTrajectory(features=tuple(features), probability=probability)


@pytest.mark.parametrize(
    ("probability", "label", "expected"),
    [
        (0.85, 1, math.log(0.85) + 0.35),
        (0.25, 1, math.log(0.25)),
        (0.25, 0, math.log(0.75) + 0.25),
        (0.5, 1, math.log(0.5)),
        (0.5, 0, math.log(0.5)),
        (0.0, 1, math.log(0.01)),
        (1.0, 1, math.log(0.99) + 0.49),
        (1.0, 0, math.log(0.01)),
    ],
)
def test_classification_reward_is_log_likelihood_plus_margin(probability, label, expected):
    assert classification_reward(probability, label, SECTION) == pytest.approx(expected)


def test_without_margin_bonus_the_classification_reward_is_the_log_score():
    section = RewardSection(margin_bonus=0.0)

    assert classification_reward(0.85, 1, section) == pytest.approx(math.log(0.85))


@pytest.mark.parametrize(
    ("probability", "label", "expected"),
    [
        (0.85, 1, 1 - 2 * 0.15**2 + 0.35),
        (0.25, 1, 1 - 2 * 0.75**2),
        (0.5, 0, 0.5),
        (0.0, 1, -0.9602),
        (1.0, 1, 0.9998 + 0.49),
    ],
)
def test_by_brier_the_classification_reward_is_one_minus_both_squares_plus_margin(
    probability, label, expected
):
    section = SECTION.model_copy(update={"score": "brier"})

    assert classification_reward(probability, label, section) == pytest.approx(expected)


def test_by_brier_a_format_failure_has_the_minimum_of_that_score():
    section = SECTION.model_copy(update={"score": "brier"})
    broken = parse_trajectory("<Important Features>pH</Important Features>")

    scored = reward(broken, CONTEXT, section, MATCHER)

    assert (scored.cls, scored.total) == pytest.approx((-0.9602, 0.6 * -0.9602))


def test_attention_reward_is_the_jaccard_similarity():
    assert attention_reward({"a", "b", "c"}, {"b", "c", "d"}) == 0.5
    assert attention_reward(set(), {"a"}) == 0
    assert attention_reward(set(), set()) == 0


@pytest.mark.parametrize(
    ("names", "jaccard"),
    [
        # 2 of 8 for the baseline, 3 of 6 for EAG-RL: Age and Sex are one feature.
        (
            "Glucose, Diastolic blood pressure, Fraction inspired oxygen, Respiratory rate, pH",
            2 / 8,
        ),
        ("Glucose, Diastolic blood pressure, pH, Age, Sex", 3 / 6),
    ],
)
def test_table_4_of_the_paper(names, jaccard):
    text = f"<Important Features>{names}</Important Features><Final answer>0.85</Final answer>"

    assert reward(parse_trajectory(text), CONTEXT, SECTION, MATCHER).att == pytest.approx(jaccard)


def test_total_is_the_weighted_sum():
    scored = reward(parsed(["pH", "Glucose"], 0.85), CONTEXT, SECTION, MATCHER)

    assert scored.att == pytest.approx(2 / 5)
    assert scored.cls == pytest.approx(math.log(0.85) + 0.35)
    assert scored.total == pytest.approx(0.6 * (math.log(0.85) + 0.35) + 0.4 * 2 / 5)
    assert scored.format_failure is None


def test_unknown_names_enlarge_the_union():
    scored = reward(parsed(["pH", "septic shock"], 0.85), CONTEXT, SECTION, MATCHER)

    assert scored.att == pytest.approx(1 / 6)


@pytest.mark.parametrize(("weight", "total"), [(0.6, -2.763), (1.0, -4.605)])
def test_a_format_failure_is_the_worst_prediction_without_features(weight, total):
    broken = parse_trajectory("<Important Features>pH</Important Features>")

    scored = reward(broken, CONTEXT, SECTION, MATCHER, accuracy_weight=weight)

    assert scored.total == pytest.approx(total, abs=1e-3)
    assert scored.att == 0
    assert scored.format_failure == "no final answer"


def test_a_readable_answer_without_features_loses_the_attention_reward_only():
    scored = reward(parsed([], 0.85), CONTEXT, SECTION, MATCHER)

    assert scored.format_failure is None
    assert scored.total == pytest.approx(0.6 * scored.cls)


def test_more_than_ten_names_before_deduplication_are_a_format_failure():
    ten = reward(parsed(["pH"] * 10, 0.85), CONTEXT, SECTION, MATCHER)
    eleven = reward(parsed(["pH"] * 11, 0.85), CONTEXT, SECTION, MATCHER)

    assert ten.format_failure is None
    assert eleven.format_failure == "too many features"


def test_names_joined_in_one_item_count_one_by_one():
    six, five = "pH and " * 5 + "Weight", "pH & HR & Height & Glucose & Weight"
    repeating = SECTION.model_copy(update={"repeated_names": "wrong"})

    joined = reward(parsed([five, five], 0.85), CONTEXT, SECTION, MATCHER)
    more = reward(parsed([five, five, "pH"], 0.85), CONTEXT, SECTION, MATCHER)
    once = reward(parsed([five], 0.85), CONTEXT, repeating, MATCHER)
    again = reward(parsed([five, "pH and Weight"], 0.85), CONTEXT, repeating, MATCHER)

    assert (joined.format_failure, more.format_failure) == (None, "too many features")
    assert joined.att == once.att > again.att
    assert reward(parsed([six], 0.85), CONTEXT, SECTION, MATCHER).format_failure is None


def test_weight_one_switches_the_attention_reward_off():
    scored = reward(parsed(["pH"], 0.85), CONTEXT, SECTION, MATCHER, accuracy_weight=1.0)

    assert scored.total == scored.cls


STABILITY = {"pH": 1.0, "Glucose": 0.5, "Height": 0.25}


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({"pH"}, 1 / 1.75),
        ({"Glucose"}, 0.5 / 1.75),
        ({"pH", "Glucose", "Height"}, 1.0),
        # A name outside C_exp costs the mean weight, 1.75 / 3.
        ({"pH", "Temperature"}, 1 / (1.75 + 1.75 / 3)),
        ({"Temperature"}, 0.0),
        (set(), 0.0),
    ],
)
def test_the_weighted_attention_reward_counts_features_by_their_stability(named, expected):
    assert weighted_attention_reward(named, set(STABILITY), STABILITY) == pytest.approx(expected)


def test_weights_that_are_all_zero_leave_the_plain_jaccard():
    nothing = dict.fromkeys(STABILITY, 0.0)

    assert weighted_attention_reward({"pH", "Weight"}, set(STABILITY), nothing) == 1 / 4


def test_a_salient_feature_without_a_weight_is_refused():
    with pytest.raises(DataError, match="there is none for"):
        weighted_attention_reward({"pH"}, {"pH"}, {"Glucose": 1.0})


def test_weights_are_read_only_where_the_section_asks_for_them():
    context = RewardContext(
        patient_id="p", label=1, salient_features=frozenset(STABILITY), stability=STABILITY
    )
    weighted = SECTION.model_copy(update={"attention_weighting": "stability"})

    plain_att = reward(parsed(["pH"], 0.5), context, SECTION, MATCHER).att
    weighted_att = reward(parsed(["pH"], 0.5), context, weighted, MATCHER).att

    assert plain_att == pytest.approx(1 / 3)
    assert weighted_att == pytest.approx(1 / 1.75)


def test_each_name_gains_what_it_adds_to_the_attention_reward():
    answer = parsed(["pH", "Weight", "Glucose", "pH"], 0.8)

    gains = attention_gains(answer, CONTEXT, SECTION, MATCHER)

    assert gains == pytest.approx((1 / 5, 1 / 6 - 1 / 5, 2 / 6 - 1 / 6, 0))
    assert sum(gains) == pytest.approx(reward(answer, CONTEXT, SECTION, MATCHER).att)


def test_by_stability_a_name_gains_its_weight():
    section = RewardSection(attention_weighting="stability")
    weights = dict.fromkeys(CONTEXT.salient_features, 0.5) | {"pH": 1.0}
    context = dataclasses.replace(CONTEXT, stability=weights)
    answer = parsed(["pH", "Glucose"], 0.8)

    gains = attention_gains(answer, context, section, MATCHER)

    assert gains == pytest.approx((1 / 3, 0.5 / 3))


@pytest.mark.parametrize(
    "answer", [parsed(["pH"], None), parsed(["pH"] * 11, 0.8), parsed([], 0.8)]
)
def test_where_there_is_no_attention_reward_no_name_gains(answer):
    assert attention_gains(answer, CONTEXT, SECTION, MATCHER) == ()


def test_a_repeated_name_can_count_as_one_outside():
    strict = RewardSection(repeated_names="wrong")
    answer = parsed(["pH", "Glucose", "pH", "pH", "Weight"], 0.8)

    gains = attention_gains(answer, CONTEXT, strict, MATCHER)

    assert reward(answer, CONTEXT, SECTION, MATCHER).att == pytest.approx(2 / 6)
    assert reward(answer, CONTEXT, strict, MATCHER).att == pytest.approx(2 / 8)
    assert gains == pytest.approx((1 / 5, 1 / 5, 2 / 6 - 2 / 5, 2 / 7 - 2 / 6, 2 / 8 - 2 / 7))
    for once in (parsed(["pH", "Weight"], 0.8), parsed([], 0.8)):
        assert reward(once, CONTEXT, strict, MATCHER) == reward(once, CONTEXT, SECTION, MATCHER)


def test_a_repeated_name_can_count_by_stability_too():
    section = RewardSection(attention_weighting="stability", repeated_names="wrong")
    context = dataclasses.replace(CONTEXT, stability=dict.fromkeys(CONTEXT.salient_features, 0.5))
    answer = parsed(["pH", "pH"], 0.8)

    assert reward(answer, context, section, MATCHER).att == pytest.approx(1 / 6)
