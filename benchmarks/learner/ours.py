"""The project's learner on one group: old log-probabilities, then forward and backward of the loss.

`ours` is what the learner does (`training.grpo.updates`) without DeepSpeed, whose share is the
reduction of the adapter's gradients and the optimizer. The dense arms compute the same loss with
the same model and a prompt per answer: as rows of our own packing, or as a batch through torch's
scaled_dot_product_attention with a causal mask. No sequence is padded.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.learner.cell import (
    Cell,
    advantages_of,
    peak_bytes,
    run_cell,
    seconds_of,
    summary,
    tokens_of,
    turns_of,
)
from training.config.grpo import GrpoSection
from training.config.learner import LearnerSection
from training.learner.packing import TokenGroup, pack
from training.learner.policy_model import PolicyModel, load_policy_model
from training.objective.logprob import response_logprobs
from training.objective.loss import LossDenominators, SampledTokens, policy_loss

Forward = Callable[[], Tensor]
"""Log-probabilities of some answers, [sequences, tokens]."""


def measure(cell: Cell) -> dict[str, Any]:
    """Seconds of both passes over one group, and the peak of memory."""
    section = LearnerSection(lora_rank=cell.lora_rank, gradient_checkpointing=cell.checkpointing)
    model = load_policy_model(
        Path(cell.model_path),
        section,
        dtype="bfloat16",
        seed=0,
        device=torch.device(cell.device),
    )
    loaded = peak_bytes(cell.device)
    parts = forwards_of(cell, model)
    advantages = torch.tensor(advantages_of(cell), device=cell.device).float()

    def old() -> list[Tensor]:
        with torch.no_grad():
            return [forward(True) for _, forward in parts]

    def train(old_logprobs: list[Tensor]) -> None:
        for (members, forward), frozen in zip(parts, old_logprobs, strict=True):
            loss_of(cell, forward(False), frozen, advantages[members]).backward()

    def turn() -> dict[str, float]:
        model.zero_grad(set_to_none=True)
        kept: list[Tensor] = []
        old_s = seconds_of(lambda: kept.extend(old()), cell.device)
        return {
            "old_second": old_s,
            "train_second": seconds_of(lambda: train(kept), cell.device),
        }

    # All micro-batches have the same shape: one is enough to warm up.
    members, forward = parts[0]
    started = time.perf_counter()
    with torch.no_grad():
        frozen = forward(True)
    loss_of(cell, forward(False), frozen, advantages[members]).backward()
    first_s = time.perf_counter() - started
    return summary(cell, list(turns_of(cell, turn)), first_s, loaded)


def loss_of(cell: Cell, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> Tensor:
    """Eq. 18 for some answers of the group."""
    section = GrpoSection()
    return policy_loss(
        logprobs,
        SampledTokens(
            old_logp=old_logprobs,
            advantage=advantages,
            mask=torch.ones_like(logprobs, dtype=torch.bool),
        ),
        section.clip_low,
        torch.full_like(advantages, section.clip_high_max),
        section.aggregation,
        LossDenominators(
            num_sequences=cell.group_size, num_tokens=cell.group_size * cell.answer_tokens
        ),
    ).loss


def forwards_of(cell: Cell, model: PolicyModel) -> list[tuple[list[int], Callable[[bool], Tensor]]]:
    """The micro-batches of a group: which answers, and what computes their log-probabilities.

    Each takes whether entropies are wanted too, as the pass for old log-probabilities wants them.
    """
    causal: Any = model.peft_model.get_base_model()
    prompt, answers = tokens_of(cell, causal.config.vocab_size)
    if cell.arm == "dense_sdpa":
        return _dense_batches(cell, model, prompt, answers)
    groups = [_group(prompt, answers)]
    length = cell.prompt_tokens + cell.answer_tokens
    budget = cell.prompt_tokens + cell.group_size * cell.answer_tokens
    if cell.arm == "dense_rows":
        groups = [_group(prompt, [answer]) for answer in answers]
        budget = length * int(cell.micro_batch or 1)
    rows = [row.to(model.device) for row in pack(groups, budget)]

    def forward_of(row: Any) -> Callable[[bool], Tensor]:
        return lambda with_entropy: row.padded(model(row, with_entropy=with_entropy)[0])

    return [(list(row.sequences), forward_of(row)) for row in rows]


def _group(prompt: list[int], answers: list[list[int]]) -> TokenGroup:
    return TokenGroup(
        patient_id="synthetic",
        prompt=tuple(prompt),
        responses=tuple(map(tuple, answers)),
        trained=tuple((True,) * len(answer) for answer in answers),
    )


def _dense_batches(
    cell: Cell, model: PolicyModel, prompt: list[int], answers: list[list[int]]
) -> list[tuple[list[int], Callable[[bool], Tensor]]]:
    causal: Any = model.peft_model.get_base_model()
    causal.set_attn_implementation("sdpa")
    weight = causal.get_output_embeddings().weight
    size = int(cell.micro_batch or 1)

    def forward_of(ids: Tensor) -> Callable[[bool], Tensor]:
        def forward(with_entropy: bool) -> Tensor:
            hidden = causal.base_model(input_ids=ids, use_cache=False).last_hidden_state
            states = hidden[:, len(prompt) - 1 : -1]
            targets = ids[:, len(prompt) :]
            logprobs, _ = response_logprobs(
                states.flatten(0, 1), weight, targets.flatten(), with_entropy=with_entropy
            )
            return logprobs.view_as(targets)

        return forward

    batches = []
    for start in range(0, len(answers), size):
        members = list(range(start, min(start + size, len(answers))))
        ids = torch.tensor([prompt + answers[member] for member in members], device=model.device)
        batches.append((members, forward_of(ids)))
    return batches


if __name__ == "__main__":
    run_cell(measure)
