"""A learner rank of supervised fine-tuning: the loop over the planned steps."""

import time
from typing import Any

import torch
import torch.distributed as dist

from ehr.errors import TrainingError
from ehr.whole_files import write_folder
from services.adapters import adapter_checksum
from training.learner.canary import CanaryRecord
from training.learner.checkpoints import CheckpointFolder
from training.learner.learner import Learner
from training.learner.packing import deal, pack
from training.learner.policy_model import adapter_bytes, load_policy_model, save_adapter
from training.learner.worker_group import prepare_rank
from training.run.metrics_file import MetricsFile
from training.sft.inputs import SftInputs
from training.sft.loss import sft_loss
from training.sft.steps import SftStep, all_groups, plan_steps


def train_rank(inputs: SftInputs) -> None:
    """What every rank runs: the steps that no checkpoint has yet."""
    device = prepare_rank(inputs.learner)
    model = load_policy_model(
        inputs.model_path,
        inputs.learner,
        dtype=inputs.dtype,
        seed=inputs.sft.seed,
        device=device,
        served_merged=inputs.served_merged,
    )
    learner = Learner(model, inputs.learner)
    scored = inputs.canary.prompt_token_ids, inputs.canary.response_token_ids
    # of the fresh adapter, before a checkpoint is loaded
    untrained = learner.scores(*scored) if learner.rank == 0 else ()
    checkpoints = CheckpointFolder(inputs.out_dir / "checkpoint")
    metrics = MetricsFile(inputs.out_dir / "metrics.jsonl")
    done = max(checkpoints.steps(), default=0)
    if done:
        learner.load(checkpoints.path(done))
    for step in plan_steps(inputs.examples, inputs.sft)[done:]:
        line = _train_step(learner, step, inputs)
        if step.ends_epoch and inputs.held_out:
            line |= _validate(learner, inputs)
        if learner.rank == 0:
            metrics.append(line)
        if step.ends_epoch or step.step % inputs.sft.checkpoint_steps == 0:
            checkpoints.save(step.step, learner.rank, learner.save)
    if learner.rank == 0:
        record = CanaryRecord(canary=inputs.canary, learner_before=untrained)
        checksum = adapter_checksum(adapter_bytes(model))
        record.trained(checksum, learner.scores(*scored)).write(inputs.out_dir)
        write_folder(inputs.out_dir / "adapter", lambda folder: save_adapter(model, folder))


def _train_step(learner: Learner, step: SftStep, inputs: SftInputs) -> dict[str, Any]:
    started = time.monotonic()
    packed = pack(step.groups, inputs.learner.max_row_tokens)
    total = torch.zeros((), device=learner.model.device)
    for row in deal(packed, learner.num_ranks)[learner.rank]:
        loss = sft_loss(learner.logprobs(row), row, inputs.sft, step.num_trajectories)
        if not loss.isfinite():
            patients = [group.patient_id for group in step.groups]
            raise TrainingError(
                f"expected a finite loss in step {step.step}, got {float(loss)!r}; its patients "
                f"are {patients[:5]!r}; lower {inputs.stage}.learning_rate"
            )
        learner.backward(loss)
        total += loss.detach()
    norm = learner.step(step.learning_rate)
    dist.all_reduce(total)
    seconds = time.monotonic() - started
    trained = sum(sum(map(sum, group.trained)) for group in step.groups)
    return {
        "step": step.step,
        "epoch": step.epoch,
        "sft/loss": float(total),
        "sft/learning_rate": step.learning_rate,
        "sft/trajectories": step.num_trajectories,
        "sft/tokens": trained,
        "grad/norm": norm,
        "tokens/learner": sum(row.num_tokens for row in packed),
        "tokens/useful_per_s": trained / seconds,
        "time/step_s": seconds,
    }


def _validate(learner: Learner, inputs: SftInputs) -> dict[str, Any]:
    """The held-out answers' mean of token means, whatever `reduction` is trained with."""
    started = time.monotonic()
    section = inputs.sft.model_copy(update={"reduction": "token_mean"})
    num_answers = sum(len(example.responses) for example in inputs.held_out)
    packed = pack(all_groups(inputs.held_out), inputs.learner.max_row_tokens)
    total = torch.zeros((), device=learner.model.device)
    for row in deal(packed, learner.num_ranks)[learner.rank]:
        total += sft_loss(learner.frozen_logprobs(row)[0], row, section, num_answers)
    dist.all_reduce(total)
    return {
        "sft/validation_loss": float(total),
        "time/validation_s": time.monotonic() - started,
    }
