"""What a finished trajectory is worth, with a label and without one."""

import math
from dataclasses import fields

import pytest

from actors.judge import LABEL_FREE_FLOOR, LabelFreeJudge, RewardJudge, Verdict
from ehr.catalogue.names import FeatureMatcher
from ehr.config import RewardSection
from ehr.language.trajectory import ParsedTrajectory
from ehr.rewards import MAX_FEATURE_NAMES, RewardContext, Salience
from tests.scripted import CONTEXT, FEATURES

MATCHER = FeatureMatcher(CONTEXT.features)
SALIENCE = Salience(features=frozenset(FEATURES[:3]), risk=0.7)
READABLE = ParsedTrajectory(features=FEATURES[1:3], probability=0.9)


def _value(
    parsed: ParsedTrajectory = READABLE,
    salience: Salience = SALIENCE,
    weight: float = 0.25,
    usefulness: tuple[float, ...] = (0.2, 0.6),
) -> float:
    return LabelFreeJudge(salience, weight, MATCHER)(parsed, usefulness).value


def test_a_label_free_value_is_usefulness_and_agreement_in_features_and_risk() -> None:
    # U = .4; overlap 2/3, risk 1 - .2 = .8
    assert _value() == pytest.approx(0.25 * 0.4 + 0.75 * (2 / 3 + 0.8) / 2)


def test_without_the_experts_risk_agreement_is_the_overlap() -> None:
    salience = Salience(features=SALIENCE.features)

    assert _value(salience=salience) == pytest.approx(0.25 * 0.4 + 0.75 * 2 / 3)


def test_without_a_scored_step_usefulness_is_neutral() -> None:
    assert _value(weight=1.0, usefulness=()) == pytest.approx(49 / 99)


@pytest.mark.parametrize(
    "parsed",
    [
        ParsedTrajectory(failure="no final answer"),
        ParsedTrajectory(features=FEATURES[:3]),
        ParsedTrajectory(features=("pH",) * (MAX_FEATURE_NAMES + 1), probability=0.7),
    ],
)
def test_a_format_failure_gets_the_floor_however_useful_its_steps(parsed: ParsedTrajectory) -> None:
    verdict = LabelFreeJudge(SALIENCE, 1.0, MATCHER)(parsed, (1.0,))

    assert (verdict.value, verdict.att) == (LABEL_FREE_FLOOR, 0.0)
    assert verdict.format_failure


def test_a_label_free_judge_has_nowhere_to_keep_a_label_and_claims_nothing() -> None:
    names = {field.name for owner in (LabelFreeJudge, Salience) for field in fields(owner)}
    verdict = LabelFreeJudge(SALIENCE, 0.5, MATCHER)(READABLE, ())

    assert names == {"salience", "usefulness_weight", "matcher", "features", "stability", "risk"}
    assert (verdict.kind, verdict.cls, verdict.correct) == ("label_free", None, None)


def _rewarded(probability: float | None, usefulness: tuple[float, ...] = ()) -> Verdict:
    context = RewardContext(patient_id="p", label=1, salient_features=SALIENCE.features)
    parsed = ParsedTrajectory(features=FEATURES[1:3], probability=probability)
    return RewardJudge(context, RewardSection(), MATCHER)(parsed, usefulness)


def test_a_reward_reads_the_label_and_never_usefulness() -> None:
    verdict = _rewarded(0.9, (0.0,))

    cls = math.log(0.9) + 0.4
    assert verdict == _rewarded(0.9, (1.0, 1.0))
    assert verdict.value == pytest.approx(0.6 * cls + 0.4 * 2 / 3)
    assert (verdict.kind, verdict.correct, _rewarded(0.4).correct) == ("reward", True, False)
    assert _rewarded(None).correct is False
