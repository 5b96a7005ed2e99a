"""One GRU per feature, all advanced together: by visits, with a gradient in closed form.

Gates stand in the order of `torch.nn.GRU` (reset r, update z, new n) and follow its equations:

    r = sigmoid(x W_xr + b_xr + h W_hr + b_hr)        n = tanh(x W_xn + b_xn + r m)
    z = sigmoid(x W_xz + b_xz + h W_hz + b_hz)        m = h W_hn + b_hn
    h' = n + z (h - n)

Left to autograd, every visit leaves a dozen small operators behind it, and each walks through
memory once more on the way back. Here a visit is seven operators forward and six backward, whatever
the number of features, patients or members of an ensemble.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_CPU_ROWS = 2048
"""Features times patients that advance together on a CPU: more no longer fit its cache, and then
the batched recurrence is slower than one GRU after the other (`benchmarks/concare.py`)."""


class FeatureRecurrence(nn.Module):
    """One GRU per feature, all of them advanced together by one batched matrix product a visit."""

    def __init__(self, num_features: int, hidden_size: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(hidden_size)  # torch.nn.GRU's initial range

        def uniform(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))

        self.weight_input = uniform(num_features, 3 * hidden_size)
        self.weight_hidden = uniform(num_features, hidden_size, 3 * hidden_size)
        self.bias_input = uniform(num_features, 3 * hidden_size)
        self.bias_hidden = uniform(num_features, 3 * hidden_size)

    def forward(
        self, values: Float[Tensor, "batch visits features"]
    ) -> Float[Tensor, "features visits batch hidden"]:
        """Hidden state of every feature after every visit; a loop of `torch.nn.GRU` agrees.

        Differentiable once, and under `torch.func.vmap` the members of an ensemble are simply more
        features of one recurrence.
        """
        states, *_ = _Recurrence.apply(
            values,
            self.weight_input,
            self.weight_hidden,
            self.bias_input,
            self.bias_hidden,
            torch.is_grad_enabled(),
        )
        return states


class _Recurrence(torch.autograd.Function):
    """States of all GRUs; gates and candidates are kept where a gradient may be asked for."""

    @staticmethod
    def forward(
        values: Tensor,
        weight_input: Tensor,
        weight_hidden: Tensor,
        bias_input: Tensor,
        bias_hidden: Tensor,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States [features, visits, batch, hidden]; gates (r, z, m) and candidates n, visits first.

        Gates and candidates have one visit instead of all if they are not kept. Visits come first
        because only a contiguous result is one matrix product (else it is one per feature).
        """
        num_features, hidden_size, _ = weight_hidden.shape
        batch, num_visits, _ = values.shape
        values = values.permute(2, 1, 0).unsqueeze(-1)
        weight_input = weight_input.unsqueeze(1)
        # The biases of reset and update only ever appear as a sum.
        bias_new = bias_input[:, None, 2 * hidden_size :]
        bias_hidden = bias_hidden.unsqueeze(1).clone()
        bias_hidden[..., : 2 * hidden_size] += bias_input[:, None, : 2 * hidden_size]

        def kept(width: int) -> Tensor:
            return values.new_empty(num_visits if keep else 1, num_features, batch, width)

        states = values.new_empty(num_features, num_visits, batch, hidden_size)
        gates, candidates = kept(3 * hidden_size), kept(hidden_size)
        for part in _parts(num_features, batch, values.device):
            weight, bias, of_new = weight_hidden[part], bias_hidden[part], bias_new[part]
            weight_both, weight_new = weight_input[part].split([2 * hidden_size, hidden_size], -1)
            hidden = values.new_zeros(())
            for visit in range(num_visits):
                slot = visit if keep else 0
                value = values[part, visit]
                gate, candidate = gates[slot, part], candidates[slot, part]
                if visit:
                    torch.baddbmm(bias, hidden, weight, out=gate)
                else:  # the state before the first visit is zero
                    gate.copy_(bias)
                reset, update, from_hidden = gate.split(hidden_size, -1)
                gate[..., : 2 * hidden_size].addcmul_(value, weight_both).sigmoid_()
                torch.addcmul(of_new, value, weight_new, out=candidate)
                candidate.addcmul_(reset, from_hidden).tanh_()
                after = states[part, visit]
                torch.lerp(candidate, hidden.expand_as(candidate), update, out=after)
                hidden = after
        return states, gates, candidates

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        values, weight_input, weight_hidden, *_ = inputs
        states, gates, candidates = output
        ctx.mark_non_differentiable(gates, candidates)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(values, weight_input, weight_hidden, states, gates, candidates)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients with respect to values, weights and biases."""
        gradient = gradients[0]
        if gradient is None:
            return (None,) * 6
        values, weight_input, weight_hidden, states, gates, candidates = ctx.saved_tensors
        num_features, num_visits, batch, hidden_size = states.shape
        ones = values.new_ones(num_features, 1, num_visits * batch)
        value = values.permute(2, 1, 0).reshape(num_features, 1, -1)
        of_input = torch.cat([value, ones], dim=1)  # features, 2, visits x batch
        to_values = torch.empty_like(value) if ctx.needs_input_grad[0] else None
        to_weight = torch.zeros_like(weight_hidden)
        to_hidden = values.new_empty(num_features, 2, 3 * hidden_size)
        to_new = values.new_empty(num_features, 2, hidden_size)
        for part in _parts(num_features, batch, values.device):
            kept = gates[:, part].transpose(0, 1), candidates[:, part].transpose(0, 1)
            before, new = _before_gates(gradient[part], weight_hidden[part], states[part], *kept)
            rows = before.flatten(1, 2), new.flatten(1, 2)
            if num_visits > 1:
                earlier = states[part, :-1].flatten(1, 2).transpose(1, 2)
                torch.bmm(earlier, before[:, 1:].flatten(1, 2), out=to_weight[part])
            torch.bmm(of_input[part], rows[0], out=to_hidden[part])
            torch.bmm(of_input[part], rows[1], out=to_new[part])
            if to_values is not None:
                both, alone = weight_input[part].split([2 * hidden_size, hidden_size], -1)
                of_gates = rows[0][..., : 2 * hidden_size] @ both.unsqueeze(-1)
                to_values[part] = torch.baddbmm(of_gates, rows[1], alone.unsqueeze(-1)).transpose(
                    1, 2
                )
        to_input = torch.cat([to_hidden[..., : 2 * hidden_size], to_new], dim=-1)
        if to_values is not None:
            to_values = to_values.view(num_features, num_visits, batch).permute(2, 1, 0)
        return to_values, to_input[:, 0], to_weight, to_input[:, 1], to_hidden[:, 1], None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *arguments: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int, int, int]]:
        """Members become further features: one recurrence instead of one per member."""
        *tensors, keep = arguments
        num_members = info.batch_size

        def first(tensor: Tensor, dim: int | None) -> Tensor:
            if dim is None:
                return tensor.expand(num_members, *tensor.shape)
            return tensor.movedim(dim, 0)

        values, *parameters = map(first, tensors, in_dims)
        # members, batch, visits, features -> batch, visits, members x features
        values = values.permute(1, 2, 0, 3).flatten(2)
        parameters = [each.flatten(0, 1) for each in parameters]
        states, *kept = _Recurrence.apply(values, *parameters, keep)
        of_members = [states.unflatten(0, (num_members, -1))]
        of_members += [each.unflatten(1, (num_members, -1)) for each in kept]
        return tuple(of_members), (0, 1, 1)


def _before_gates(
    gradient: Tensor, weight: Tensor, states: Tensor, gates: Tensor, candidates: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients before the nonlinearities: (r, z, m) side by side, and n; every visit."""
    hidden_size = states.shape[-1]
    num_visits = states.shape[1]
    reset, update, from_hidden = gates.split(hidden_size, -1)
    # Factors by which a state's gradient reaches n, z and, from n, r.
    fraction = 1 - update
    new_factor = fraction * (1 - candidates * candidates)
    change = -candidates
    change[:, 1:] += states[:, :-1]
    update_factor = change.mul_(update).mul_(fraction)
    reset_factor = (1 - reset).mul_(reset).mul_(from_hidden)
    before = gates.new_empty(gates.shape)
    new = gates.new_empty(candidates.shape)
    back = weight.transpose(1, 2)
    running = gradient[:, -1]
    for visit in range(num_visits - 1, -1, -1):
        to_reset, to_update, to_hidden = before[:, visit].split(hidden_size, -1)
        torch.mul(running, update_factor[:, visit], out=to_update)
        to_new = torch.mul(running, new_factor[:, visit], out=new[:, visit])
        torch.mul(to_new, reset_factor[:, visit], out=to_reset)
        torch.mul(to_new, reset[:, visit], out=to_hidden)
        if visit:
            running = torch.addcmul(gradient[:, visit - 1], running, update[:, visit])
            running.baddbmm_(before[:, visit], back)
    return before, new


def _parts(num_features: int, batch: int, device: torch.device) -> list[slice]:
    """Features that advance together: all of them, or as many as fit a CPU's cache."""
    size = num_features if device.type != "cpu" else max(1, _CPU_ROWS // max(batch, 1))
    return [slice(start, start + size) for start in range(0, num_features, size)]
