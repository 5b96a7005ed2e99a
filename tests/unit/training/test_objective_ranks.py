"""A step's loss and gradient do not depend on how its sequences are dealt out."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.learner_fakes import LEARNER, tiny_model, token_groups
from tests.objective_cases import flat_policy_loss
from tests.objective_ranks import loss_and_gradient
from training.config.grpo import GrpoSection
from training.learner.packing import pack
from training.learner.policy_model import load_policy_model
from training.objective.loss import LossDenominators


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "sum"])
@pytest.mark.parametrize("sizes", [[8] * 4, [1] * 32, [3, 14, 1, 9, 5]])
def test_micro_batches_give_the_gradient_of_the_whole(aggregation, sizes):
    section = GrpoSection(aggregation=aggregation)

    parts = loss_and_gradient(torch.arange(32).split(sizes), section)

    torch.testing.assert_close(
        parts, loss_and_gradient([torch.arange(32)], section), atol=1e-6, rtol=1e-5
    )


@pytest.mark.slow
def test_two_gloo_ranks_with_unequal_shares_add_up_to_the_whole(tmp_path):
    command = [sys.executable, "-m", "tests.objective_ranks"]
    rest = [str(tmp_path / "store"), str(tmp_path / "out.pt")]
    root = Path(__file__).parents[3]

    ranks = [subprocess.Popen([*command, str(rank), *rest], cwd=root) for rank in (0, 1)]

    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    sections = [GrpoSection(aggregation="token_mean"), GrpoSection()]
    for found, section in zip(torch.load(tmp_path / "out.pt"), sections, strict=True):
        whole = loss_and_gradient([torch.arange(32)], section)
        torch.testing.assert_close(found, whole, atol=1e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    loaded = load_policy_model(
        tiny_model(tmp_path_factory.mktemp("m")), LEARNER, dtype="float32", seed=3
    )
    torch.manual_seed(1)
    for weight in loaded.parameters():
        weight.data.normal_(0, 0.05)
    return loaded


def packed_gradient(model, groups, budget, aggregation):
    """The adapter's gradient of a step whose rows hold at most `budget` tokens."""
    model.zero_grad()
    counts = [sum(trained) for group in groups for trained in group.trained]
    generator = torch.Generator().manual_seed(2)
    advantage = torch.randn(len(counts), generator=generator)
    clip_high = 0.2 + 0.2 * torch.rand(len(counts), generator=generator)
    old = [0.4 * torch.randn(count, generator=generator) - 5.5 for count in counts]
    denominators = LossDenominators(num_sequences=len(counts), num_tokens=sum(counts))
    rows = pack(groups, budget)
    for row in rows:
        numbers = list(row.sequences)
        loss = flat_policy_loss(
            row.padded(model(row)[0]),
            row.padded(torch.cat([old[i] for i in numbers])),
            advantage[numbers],
            row.mask,
            0.2,
            clip_high[numbers],
            aggregation,
            denominators,
        ).loss
        loss.backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters()]), len(rows)


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "sum"])
def test_packed_rows_of_any_budget_give_the_same_gradient(model, aggregation):
    groups = token_groups(4, 8)  # 32 sequences

    found = [packed_gradient(model, groups, budget, aggregation) for budget in (4096, 110, 75, 40)]

    numbers = [num_rows for _, num_rows in found]
    assert numbers[0] == 1
    assert sorted(set(numbers)) == numbers  # each budget cuts the step otherwise
    for gradient, _ in found[1:]:
        torch.testing.assert_close(gradient, found[0][0], atol=1e-6, rtol=1e-4)
