"""What is merged is what an engine serves: exact in float32, right in expectation in bfloat16."""

import pytest
import torch

from services.adapters import LoraPair
from services.merging import merged_weight, rounded_at_random

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = (0.05 * torch.randn(64, 96, generator=GENERATOR)).bfloat16()
PAIR = LoraPair(
    a=0.02 * torch.randn(8, 96, generator=GENERATOR),
    b=4e-4 * torch.randn(64, 8, generator=GENERATOR),  # what four updates at 1e-4 leave
)
UPDATE = 0.5 * (PAIR.b @ PAIR.a)


def merged(dtype, draw="v1 w", weight=WEIGHT, pair=PAIR):
    return merged_weight(weight, pair, 0.5, dtype, draw)


def share(served):
    """Slope of the served update on the trained one, over all weights."""
    change = served.double() - WEIGHT.double()
    return float((change * UPDATE).sum() / (UPDATE.double() ** 2).sum())


def test_a_float32_engine_gets_the_sum_of_a_bfloat16_file_and_its_adapter_unrounded():
    found = merged(torch.float32)

    assert found.dtype is torch.float32
    assert torch.allclose(found - WEIGHT.float(), UPDATE, rtol=0, atol=1e-8)


def test_rounding_to_the_nearest_would_lose_most_of_a_small_update():
    assert share((WEIGHT.float() + UPDATE).bfloat16()) < 0.5


def test_a_bfloat16_engine_gets_the_update_in_expectation():
    found = torch.stack([merged(torch.bfloat16, f"v{i} w").double() for i in range(100)])

    assert share(found.mean(0)) == pytest.approx(1, abs=0.02)


def test_every_weight_is_one_of_the_two_neighbours_of_its_exact_value():
    exact = merged(torch.float32)
    found = merged(torch.bfloat16)

    assert found.dtype is torch.bfloat16
    step = torch.exp2(torch.floor(torch.log2(exact.abs())) - 7)
    assert ((found.float() - exact).abs() < step).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_value_goes_to_a_neighbour_as_often_as_it_is_near_to_it(sign):
    step = 2.0**-7  # between neighbours from 1 on
    values = torch.full((200_000,), sign * (1 + 0.3 * step))

    found = rounded_at_random(values, "draw").float()

    assert set(found.tolist()) == {sign, sign * (1 + step)}
    assert float((found.abs() > 1).float().mean()) == pytest.approx(0.3, abs=0.005)


def test_what_the_type_has_stays_bit_by_bit():
    nothing = LoraPair(a=PAIR.a, b=torch.zeros_like(PAIR.b))
    special = torch.tensor([0.0, 1.0, -2.5, 2.0**-130, 3e38, float("inf")]).bfloat16()

    assert torch.equal(merged(torch.bfloat16, pair=nothing), WEIGHT)
    assert torch.equal(rounded_at_random(special.float(), "draw"), special)


def test_replicas_draw_alike_and_policies_and_weights_draw_apart():
    first = merged(torch.bfloat16, "policy weight")

    assert torch.equal(first, merged(torch.bfloat16, "policy weight"))
    assert not torch.equal(first, merged(torch.bfloat16, "next weight"))
    assert not torch.equal(first, merged(torch.bfloat16, "policy other"))


def test_a_file_in_float32_is_rounded_to_the_engines_type_as_the_learners_base_is():
    exact = 0.05 * torch.randn(64, 96, generator=torch.Generator().manual_seed(1))
    nothing = LoraPair(a=PAIR.a, b=torch.zeros_like(PAIR.b))

    served = merged(torch.bfloat16, weight=exact, pair=nothing)

    assert torch.equal(served, exact.bfloat16())
    assert torch.equal(merged(torch.float32, weight=exact, pair=nothing), exact)
