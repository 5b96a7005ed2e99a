"""What a learner rank does where tests spawn two: python -m tests.learner_ranks NAME RANK ..."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from tests.integration import test_learner as parts
from tests.learner_fakes import token_groups
from training.grpo.batch import TrainingBatch
from training.learner.packing import deal, pack
from training.learner.policy_model import adapter_weights


def train_batch(out: Path, path: str) -> None:
    """A step of `BatchTrainer` with its checkpoint and metrics."""
    _train(out, path, parts.batch())


def train_exact_batch(out: Path, path: str) -> None:
    """The same with exact risks."""
    _train(out, path, parts.risky_batch())


def _train(out: Path, path: str, batch: TrainingBatch) -> None:
    training = parts.trainer(path)
    metrics = training.train(batch)
    training._learner.save(out)
    if dist.get_rank() == 0:
        (out / "metrics.json").write_text(json.dumps(metrics))


def zero_and_plain(out: Path, path: str) -> None:
    """Three steps of 32 sequences in ragged rows under ZeRO-2, and by AdamW with an all-reduce."""
    rows = deal(pack(token_groups(4, 8), 64), 2)[dist.get_rank()]
    total = sum(sum(row.lengths) for row in pack(token_groups(4, 8), 64))
    learner, plain = parts.learner(path), parts.model(path)
    adamw = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0)

    def loss(row, logprobs):
        return parts.row_loss(row, logprobs, total) if row.sequences else logprobs.sum() * 0

    for _ in range(3):
        for row in rows:
            learner.backward(loss(row, learner.logprobs(row)))
            loss(row, plain(row)[0]).backward()
        for weight in plain.parameters():
            dist.all_reduce(weight.grad)
        learner.step(1e-2)
        torch.nn.utils.clip_grad_norm_(plain.parameters(), parts.SECTION.gradient_clip)
        adamw.step()
        adamw.zero_grad()
    if dist.get_rank() == 0:
        save_file(adapter_weights(learner.model), out / "zero.safetensors")
        save_file(adapter_weights(plain), out / "plain.safetensors")


if __name__ == "__main__":
    name, rank, store, out, *arguments = sys.argv[1:]
    os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK=rank)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=2)
    functions = (train_batch, train_exact_batch, zero_and_plain)
    {each.__name__: each for each in functions}[name](Path(out), *arguments)
    dist.destroy_process_group()
