"""The batched recurrence against `torch.nn.GRU`, one per feature: states, gradients, members."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

import ehr.expert.recurrence
from ehr.expert.recurrence import FeatureRecurrence
from tests.typed import untyped

FEATURES, HIDDEN, BATCH, VISITS = 5, 8, 3, 4


@pytest.fixture(params=[1, 2 * (BATCH + HIDDEN), 1000], ids=["single", "pairs", "all"])
def _parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that advance together: one, two (and a rest), all."""
    monkeypatch.setattr(ehr.expert.recurrence, "_CPU_ROWS", request.param)


def recurrence(dtype: torch.dtype = torch.float64, seed: int = 3) -> FeatureRecurrence:
    torch.manual_seed(seed)
    return FeatureRecurrence(FEATURES, HIDDEN).to(dtype)


def grus(module: FeatureRecurrence) -> list[nn.GRU]:
    """Reference GRUs with the same weights."""
    reference = []
    for feature in range(len(module.weight_input)):
        gru = nn.GRU(1, module.weight_hidden.shape[1], batch_first=True)
        gru.weight_ih_l0.data = module.weight_input[feature].detach().unsqueeze(-1).clone()
        gru.weight_hh_l0.data = module.weight_hidden[feature].detach().t().clone()
        gru.bias_ih_l0.data = module.bias_input[feature].detach().clone()
        gru.bias_hh_l0.data = module.bias_hidden[feature].detach().clone()
        reference.append(gru)
    return reference


def loop(reference: list[nn.GRU], values: Tensor) -> Tensor:
    """States [features, visits, batch, hidden], one GRU after the other."""
    states = [gru(values[:, :, i : i + 1])[0] for i, gru in enumerate(reference)]
    return torch.stack(states).transpose(1, 2)


def stacked_gradients(reference: list[nn.GRU]) -> dict[str, Tensor]:
    def stack(name: str) -> Tensor:
        gradients = [dict(gru.named_parameters())[name].grad for gru in reference]
        return torch.stack([gradient for gradient in gradients if gradient is not None])

    return {
        "weight_input": stack("weight_ih_l0").squeeze(-1),
        "weight_hidden": stack("weight_hh_l0").transpose(1, 2),
        "bias_input": stack("bias_ih_l0"),
        "bias_hidden": stack("bias_hh_l0"),
    }


@pytest.mark.usefixtures("_parts")
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_states_equal_a_loop_of_torch_grus(
    dtype: torch.dtype, atol: float, gradients: bool
) -> None:
    module = recurrence(dtype)
    values = torch.randn(BATCH, VISITS, FEATURES, dtype=dtype)

    with torch.set_grad_enabled(gradients):
        states = module(values)

    torch.testing.assert_close(states, loop(grus(module), values), atol=atol, rtol=0)


@pytest.mark.usefixtures("_parts")
@pytest.mark.parametrize("num_visits", [1, VISITS])
@pytest.mark.parametrize("batch", [1, BATCH])
def test_gradients_equal_those_of_a_loop_of_torch_grus(batch: int, num_visits: int) -> None:
    module = recurrence()
    reference = grus(module)
    values = torch.randn(batch, num_visits, FEATURES, dtype=torch.float64, requires_grad=True)
    same = values.detach().clone().requires_grad_()
    weights = torch.randn(FEATURES, num_visits, batch, HIDDEN, dtype=torch.float64)

    (module(values) * weights).sum().backward()
    (loop(reference, same) * weights).sum().backward()

    torch.testing.assert_close(values.grad, same.grad, atol=1e-12, rtol=0)
    for name, expected in stacked_gradients(reference).items():
        torch.testing.assert_close(getattr(module, name).grad, expected, atol=1e-12, rtol=0)


@pytest.mark.usefixtures("_parts")
@pytest.mark.parametrize("gradients", [True, False])
def test_patients_with_fewer_visits_cost_and_change_nothing(gradients: bool) -> None:
    module = recurrence()
    reference = grus(module)
    values = torch.randn(BATCH, VISITS, FEATURES, dtype=torch.float64, requires_grad=gradients)
    same = values.detach().clone().requires_grad_()
    has_visit = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 0, 0]]).unsqueeze(-1)
    weights = torch.randn(FEATURES, VISITS, BATCH, HIDDEN, dtype=torch.float64) * has_visit

    with torch.set_grad_enabled(gradients):
        states = module(values, active=[3, 2, 1, 1])

    expected = loop(reference, same)
    torch.testing.assert_close(states * has_visit, expected * has_visit, atol=1e-14, rtol=0)
    if gradients:
        (states * weights).sum().backward()
        (expected * weights).sum().backward()
        torch.testing.assert_close(values.grad, same.grad, atol=1e-12, rtol=0)
        for name, gradient in stacked_gradients(reference).items():
            actual = getattr(module, name).grad
            torch.testing.assert_close(actual, gradient, atol=1e-12, rtol=0)


def test_gradient_passes_torchs_own_check() -> None:
    module = recurrence()
    values = torch.randn(2, 3, FEATURES, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(
        lambda values, *parameters: functional_call(
            module, dict(zip(dict(module.named_parameters()), parameters, strict=True)), (values,)
        ),
        (values, *module.parameters()),
    )


@pytest.mark.parametrize("same_values", [True, False])
def test_members_as_one_recurrence_equal_members_one_by_one(same_values: bool) -> None:
    members = [recurrence(seed=seed) for seed in (1, 2, 3)]
    parameters, _ = stack_module_state(untyped(members))
    values = torch.randn(3, BATCH, VISITS, FEATURES, dtype=torch.float64)
    if same_values:
        values = values[:1].expand(3, -1, -1, -1)
    values = values.clone().requires_grad_()

    def run(member: dict[str, Tensor], values: Tensor) -> Tensor:
        return functional_call(members[0], member, (values,))

    together = vmap(run, in_dims=(0, None if same_values else 0))(
        parameters, values[0] if same_values else values
    )
    one_by_one = torch.stack([m(v) for m, v in zip(members, values, strict=True)])

    torch.testing.assert_close(together, one_by_one, atol=1e-14, rtol=0)
    asked = (*parameters.values(), values)
    of_together = torch.autograd.grad(together.square().sum(), asked)
    of_one_by_one = torch.autograd.grad(
        one_by_one.square().sum(), [p for m in members for p in m.parameters()] + [values]
    )
    for index, name in enumerate(parameters):
        expected = torch.stack(of_one_by_one[index :: len(parameters)][:3])
        torch.testing.assert_close(of_together[index], expected, atol=1e-12, rtol=0, msg=name)
    shared = of_one_by_one[-1].sum(0) if same_values else of_one_by_one[-1]
    actual = of_together[-1].sum(0) if same_values else of_together[-1]
    torch.testing.assert_close(actual, shared, atol=1e-12, rtol=0)


def test_a_network_of_the_recurrence_can_be_asked_twice_for_its_gradient() -> None:
    module = recurrence()
    states = module(torch.randn(2, 3, FEATURES, dtype=torch.float64))

    first = torch.autograd.grad(states.sum(), module.weight_hidden, retain_graph=True)
    second = torch.autograd.grad(states.sum(), module.weight_hidden)

    torch.testing.assert_close(first, second, atol=0, rtol=0)
