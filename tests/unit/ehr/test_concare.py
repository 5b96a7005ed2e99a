import math

import pytest
import torch

from ehr.config import TimeAttention
from ehr.expert.concare import (
    ConCare,
    ConCareOutput,
    ConCareShape,
    decov,
)

NUM_FEATURES = 5


def network(dropout: float = 0.0, form: TimeAttention = TimeAttention.PAPER) -> ConCare:
    torch.manual_seed(0)
    shape = ConCareShape(
        num_features=NUM_FEATURES,
        hidden_size=8,
        num_heads=2,
        feedforward_size=12,
        dropout=dropout,
        time_attention=form,
    )
    return ConCare(shape)


def patients(num: int, num_visits: int = 4) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(num, num_visits, NUM_FEATURES, generator=generator)
    days = torch.arange(num_visits).float().expand(num, -1).contiguous()
    lengths = torch.full((num,), num_visits)
    return values, days, lengths, torch.randn(num, 2, generator=generator)


def test_a_batch_of_one_patient_with_one_visit_trains() -> None:
    model = network(dropout=0.2).train()
    values, days, lengths, demographics = patients(1, num_visits=1)

    output = model(values, days, lengths, demographics)
    (output.logit.sum() + output.decov).backward()

    assert output.logit.shape == (1,)
    assert output.attention.shape == (1, NUM_FEATURES + 1)
    assert output.decov.item() == 0
    assert all(
        parameter.grad is None or parameter.grad.isfinite().all()
        for parameter in model.parameters()
    )


@pytest.mark.parametrize("form", TimeAttention)
@pytest.mark.parametrize("filler", [0.0, 1e6, math.nan, math.inf])
def test_padding_changes_nothing_whatever_stands_in_it(filler: float, form: TimeAttention) -> None:
    model = network(form=form).eval()
    values, days, lengths, demographics = patients(3)
    alone = model(values, days, lengths, demographics)

    padded = model(
        torch.cat([values, torch.full((3, 6, NUM_FEATURES), filler)], dim=1),
        torch.cat([days, torch.full((3, 6), filler)], dim=1),
        lengths,
        demographics,
    )

    torch.testing.assert_close(padded.logit, alone.logit, atol=1e-6, rtol=0)
    torch.testing.assert_close(padded.attention, alone.attention, atol=1e-6, rtol=0)


def test_a_patient_is_scored_the_same_alone_and_beside_longer_ones() -> None:
    model = network().eval()
    values, days, _, demographics = patients(3)
    lengths = torch.tensor([2, 4, 1])

    together = model(values, days, lengths, demographics)
    alone = model(values[:1, :2], days[:1, :2], lengths[:1], demographics[:1])

    torch.testing.assert_close(together.logit[:1], alone.logit, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["attention_norm", "feedforward_norm", "final_norm"])
def test_layer_normalisation_takes_part_in_the_output(name: str) -> None:
    model = network().eval()
    before = model(*patients(2)).logit

    getattr(model, name).weight.data[:4] *= 3.0

    assert not torch.allclose(model(*patients(2)).logit, before, atol=1e-4)


def test_decov_is_half_the_off_diagonal_covariance_of_each_token_summed() -> None:
    heads = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(5))
    covariances = [torch.cov(heads[:, token].t()) for token in range(3)]
    off_diagonal = [c - torch.diag(c.diagonal()) for c in covariances]
    expected = sum(0.5 * c.square().sum() for c in off_diagonal)

    torch.testing.assert_close(decov(heads), expected)


def test_decov_is_zero_for_units_that_do_not_vary_together() -> None:
    heads = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).unsqueeze(1)

    assert decov(heads).item() == pytest.approx(0)


def test_attention_is_the_softmax_before_dropout() -> None:
    model = network(dropout=0.7).train()

    attention = model(*patients(4)).attention

    torch.testing.assert_close(attention.sum(dim=1), torch.ones(4))
    assert (attention > 0).all()


def test_the_query_is_the_demographic_token_and_not_the_last_feature() -> None:
    model = network().eval()
    queries: list[torch.Tensor] = []
    model.final_query.register_forward_hook(lambda _, inputs, __: queries.append(inputs[0]))
    with torch.no_grad():  # without mixing across tokens, each token depends on its input alone
        model.self_attention.output.weight.zero_()
    values, days, lengths, demographics = patients(2)
    other_lab = values.clone()
    other_lab[:, :, -1] += 2

    model(values, days, lengths, demographics)
    model(other_lab, days, lengths, demographics)
    model(values, days, lengths, demographics + 1)

    torch.testing.assert_close(queries[0], queries[1])
    assert not torch.allclose(queries[0], queries[2])


@pytest.mark.parametrize("form", TimeAttention)
def test_time_is_days_and_not_the_index_of_the_visit(form: TimeAttention) -> None:
    model = network(form=form).eval()
    values, days, lengths, demographics = patients(2)

    near = model(values, days, lengths, demographics).logit
    far = model(values, days * 30, lengths, demographics).logit

    assert not torch.allclose(near, far, atol=1e-6)


def test_days_count_from_the_last_visit_so_a_common_shift_changes_nothing() -> None:
    model = network().eval()
    values, days, lengths, demographics = patients(2)

    torch.testing.assert_close(
        model(values, days + 100, lengths, demographics).logit,
        model(values, days, lengths, demographics).logit,
    )


@pytest.mark.parametrize("place", ["values", "days", "demographics"])
def test_what_is_not_a_number_makes_its_own_patient_nan_and_no_other(place: str) -> None:
    model = network().eval()
    values, days, lengths, demographics = patients(3)
    clean = model(values, days, lengths, demographics)
    {"values": values, "days": days, "demographics": demographics}[place][1].view(-1)[0] = math.nan

    spoilt = model(values, days, lengths, demographics)

    assert spoilt.logit[1].isnan()
    assert spoilt.attention[1].isnan().any()
    torch.testing.assert_close(spoilt.logit[[0, 2]], clean.logit[[0, 2]], atol=1e-6, rtol=0)
    torch.testing.assert_close(spoilt.attention[[0, 2]], clean.attention[[0, 2]], atol=1e-6, rtol=0)


def test_padding_gets_no_gradient_and_spoils_none() -> None:
    model = network()
    values, days, _, demographics = patients(2)
    values[0, 2:] = math.nan
    values.requires_grad_()

    model(values, days, torch.tensor([2, 4]), demographics).logit.sum().backward()

    assert values.grad is not None
    assert values.grad[0, 2:].eq(0).all()
    assert all(
        parameter.grad is None or parameter.grad.isfinite().all()
        for parameter in model.parameters()
    )


def test_every_feature_and_both_demographics_reach_the_logit() -> None:
    model = network().eval()
    values, days, lengths, demographics = patients(2)
    values.requires_grad_()
    demographics.requires_grad_()

    output: ConCareOutput = model(values, days, lengths, demographics)
    output.logit.sum().backward()

    assert values.grad is not None
    assert (values.grad.abs().sum(dim=(0, 1)) > 0).all()
    assert demographics.grad is not None
    assert (demographics.grad.abs().sum(dim=0) > 0).all()
