"""Every published form of the attention over visits against a plain loop over its formula."""

import math

import pytest
import torch
from torch import Tensor

from ehr.config import TimeAttention
from ehr.expert.visit_attention import VisitAttention

FEATURES, HIDDEN, VISITS = 2, 6, 4
LENGTHS = (4, 1, 3)


def attention(form: TimeAttention) -> VisitAttention:
    torch.manual_seed(4)
    module = VisitAttention(FEATURES, HIDDEN, form).double()
    if form is not TimeAttention.CONCAT:
        module.rate.data = torch.tensor([0.7, 1.3], dtype=torch.float64)
    return module


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    states = torch.randn(
        FEATURES, VISITS, len(LENGTHS), HIDDEN, generator=generator, dtype=torch.float64
    )
    elapsed = torch.rand(len(LENGTHS), VISITS, generator=generator, dtype=torch.float64) * 9
    return states, elapsed


def run(module: VisitAttention, states: Tensor, elapsed: Tensor) -> Tensor:
    lengths = torch.tensor(LENGTHS)
    is_visit = torch.arange(VISITS) < lengths.unsqueeze(1)
    return module(states, elapsed, is_visit, lengths - 1)


def dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def projected(state: list[float], matrix: list[list[float]]) -> list[float]:
    """Row vector times matrix."""
    return [dot(state, [row[unit] for row in matrix]) for unit in range(len(matrix[0]))]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def plain_score(
    module: VisitAttention, feature: int, last: list[float], state: list[float], days: float
) -> float:
    """The formulas of the module's docstring, one number at a time."""
    query = projected(last, module.query[feature].tolist())
    key = projected(state, module.key[feature].tolist())
    if module.form is TimeAttention.CONCAT:
        time = [days * unit for unit in module.of_time[feature, 0].tolist()]
        inner = [math.tanh(q + k + t) for q, k, t in zip(query, key, time, strict=True)]
        return dot(inner, module.output[feature, 0].tolist())
    product = dot(query, key)
    match = sigmoid(product)
    rate = module.rate[feature].item()
    if module.form is TimeAttention.PAPER:
        return math.tanh(product / (rate * math.log(math.e + (1 - match) * days)))
    return match / (sigmoid(rate) * math.log(math.e + 1 - match) * (days + 1))


@pytest.mark.parametrize("form", TimeAttention)
def test_summaries_equal_a_plain_loop_over_the_published_formula(form: TimeAttention) -> None:
    module = attention(form)
    states, elapsed = inputs()

    summaries = run(module, states, elapsed)

    for patient, length in enumerate(LENGTHS):
        for feature in range(FEATURES):
            rows = states[feature, :length, patient].tolist()
            scores = [
                plain_score(module, feature, rows[-1], row, elapsed[patient, visit].item())
                for visit, row in enumerate(rows)
            ]
            total = sum(math.exp(score) for score in scores)
            expected = [
                sum(math.exp(s) / total * row[unit] for s, row in zip(scores, rows, strict=True))
                for unit in range(HIDDEN)
            ]
            assert summaries[patient, feature].tolist() == pytest.approx(expected, abs=1e-12)


def test_the_forms_differ_from_one_another() -> None:
    states, elapsed = inputs()
    several = [run(attention(form), states, elapsed) for form in TimeAttention]

    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(several[one][0], several[other][0], atol=1e-3)


@pytest.mark.parametrize("form", TimeAttention)
def test_every_parameter_of_a_form_takes_part(form: TimeAttention) -> None:
    module = attention(form)

    run(module, *inputs()).square().sum().backward()

    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("form", [TimeAttention.PAPER, TimeAttention.PYHEALTH])
def test_an_older_visit_loses_weight_as_days_pass(form: TimeAttention) -> None:
    module = attention(form)
    with torch.no_grad():  # q . k > 0: for the paper's form a poor match gains with time
        module.key.copy_(module.query)
    states = torch.zeros(FEATURES, 2, 1, HIDDEN, dtype=torch.float64)
    states[:, 0], states[:, 1] = 0.5, 1.0  # the summary tells the last visit's weight
    both = torch.ones(1, 2, dtype=torch.bool)

    def last_weight(gap: float) -> Tensor:
        elapsed = torch.tensor([[gap, 0.0]], dtype=torch.float64)
        summary = module(states, elapsed, both, torch.tensor([1]))
        return 2 * summary[0, :, 0].detach() - 1

    assert (last_weight(1.0) < last_weight(7.0)).all()
    assert (last_weight(7.0) < last_weight(60.0)).all()
