"""The objective on a tiny policy, whole or in parts; as a program one of two gloo ranks."""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from tests.golden.losses import VOCABULARY, TinyPolicy
from tests.objective_cases import flat_policy_loss, loss_inputs, micro_batch, random_case
from tests.typed import known
from training.config.grpo import GrpoSection


def loss_and_gradient(parts: Sequence[Tensor], section: GrpoSection) -> Tensor:
    """Loss and gradient, flat, summed over micro-batches of an optimizer step of 32 sequences."""
    torch.manual_seed(0)
    policy = TinyPolicy()
    case = random_case(7, num_groups=4, group_size=8)
    tokens = torch.randint(0, VOCABULARY, case.mask.shape)
    with torch.no_grad():
        logp = policy(tokens)[0].double()
    old_logp = logp - (case.logp - case.old_logp)
    generator_logp = old_logp + (case.generator_logp - case.old_logp)
    case = replace(case, logp=logp, old_logp=old_logp, generator_logp=generator_logp)
    inputs = loss_inputs(case, section)
    total = torch.zeros((), dtype=torch.float64)
    for part in parts:
        ours = {**micro_batch(inputs, part), "logp": policy(tokens[part])[0].double()}
        loss = flat_policy_loss(**ours).loss
        loss.backward()
        total += loss.detach()
    gradient = torch.cat([known(weight.grad).flatten() for weight in policy.parameters()])
    return torch.cat([total[None], gradient.double()])


if __name__ == "__main__":
    rank, store, out = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=2)
    # Unequal shares in ragged micro-batches.
    share = torch.arange(32).split([20, 12])[int(rank)]
    found = [loss_and_gradient(share.split(5), GrpoSection(aggregation="token_mean"))]
    found.append(loss_and_gradient(share.split(5), GrpoSection()))
    for value in found:
        dist.all_reduce(value)
    if rank == "0":
        torch.save(found, Path(out))
    dist.barrier()
    dist.destroy_process_group()
    # A thread of gloo that is not quite done aborts an interpreter that is being taken down.
    os._exit(0)
