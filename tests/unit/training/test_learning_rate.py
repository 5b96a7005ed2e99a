import math

import pytest

from training.config.grpo import GrpoSection
from training.grpo.learning_rate import learning_rate


def rates(**changes):
    section = GrpoSection(steps=4, learning_rate=1.0, **changes)
    return [learning_rate(step, section) for step in (1, 2, 3, 4)]


def test_the_default_is_the_same_rate_in_every_step():
    assert rates() == [1.0, 1.0, 1.0, 1.0]


def test_a_warm_up_is_linear_and_reaches_the_rate():
    assert rates(warmup_steps=2) == [0.5, 1.0, 1.0, 1.0]


def test_a_linear_schedule_falls_evenly_and_never_reaches_zero():
    assert rates(schedule="linear") == [1.0, 0.75, 0.5, 0.25]
    assert rates(schedule="linear", warmup_steps=2) == pytest.approx([0.5, 1.0, 2 / 3, 1 / 3])


def test_a_cosine_is_half_way_down_in_the_middle():
    half = math.sqrt(0.5) / 2

    assert rates(schedule="cosine") == pytest.approx([1.0, 0.5 + half, 0.5, 0.5 - half])


def test_a_warm_up_longer_than_the_stage_is_refused():
    with pytest.raises(ValueError, match=r"warmup_steps must not exceed.*5 of 4"):
        rates(warmup_steps=5)
