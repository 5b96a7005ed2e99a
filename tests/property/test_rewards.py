import math

from hypothesis import given
from hypothesis import strategies as st

from ehr.catalogue import BENCHMARK_17
from ehr.config import RewardSection
from ehr.names import FeatureMatcher
from ehr.rewards import RewardContext, attention_reward, classification_reward, reward
from ehr.trajectory import ParsedTrajectory

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
)


@given(probabilities, labels)
def test_classification_reward_stays_in_its_range(probability, label):
    value = classification_reward(probability, label, RewardSection(margin_bonus=1.0))

    assert math.log(0.01) <= value <= math.log(0.99) + 0.49 + 1e-12


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
