"""In bf16 a packed row errs no more than stock transformers does on separate sequences."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.learner_fakes import LEARNER, tiny_model, token_groups
from tests.typed import known
from training.learner.packing import pack
from training.learner.policy_model import load_policy_model, save_adapter

FACTOR = 1.5
"""Both are rounding errors of the same size: their ratio scatters around 1."""
GROUPS = token_groups(3, 4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model that is exact in bf16, and an adapter that changes it a lot."""
    path = tiny_model(tmp_path_factory.mktemp("m"))
    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    base.float().save_pretrained(path)
    policy = load_policy_model(path, LEARNER, dtype="float32", seed=3)
    torch.manual_seed(1)
    for weight in policy.parameters():
        weight.data.normal_(0, 0.2)
    save_adapter(policy, path / "adapter")
    return path, policy


def weight_of(number, logprobs):
    """A weighted sum in which sequences pull in different directions."""
    return (number % 3 - 1.5) * logprobs.sum()


def dense(path, dtype):
    """Log-probabilities and adapter gradients by stock transformers and peft."""
    base = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    model = PeftModel.from_pretrained(base, path / "adapter", is_trainable=True)
    lines = []
    sequences = [
        (group.prompt, response, trained)
        for group in GROUPS
        for response, trained in zip(group.responses, group.trained, strict=True)
    ]
    for number, (prompt, response, trained) in enumerate(sequences):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        wanted = torch.tensor(trained)
        every = logits.float().log_softmax(-1)[wanted]
        line = every.gather(-1, torch.tensor(response)[wanted][:, None])[:, 0]
        weight_of(number, line).backward()
        lines.append(line.detach())
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.cat(lines), torch.cat([known(weight.grad).flatten().float() for weight in weights])


def packed(path, adapter):
    """The same by the learner's rows."""
    policy = load_policy_model(path, LEARNER, dtype="bfloat16", seed=3)
    for ours, theirs in zip(policy.parameters(), adapter.parameters(), strict=True):
        ours.data.copy_(theirs.data)
    lines = {}
    for row in pack(GROUPS, 80):
        parts = policy(row)[0].split(row.lengths)
        losses = [weight_of(n, part) for n, part in zip(row.sequences, parts, strict=True)]
        torch.stack(losses).sum().backward()
        lines |= {n: part.detach() for n, part in zip(row.sequences, parts, strict=True)}
    gradient = torch.cat([known(weight.grad).flatten() for weight in policy.parameters()])
    return torch.cat([lines[number] for number in sorted(lines)]), gradient


def test_log_probabilities_and_gradients_err_no_more_than_the_dense_computation_in_bf16(folders):
    path, adapter = folders
    exact, rounded = dense(path, torch.float32), dense(path, torch.bfloat16)

    ours = packed(path, adapter)

    for found, theirs, truth in zip(ours, rounded, exact, strict=True):
        dense_error = (theirs - truth).square().mean().sqrt()
        assert dense_error > 1e-4 * truth.square().mean().sqrt()  # bf16 it is
        assert (found - truth).square().mean().sqrt() <= FACTOR * dense_error
