import math

from hypothesis import assume, given
from hypothesis import strategies as st

from ehr.catalogue import BENCHMARK_17
from ehr.catalogue.names import FeatureMatcher
from ehr.config import RewardSection
from ehr.language.trajectory import ParsedTrajectory
from ehr.rewards import (
    RewardContext,
    attention_reward,
    classification_reward,
    reward,
    weighted_attention_reward,
    worst_classification_reward,
)

MATCHER = FeatureMatcher(BENCHMARK_17)
NAMES = [feature.name for feature in BENCHMARK_17]
probabilities = st.floats(0, 1)
labels = st.sampled_from([0, 1])
feature_sets = st.frozensets(st.sampled_from(NAMES), max_size=7)
sections = st.builds(
    RewardSection,
    accuracy_weight=st.floats(0, 1),
    decision_threshold=st.floats(0.1, 0.9),
    margin_bonus=st.floats(0, 2),
    score=st.sampled_from(["log", "brier"]),
)
WRITTEN = [number / 100 for number in range(1, 100)]
"""What two digits can say, but .00, which counts as .01 (`MIN_PROBABILITY`)."""


@given(probabilities, labels)
def test_classification_reward_stays_in_its_range(probability, label):
    value = classification_reward(probability, label, RewardSection(margin_bonus=1.0))

    assert math.log(0.01) <= value <= math.log(0.99) + 0.49 + 1e-12


@given(probabilities, labels, sections)
def test_no_classification_reward_is_below_that_of_a_format_failure(probability, label, section):
    assert classification_reward(probability, label, section) >= worst_classification_reward(
        section
    )


def best_written(risk, section):
    """The written probability that pays most where the event has this risk."""

    def expected(p):
        of_event, of_none = (classification_reward(p, label, section) for label in (1, 0))
        return risk * of_event + (1 - risk) * of_none

    return max(WRITTEN, key=expected)


@given(st.integers(1, 99), st.sampled_from(["log", "brier"]))
def test_without_a_bonus_the_true_risk_pays_best(hundredths, score):
    section = RewardSection(score=score, margin_bonus=0.0)

    assert best_written(hundredths / 100, section) == hundredths / 100


@given(st.integers(5, 95).filter(lambda n: abs(n - 50) > 5), st.sampled_from(["log", "brier"]))
def test_with_a_bonus_a_risk_pays_best_that_is_further_out(hundredths, score):
    section = RewardSection(score=score, margin_bonus=1.0)

    best = best_written(hundredths / 100, section)

    assert abs(best - 0.5) > abs(hundredths / 100 - 0.5)


@given(probabilities, probabilities, labels, sections)
def test_moving_towards_the_label_never_costs(one, other, label, section):
    worse, better = sorted([one, other], reverse=label == 0)

    assert classification_reward(worse, label, section) <= classification_reward(
        better, label, section
    )


@given(probabilities)
def test_both_classes_are_treated_alike_at_threshold_one_half(probability):
    section = RewardSection(decision_threshold=0.5)

    assert math.isclose(
        classification_reward(probability, 1, section),
        classification_reward(1 - probability, 0, section),
        abs_tol=1e-9,
    )


@given(feature_sets, feature_sets)
def test_attention_reward_is_symmetric_and_one_only_for_equal_sets(one, other):
    value = attention_reward(one, other)

    assert value == attention_reward(other, one)
    assert 0 <= value <= 1
    assert (value == 1) == (one == other and bool(one))


@given(st.none() | probabilities, labels, st.lists(st.sampled_from(NAMES), max_size=12), sections)
def test_a_failure_never_beats_a_readable_answer(probability, label, features, section):
    context = RewardContext(patient_id="p", label=label, salient_features=frozenset(NAMES[:5]))
    failure = None if probability is not None else "no final answer"
    parsed = ParsedTrajectory(features=tuple(features), probability=probability, failure=failure)
    broken = ParsedTrajectory(failure="no final answer")

    total = reward(parsed, context, section, MATCHER).total

    assert total >= reward(broken, context, section, MATCHER).total


@given(probabilities, labels, st.lists(st.sampled_from(NAMES), max_size=10))
def test_the_default_reward_lies_in_the_range_of_the_specification(probability, label, features):
    context = RewardContext(patient_id="p", label=label, salient_features=frozenset(NAMES[:5]))
    parsed = ParsedTrajectory(features=tuple(features), probability=probability)

    total = reward(parsed, context, RewardSection(), MATCHER).total

    assert -2.7632 <= total <= 0.6881


salient_sets = st.frozensets(st.sampled_from(NAMES), min_size=1, max_size=7)
weight_lists = st.lists(
    st.integers(1, 20).map(lambda votes: votes / 20), min_size=len(NAMES), max_size=len(NAMES)
).map(lambda weights: dict(zip(NAMES, weights, strict=True)))


@given(feature_sets, salient_sets, weight_lists)
def test_the_weighted_reward_is_bounded_and_one_only_for_equal_sets(named, salient, stability):
    value = weighted_attention_reward(named, salient, stability)

    assert 0 <= value <= 1
    assert (value == 1) == (named == salient)
    assert (value == 0) == (not named & salient)


@given(feature_sets, feature_sets, st.just(0.0) | st.floats(1e-3, 1))
def test_equal_weights_give_the_plain_jaccard(named, salient, weight):
    value = weighted_attention_reward(named, salient, dict.fromkeys(NAMES, float(weight)))

    assert math.isclose(value, attention_reward(named, salient), rel_tol=1e-9)


@given(feature_sets, salient_sets, weight_lists, st.data())
def test_naming_one_more_salient_feature_pays_and_one_more_other_costs(
    named, salient, stability, data
):
    value = weighted_attention_reward(named, salient, stability)
    name = data.draw(st.sampled_from(sorted(frozenset(NAMES) - named)))

    after = weighted_attention_reward(named | {name}, salient, stability)

    assert after > value if name in salient else after <= value
    assert after < value or not value or name in salient


@given(feature_sets, salient_sets, weight_lists, st.data())
def test_naming_a_stable_feature_pays_more_than_an_unstable_one(named, salient, stability, data):
    left = sorted(salient - named, key=stability.__getitem__)
    assume(len(left) > 1 and stability[left[0]] < stability[left[-1]])

    unstable, stable = (
        weighted_attention_reward(named | {name}, salient, stability)
        for name in (left[0], left[-1])
    )

    assert stable > unstable
