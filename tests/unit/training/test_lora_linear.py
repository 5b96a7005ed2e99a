import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from training.lora_linear import FrozenBaseLinear


def layers(dtype, *, bias, fused):
    """A frozen layer with an adapter, as peft or as we compute it, and its parameters."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(12, 7, bias=bias)).to(dtype).requires_grad_(False)
    config = LoraConfig(r=3, lora_alpha=2, target_modules=["0"])
    if fused:
        config._register_custom_module({nn.Linear: FrozenBaseLinear})
    model = get_peft_model(base, config, autocast_adapter_dtype=True)
    generator = torch.Generator().manual_seed(1)
    weights = [p for p in model.parameters() if p.requires_grad]
    for weight in weights:
        weight.data = torch.randn(weight.shape, generator=generator)
    return model, weights


def found(dtype, *, bias, fused):
    model, weights = layers(dtype, bias=bias, fused=fused)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 5, 12, generator=generator).to(dtype).requires_grad_()
    output = model(x)
    grad = torch.randn(output.shape, generator=generator).to(dtype)
    return [output, *torch.autograd.grad(output, [x, *weights], grad)]


@pytest.mark.parametrize("bias", [False, True])
def test_output_and_gradients_equal_those_of_pefts_layer(bias):
    expected = found(torch.float32, bias=bias, fused=False)

    for ours, theirs in zip(found(torch.float32, bias=bias, fused=True), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_low_precision_base_keeps_fp32_adapter_gradients_within_its_rounding():
    output, grad_x, *gradients = found(torch.bfloat16, bias=True, fused=True)
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
