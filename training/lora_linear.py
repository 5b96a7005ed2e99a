"""A frozen linear layer and its LoRA update as one differentiable function."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from peft.tuners.lora import Linear
from torch import Tensor
from torch.autograd.function import once_differentiable


class FrozenBaseLinear(Linear):
    """peft's LoRA layer for one active adapter without dropout, in fewer passes.

    Parameters, names and files are peft's. Everything multiplies in the base's precision; the
    adapter and its gradients are fp32. The backward pass keeps the layer's input and x A^T alone,
    and gives the frozen weight no gradient.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output, x W^T + b + scaling * (x A^T) B^T."""
        (name,) = self.active_adapters
        base: Any = self.get_base_layer()
        lora_a: Any = self.lora_A[name]
        lora_b: Any = self.lora_B[name]
        return _LoraLinear.apply(
            x, base.weight, base.bias, lora_a.weight, lora_b.weight, self.scaling[name]
        )


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "*batch inputs"],
        weight: Float[Tensor, "outputs inputs"],
        bias: Float[Tensor, " outputs"] | None,
        lora_a: Float[Tensor, "rank inputs"],
        lora_b: Float[Tensor, "outputs rank"],
        scaling: float,
    ) -> Float[Tensor, "*batch outputs"]:
        rows = x.reshape(-1, x.shape[-1])
        output = F.linear(rows, weight, bias)
        inner = torch.mm(rows, lora_a.t().to(weight.dtype))
        output.addmm_(inner, (lora_b.t() * scaling).to(weight.dtype))
        ctx.save_for_backward(rows, inner, weight, lora_a, lora_b)
        ctx.scaling = scaling
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Float[Tensor, "*batch outputs"]
    ) -> tuple[Tensor | float | None, ...]:
        rows, inner, weight, lora_a, lora_b = ctx.saved_tensors
        grad_rows = grad.reshape(-1, grad.shape[-1])
        grad_inner = torch.mm(grad_rows, (lora_b * ctx.scaling).to(weight.dtype))
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.mm(grad_rows, weight)
            grad_x.addmm_(grad_inner, lora_a.to(weight.dtype))
            grad_x = grad_x.view(*grad.shape[:-1], -1)
        grad_a = torch.mm(grad_inner.t(), rows).to(lora_a.dtype)
        grad_b = torch.mm(grad_rows.t(), inner).to(lora_b.dtype).mul_(ctx.scaling)
        return grad_x, None, None, grad_a, grad_b, None
