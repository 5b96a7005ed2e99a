"""What Stage 2 rewards, where `grpo` changes the salience or its weights."""

import pytest

from ehr.catalogue import BENCHMARK_17
from ehr.catalogue.names import FeatureMatcher
from ehr.language.trajectory import ParsedTrajectory
from ehr.rewards import RewardContext, Salience, reward
from training.config.run import RunConfig
from training.rewarded import reward_section, rewarded

# Glucose is salient in all four patients, pH in two, Weight and Height in one each.
SALIENT = {
    "a": ("Glucose", "pH"),
    "b": ("Glucose", "pH"),
    "c": ("Glucose", "Weight"),
    "d": ("Glucose", "Height"),
}
SALIENCE = {
    patient: Salience(features=frozenset(names), stability=dict.fromkeys(names, 1.0), risk=0.4)
    for patient, names in SALIENT.items()
}


def config(**grpo: object) -> RunConfig:
    return RunConfig.model_validate({"grpo": grpo})


def shuffled(**grpo: object) -> RunConfig:
    return config(method="shuffled_salience", shuffle_salience=True, seed=1, **grpo)


def attention(salience: dict[str, Salience], made: RunConfig, patient: str, *names: str) -> float:
    known, section = rewarded(salience, made), reward_section(made)
    context = RewardContext(
        patient_id=patient,
        label=1,
        salient_features=known[patient].features,
        stability=known[patient].stability,
    )
    parsed = ParsedTrajectory(steps=(), features=names, probability=0.5, failure=None)
    return reward(parsed, context, section, FeatureMatcher(BENCHMARK_17)).att


def test_by_default_salience_and_reward_are_as_they_were() -> None:
    made = config()
    assert rewarded(SALIENCE, made) == SALIENCE
    assert reward_section(made) == made.reward


def test_a_rare_feature_weighs_what_it_lacks_of_all_patients() -> None:
    known = rewarded(SALIENCE, config(rare_features=True))
    assert {patient: dict(each.stability) for patient, each in known.items()} == {
        "a": {"Glucose": 0.0, "pH": 0.5},
        "b": {"Glucose": 0.0, "pH": 0.5},
        "c": {"Glucose": 0.0, "Weight": 0.75},
        "d": {"Glucose": 0.0, "Height": 0.75},
    }
    assert all(each.features == SALIENCE[patient].features for patient, each in known.items())
    assert all(each.risk == 0.4 for each in known.values())


def test_naming_what_is_salient_in_everybody_pays_nothing_then() -> None:
    rare, plain = config(rare_features=True), config()
    assert attention(SALIENCE, plain, "c", "Glucose") == 0.5
    assert attention(SALIENCE, rare, "c", "Glucose") == 0.0
    assert attention(SALIENCE, rare, "c", "Weight") == 1.0
    # One set for everybody is worth less than what singles the patient out.
    assert attention(SALIENCE, rare, "c", "Glucose", "pH") == 0.0
    assert attention(SALIENCE, rare, "c", "Glucose", "Weight") == 1.0


def test_of_shuffled_salience_the_weights_are_those_of_the_other_patient() -> None:
    known = rewarded(SALIENCE, shuffled(rare_features=True))
    assert any(each.features != SALIENCE[patient].features for patient, each in known.items())
    for each in known.values():
        assert each.stability == {
            name: {"Glucose": 0.0, "pH": 0.5}.get(name, 0.75) for name in each.features
        }


def test_shuffled_salience_keeps_features_and_weights_together() -> None:
    salience = {
        name: Salience(features=frozenset({name}), stability={name: index / 4})
        for index, name in enumerate("abcd")
    }

    others = rewarded(salience, shuffled())

    assert all(others[patient] != own for patient, own in salience.items())
    assert sorted(others.values(), key=lambda each: min(each.features)) == list(salience.values())


def test_what_grpo_overrides_is_in_its_reward() -> None:
    made = reward_section(config(accuracy_weight=0.9, rare_features=True))
    assert (made.accuracy_weight, made.attention_weighting) == (0.9, "stability")


def test_two_weightings_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="set one of them"):
        RunConfig.model_validate(
            {"grpo": {"rare_features": True}, "reward": {"attention_weighting": "stability"}}
        )
