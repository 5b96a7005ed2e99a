"""One GRU per feature, all advanced together: by visits, with a gradient in closed form.

Gates stand in the order of `torch.nn.GRU` (reset r, update z, new n) and follow its equations:

    r = sigmoid(x W_xr + b_xr + h W_hr + b_hr)        n = tanh(x W_xn + b_xn + r m)
    z = sigmoid(x W_xz + b_xz + h W_hz + b_hz)        m = h W_hn + b_hn
    h' = n + z (h - n)

Left to autograd, every visit leaves a dozen small operators behind it, and each walks through
memory once more on the way back. Here a visit is seven operators forward and a dozen backward, for
all features and patients of a part that fits the cache, and nothing is computed for padding.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_CPU_ROWS = 3072
"""Rows of gates and of weights (384 bytes at hidden size 32) of the features that advance together
on a CPU: more do not fit a core's cache, and then the batched recurrence is slower than one GRU
after the other (`benchmarks/concare.py`)."""


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
        self, values: Float[Tensor, "batch visits features"], active: Sequence[int] | None = None
    ) -> Float[Tensor, "features visits batch hidden"]:
        """Hidden state of every feature after every visit; a loop of `torch.nn.GRU` agrees.

        Differentiable once, and under `torch.func.vmap` the members of an ensemble are simply more
        features of one recurrence.

        Args:
            values: the features' values.
            active: how many patients have each visit, the patients with most visits first (all of
                them by default); the states of visits that a patient does not have are 0.
        """
        states, *_ = _Recurrence.apply(
            values,
            self.weight_input,
            self.weight_hidden,
            self.bias_input,
            self.bias_hidden,
            (values.shape[0],) * values.shape[1] if active is None else tuple(active),
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
        active: tuple[int, ...],
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States [features, visits, batch, hidden]; gates (r, z, m) and candidates n, flat.

        Gates and candidates stand visit after visit, of active patients only: a result that is not
        contiguous costs one matrix product per feature. They are the last visit's if not kept.
        """
        num_features, hidden_size, _ = weight_hidden.shape
        batch, num_visits, _ = values.shape
        values = values.permute(2, 1, 0).unsqueeze(-1)
        weight_input = weight_input.unsqueeze(1)
        # The biases of reset and update only ever appear as a sum.
        bias_new = bias_input[:, None, 2 * hidden_size :]
        bias_hidden = bias_hidden.unsqueeze(1).clone()
        bias_hidden[..., : 2 * hidden_size] += bias_input[:, None, : 2 * hidden_size]

        num_rows = sum(active) if keep else max(active)
        states = values.new_zeros(num_features, num_visits, batch, hidden_size)
        flat_gates = values.new_empty(num_features * num_rows * 3 * hidden_size)
        flat_candidates = values.new_empty(num_features * num_rows * hidden_size)
        gates = _by_visit(flat_gates, active, num_features, keep)
        candidates = _by_visit(flat_candidates, active, num_features, keep)
        for part in _parts(weight_hidden, batch):
            weight, bias, of_new = weight_hidden[part], bias_hidden[part], bias_new[part]
            weight_both, weight_new = weight_input[part].split([2 * hidden_size, hidden_size], -1)
            hidden = values.new_zeros(())
            for visit, rows in enumerate(active):
                value = values[part, visit, :rows]
                gate, candidate = gates[visit][part], candidates[visit][part]
                if visit:
                    hidden = hidden[:, :rows]
                    torch.baddbmm(bias, hidden, weight, out=gate)
                else:  # the state before the first visit is zero
                    gate.copy_(bias)
                reset, update, from_hidden = gate.split(hidden_size, -1)
                gate[..., : 2 * hidden_size].addcmul_(value, weight_both).sigmoid_()
                torch.addcmul(of_new, value, weight_new, out=candidate)
                candidate.addcmul_(reset, from_hidden).tanh_()
                after = states[part, visit, :rows]
                torch.lerp(candidate, hidden.expand_as(candidate), update, out=after)
                hidden = after
        return states, flat_gates, flat_candidates

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        values, weight_input, weight_hidden, _, _, active, _ = inputs
        states, gates, candidates = output
        ctx.active = active
        ctx.mark_non_differentiable(gates, candidates)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(values, weight_input, weight_hidden, states, gates, candidates)

    # torch annotates neither its decorator nor that backward takes as many gradients as outputs.
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients with respect to values, weights and biases."""
        gradient = gradients[0]
        if gradient is None:
            return (None,) * 7
        active: tuple[int, ...] = ctx.active
        values, weight_input, weight_hidden, states, gates, candidates = ctx.saved_tensors
        num_features, hidden_size, _ = weight_hidden.shape
        gates = _by_visit(gates, active, num_features, True)
        candidates = _by_visit(candidates, active, num_features, True)
        value = _rows(values.permute(2, 1, 0).unsqueeze(-1), active).transpose(1, 2)
        of_input = torch.cat([value, torch.ones_like(value)], dim=1)  # features, 2, rows
        to_values = torch.empty_like(value) if ctx.needs_input_grad[0] else None
        to_weight = torch.zeros_like(weight_hidden)
        to_hidden = values.new_empty(num_features, 2, 3 * hidden_size)
        to_new = values.new_empty(num_features, 2, hidden_size)
        for part in _parts(weight_hidden, values.shape[0]):
            before, new = _before_gates(
                gradient[part],
                weight_hidden[part],
                states[part],
                [gate[part] for gate in gates],
                [candidate[part] for candidate in candidates],
            )
            if len(active) > 1:
                earlier = _rows(states[part], active[1:]).transpose(1, 2)
                torch.bmm(earlier, before[:, active[0] :], out=to_weight[part])
            torch.bmm(of_input[part], before, out=to_hidden[part])
            torch.bmm(of_input[part], new, out=to_new[part])
            if to_values is not None:
                both, alone = weight_input[part].split([2 * hidden_size, hidden_size], -1)
                of_gates = before[..., : 2 * hidden_size] @ both.unsqueeze(-1)
                of_new = torch.baddbmm(of_gates, new, alone.unsqueeze(-1))
                to_values[part] = of_new.transpose(1, 2)
        to_input = torch.cat([to_hidden[..., : 2 * hidden_size], to_new], dim=-1)
        if to_values is not None:
            rows = to_values.squeeze(1).t().split(active)
            to_values = torch.zeros_like(values)
            for visit, row in enumerate(rows):
                to_values[: len(row), visit] = row
        return to_values, to_input[:, 0], to_weight, to_input[:, 1], to_hidden[:, 1], None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], *arguments: Any
    ) -> tuple[tuple[Any, ...], tuple[int | None, ...]]:
        """Members become further features: one recurrence instead of one per member.

        `in_dims` has one entry an argument; of an argument that is a tuple, one each of its items.
        """
        *tensors, active, keep = arguments
        num_members = info.batch_size

        def first(tensor: Tensor, dim: int | None) -> Tensor:
            if dim is None:
                return tensor.expand(num_members, *tensor.shape)
            return tensor.movedim(dim, 0)

        values, *parameters = (
            first(tensor, dim) for tensor, dim in zip(tensors, in_dims, strict=False)
        )
        # members, batch, visits, features -> batch, visits, members x features
        values = values.permute(1, 2, 0, 3).flatten(2)
        parameters = [each.flatten(0, 1) for each in parameters]
        states, *kept = _Recurrence.apply(values, *parameters, active, keep)
        # What is kept is of all members together; the call above has its own gradient.
        return (states.unflatten(0, (num_members, -1)), *kept), (0, None, None)


def _before_gates(
    gradient: Tensor,
    weight: Tensor,
    states: Tensor,
    gates: Sequence[Tensor],
    candidates: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Gradients before the nonlinearities, (r, z, m) side by side and n: [features, rows, ...]."""
    num_features, hidden_size, _ = weight.shape
    active = [candidate.shape[1] for candidate in candidates]
    before = weight.new_empty(num_features, sum(active), 3 * hidden_size)
    new = weight.new_empty(num_features, sum(active), hidden_size)
    befores, news = before.split(active, dim=1), new.split(active, dim=1)
    back = weight.transpose(1, 2)
    running = gradient[:, -1, : active[-1]]
    for visit in range(len(active) - 1, -1, -1):
        rows, gate, candidate = active[visit], gates[visit], candidates[visit]
        reset, update, from_hidden = gate.split(hidden_size, -1)
        to_reset, to_update, to_hidden = befores[visit].split(hidden_size, -1)
        kept = running * update
        passed = running - kept  # what goes on to the candidate
        to_new = torch.addcmul(passed, passed * candidate, candidate, value=-1, out=news[visit])
        change = states[:, visit - 1, :rows] - candidate if visit else -candidate
        torch.addcmul(kept, kept, update, value=-1, out=to_update).mul_(change)
        torch.mul(to_new, reset, out=to_hidden)
        torch.addcmul(to_hidden, to_hidden, reset, value=-1, out=to_reset).mul_(from_hidden)
        if visit:
            earlier = gradient[:, visit - 1]
            running = (kept + earlier[:, :rows]).baddbmm_(befores[visit], back)
            if active[visit - 1] > rows:  # patients whose last visit is the earlier one
                running = torch.cat([running, earlier[:, rows : active[visit - 1]]], dim=1)
    return before, new


def _by_visit(flat: Tensor, active: Sequence[int], num_features: int, keep: bool) -> list[Tensor]:
    """Views [features, patients, width] of a flat buffer, one per visit (or all the same)."""
    if not keep:
        per_row = flat.numel() // max(active)
        return [flat[: rows * per_row].view(num_features, rows, -1) for rows in active]
    per_row = flat.numel() // sum(active)
    parts = flat.split([rows * per_row for rows in active])
    return [part.view(num_features, rows, -1) for part, rows in zip(parts, active, strict=True)]


def _rows(padded: Tensor, active: Sequence[int]) -> Tensor:
    """[features, visits, batch, width] without the padding: [features, rows, width]."""
    if len(set(active)) == 1 and active[0] == padded.shape[2]:
        return padded[:, : len(active)].flatten(1, 2)
    return torch.cat([padded[:, visit, :rows] for visit, rows in enumerate(active)], dim=1)


def _parts(weight: Tensor, batch: int) -> list[slice]:
    """Features that advance together: all of them, or as many as fit a CPU's cache."""
    num_features, hidden_size, _ = weight.shape
    on_cpu = weight.device.type == "cpu"
    size = max(1, _CPU_ROWS // (batch + hidden_size)) if on_cpu else num_features
    return [slice(start, start + size) for start in range(0, num_features, size)]
