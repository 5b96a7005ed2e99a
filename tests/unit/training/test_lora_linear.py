import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from tests.typed import untyped
from training.learner.lora_linear import FrozenBaseLinear


def layers(dtype, *, bias, fused, rounds_once=False):
    """A frozen layer with an adapter, as peft or as we compute it, and its parameters."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(12, 7, bias=bias)).to(dtype).requires_grad_(False)
    config = LoraConfig(r=3, lora_alpha=2, target_modules=["0"])
    if fused:
        config._register_custom_module({nn.Linear: FrozenBaseLinear})
    model = get_peft_model(base, config, autocast_adapter_dtype=True)
    for module in model.modules():
        if isinstance(module, FrozenBaseLinear):
            module.rounds_once = rounds_once
    generator = torch.Generator().manual_seed(1)
    weights = [p for p in model.parameters() if p.requires_grad]
    for weight in weights:
        weight.data = torch.randn(weight.shape, generator=generator)
    return model, weights


def found(dtype, *, bias, fused, rounds_once=False):
    model, weights = layers(dtype, bias=bias, fused=fused, rounds_once=rounds_once)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 5, 12, generator=generator).to(dtype).requires_grad_()
    output = model(x)
    grad = torch.randn(output.shape, generator=generator).to(dtype)
    return [output, *torch.autograd.grad(output, [x, *weights], grad)]


@pytest.mark.parametrize("rounds_once", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_output_and_gradients_equal_those_of_pefts_layer(bias, rounds_once):
    expected = found(torch.float32, bias=bias, fused=False)
    ours = found(torch.float32, bias=bias, fused=True, rounds_once=rounds_once)

    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("rounds_once", [False, True])
def test_a_low_precision_base_keeps_fp32_adapter_gradients_within_its_rounding(rounds_once):
    output, grad_x, *gradients = found(
        torch.bfloat16, bias=True, fused=True, rounds_once=rounds_once
    )
    expected = found(torch.bfloat16, bias=True, fused=False)

    assert output.dtype == grad_x.dtype == torch.bfloat16
    assert {g.dtype for g in gradients} == {torch.float32}
    for ours, theirs in zip([output, grad_x, *gradients], expected, strict=True):
        assert (ours.float() - theirs.float()).norm() <= 0.02 * theirs.float().norm()


def test_the_input_gets_no_gradient_where_none_is_wanted():
    model, weights = layers(torch.float32, bias=False, fused=True)
    x = torch.randn(4, 12)

    model(x).sum().backward()

    assert x.grad is None
    assert all(weight.grad is not None for weight in weights)


def share_of_a_small_update(*, rounds_once, bias):
    """Slope of a bfloat16 layer's change on the exact one, over outputs."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(64, 128, bias=bias)).to(torch.bfloat16).requires_grad_(False)
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["0"])
    config._register_custom_module({nn.Linear: FrozenBaseLinear})
    model = get_peft_model(base, config, autocast_adapter_dtype=True)
    (layer,) = [each for each in model.modules() if isinstance(each, FrozenBaseLinear)]
    layer.rounds_once = rounds_once
    x = torch.randn(256, 64).to(torch.bfloat16)
    before = model(x)
    layer.lora_B["default"].weight.data = 4e-4 * torch.randn(128, 4)
    a, b = (untyped(each["default"]).weight for each in (layer.lora_A, layer.lora_B))
    exact = (x.float() @ a.t() @ b.t()).double().detach()
    change = (model(x).double() - before.double()).detach()
    return float((change * exact).sum() / (exact**2).sum())


@pytest.mark.parametrize("bias", [False, True])
def test_a_small_update_survives_the_rounding_of_the_sum(bias):
    assert share_of_a_small_update(rounds_once=True, bias=bias) == pytest.approx(1, abs=0.1)


def test_a_small_update_of_a_rounded_output_is_lost():
    # as peft and vLLM's LoRA kernels add it; what a learner beside native LoRA must do too
    assert share_of_a_small_update(rounds_once=False, bias=False) < 0.5
