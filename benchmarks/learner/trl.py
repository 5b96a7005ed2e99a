"""TRL's GRPOTrainer on one group: forward and backward of its loss. Runs in TRL's environment.

Its own `training_step` is called on micro-batches that are already sampled and scored, so neither
generation nor the optimizer is in the seconds. Every sequence has the same length: no padding, and
with it no mask, which is TRL's best case.
"""

import importlib.util
import os
import time
from importlib import metadata
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

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


def measure(cell: Cell) -> dict[str, Any]:
    """Seconds of one group, from the seconds of its micro-batches, and the peak of memory."""
    if cell.arm == "trl_liger" and importlib.util.find_spec("liger_kernel") is None:
        return {"outcome": "skipped", "reason": "liger_kernel is not installed beside TRL"}
    trainer = trainer_of(cell)
    loaded = peak_bytes(cell.device)
    batch = batches_of(cell, trainer)
    num_batches = cell.group_size // int(cell.micro_batch or 1)

    def step() -> None:
        trainer.training_step(trainer.model, batch, None)

    def turn() -> dict[str, float]:
        trainer.model.zero_grad(set_to_none=True)
        with torch.no_grad():
            old = seconds_of(lambda: frozen(trainer, batch), cell.device) if has_old else 0.0
        train = seconds_of(step, cell.device)
        result = {"train_second": train * num_batches}
        return result | ({"old_second": old * num_batches} if has_old else {})

    # On a CPU the pass for old log-probabilities is measured for our own arm only: TRL leaves it
    # out where a batch is used once.
    has_old = cell.device == "cuda"
    started = time.perf_counter()
    one = {name: value[:1] if value.dim() else value for name, value in batch.items()}
    trainer.training_step(trainer.model, one, None)
    first_s = time.perf_counter() - started
    result = summary(cell, list(turns_of(cell, turn)), first_s, loaded)
    result["versions"] |= {name: metadata.version(name) for name in ("trl", "transformers", "peft")}
    return result


def trainer_of(cell: Cell) -> Any:
    """A trainer with LoRA on all linear layers and a reward that nobody asks for."""
    # TRL and what it brings are installed for this benchmark only.
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import (  # loaded lazily by trl, unseen by the checker
        GRPOConfig,  # pyright: ignore[reportAttributeAccessIssue]
        GRPOTrainer,  # pyright: ignore[reportAttributeAccessIssue]
    )

    micro_batch = int(cell.micro_batch or 1)
    num_batches = cell.group_size // micro_batch
    arguments = GRPOConfig(
        output_dir="/tmp/eag-rl-trl",
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=num_batches,
        num_generations=cell.group_size,
        max_completion_length=cell.answer_tokens,
        beta=0.0,
        loss_type="grpo",
        bf16=True,
        use_cpu=cell.device == "cpu",
        gradient_checkpointing=cell.checkpointing,
        use_liger_kernel=cell.arm == "trl_liger",
        report_to=[],
        save_strategy="no",
    )
    tokenizer = AutoTokenizer.from_pretrained(cell.model_path)
    base = AutoModelForCausalLM.from_pretrained(cell.model_path, dtype=torch.bfloat16)
    trainer = GRPOTrainer(
        model=base,
        reward_funcs=_no_reward,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["none"] * cell.group_size}),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=cell.lora_rank,
            lora_alpha=cell.lora_rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    trainer.model.to(cell.device)
    trainer.model.train()
    if cell.checkpointing:  # `train()` of transformers' Trainer does this
        trainer.model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs=arguments.gradient_checkpointing_kwargs
            or {"use_reentrant": False}
        )
    if cell.arm == "trl_liger":
        from transformers.integrations.liger import apply_liger_kernel

        apply_liger_kernel(trainer.model, arguments.liger_kernel_config)
    trainer.current_gradient_accumulation_steps = num_batches
    # The micro-batch is sampled and scored already.
    trainer._prepare_inputs = lambda inputs: inputs
    return trainer


def batches_of(cell: Cell, trainer: Any) -> dict[str, torch.Tensor]:
    """One micro-batch as GRPOTrainer buffers it; all of a group cost the same."""
    prompt, answers = tokens_of(cell, trainer.model.config.vocab_size)
    count = int(cell.micro_batch or 1)
    prompts = torch.tensor([prompt] * count, device=cell.device)
    completions = torch.tensor(answers[:count], device=cell.device)
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": completions,
        "completion_mask": torch.ones_like(completions),
        "advantages": torch.tensor(advantages_of(cell)[:count], device=cell.device),
        "num_items_in_batch": torch.tensor(
            float(cell.group_size * cell.answer_tokens), device=cell.device
        ),
    }


def frozen(trainer: Any, batch: dict[str, torch.Tensor]) -> None:
    """The pass for old log-probabilities of a micro-batch."""
    trainer._get_per_token_logps_and_entropies(
        trainer.model,
        torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
        torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
        batch["completion_ids"].shape[1],
    )


def _no_reward(completions: list[str], **_: object) -> list[float]:
    return [0.0] * len(completions)


if __name__ == "__main__":
    run_cell(measure)
