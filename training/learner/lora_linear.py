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

    rounds_once = False
    """In bfloat16: add the update to the base's product before that is rounded, as an engine with
    merged weights does. The base's output alone lies on the type's grid, and an update of less than
    half a step that is added afterwards, as by peft and by vLLM's LoRA kernels, changes nothing:
    of SmolLM2's change after 4 updates at 1e-4 less than half was left."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output, x W^T + b + scaling * (x A^T) B^T."""
        (name,) = self.active_adapters
        base: Any = self.get_base_layer()
        lora_a: Any = self.lora_A[name]
        lora_b: Any = self.lora_B[name]
        return _LoraLinear.apply(
            x,
            base.weight,
            base.bias,
            lora_a.weight,
            lora_b.weight,
            self.scaling[name],
            self.rounds_once,
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
        rounds_once: bool,
    ) -> Float[Tensor, "*batch outputs"]:
        rows = x.reshape(-1, x.shape[-1])
        inner = torch.mm(rows, lora_a.t().to(weight.dtype))
        scaled = (lora_b.t() * scaling).to(weight.dtype)
        if rounds_once:
            # kernels add and multiply in float32 and round what they return
            output = torch.addmm(torch.mm(inner, scaled), rows, weight.t())
            if bias is not None:
                output += bias
        else:
            output = F.linear(rows, weight, bias)
            output.addmm_(inner, scaled)
        ctx.save_for_backward(rows, inner, weight, lora_a, lora_b)
        ctx.scaling = scaling
        ctx.rounds_once = rounds_once
        return output.view(*x.shape[:-1], -1)

    # torch annotates neither its decorator nor that backward takes as many gradients as outputs.
    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Float[Tensor, "*batch outputs"]
    ) -> tuple[Tensor | float | None, ...]:
        rows, inner, weight, lora_a, lora_b = ctx.saved_tensors
        grad_rows = grad.reshape(-1, grad.shape[-1])
        grad_inner = torch.mm(grad_rows, (lora_b * ctx.scaling).to(weight.dtype))
        grad_x = None
        if ctx.needs_input_grad[0]:
            a = lora_a.to(weight.dtype)
            if ctx.rounds_once:
                grad_x = torch.addmm(torch.mm(grad_inner, a), grad_rows, weight)
            else:
                grad_x = torch.mm(grad_rows, weight).addmm_(grad_inner, a)
            grad_x = grad_x.view(*grad.shape[:-1], -1)
        grad_a = torch.mm(grad_inner.t(), rows).to(lora_a.dtype)
        grad_b = torch.mm(grad_rows.t(), inner).to(lora_b.dtype).mul_(ctx.scaling)
        return grad_x, None, None, grad_a, grad_b, None, None
