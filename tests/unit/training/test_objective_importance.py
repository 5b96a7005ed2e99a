import math

import pytest
import torch

from ehr.errors import TrainingError
from training.objective.importance import generator_log_ratio, truncated_importance_weights

OLD = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
GENERATOR = torch.tensor([[-1.5, -1.0, -9.0]])
ALL = torch.ones(1, 3, dtype=torch.bool)


def test_the_weight_is_the_ratio_of_learner_to_generator_up_to_the_cap():
    weights = truncated_importance_weights(generator_log_ratio(OLD, GENERATOR, ALL), 2.0)

    expected = torch.tensor([[math.exp(0.5), math.exp(-1.0), 2.0]])
    torch.testing.assert_close(weights, expected)
    assert not weights.requires_grad


def test_tokens_that_are_not_measured_weigh_exactly_one_even_when_broken():
    generator = torch.tensor([[-1.5, math.nan, -math.inf]])
    measured = torch.tensor([[True, False, False]])

    weights = truncated_importance_weights(generator_log_ratio(OLD, generator, measured), 2.0)

    assert weights[0, 1:].tolist() == [1.0, 1.0]


def test_equal_policies_weigh_one():
    log_ratio = generator_log_ratio(OLD, OLD.detach(), ALL)

    assert truncated_importance_weights(log_ratio, 1.0).tolist() == [[1.0, 1.0, 1.0]]


def test_a_ratio_too_large_for_a_float_is_the_cap():
    log_ratio = torch.tensor([[1000.0]])

    assert truncated_importance_weights(log_ratio, 2.0).tolist() == [[2.0]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_log_probability_that_is_not_finite_stops_with_the_sample(bad):
    generator = torch.tensor([[-1.0, bad, -1.0]])

    with pytest.raises(TrainingError, match=r"p7/2=(nan|-?inf)"):
        generator_log_ratio(OLD, generator, ALL, ["p7/2"])
