"""Two steps of TRL's GRPOTrainer with our reward, sampling included. Runs in TRL's environment.

The prompts are texts with two worked examples, short enough for a small model to answer in the
format; labels and salient features are columns of the data set, as `eag-rl export` writes them.
"""

import os
import time
from importlib import metadata
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from benchmarks.learner.cell import Cell, run_cell
from ehr.catalogue import BENCHMARK_17
from training.interop.reward_function import TrajectoryReward

STEPS = 2
_EXAMPLES = """\
Record: Heart Rate 121, pH 7.19, Glucose 14.8, Temperature 36.2, Oxygen saturation 84
<Important Features>pH, Oxygen saturation, Heart Rate</Important Features>
<Final answer>0.83</Final answer>

Record: Heart Rate 78, pH 7.41, Glucose 5.6, Temperature 36.8, Oxygen saturation 97
<Important Features>Heart Rate, Temperature, Glucose</Important Features>
<Final answer>0.12</Final answer>

"""
_PATIENTS = (
    ("Heart Rate 128, pH 7.12, Glucose 11.0, Temperature 35.1, Oxygen saturation 81", 1),
    ("Heart Rate 71, pH 7.39, Glucose 5.1, Temperature 36.7, Oxygen saturation 98", 0),
    ("Heart Rate 109, pH 7.27, Glucose 18.3, Temperature 38.9, Oxygen saturation 88", 1),
    ("Heart Rate 83, pH 7.42, Glucose 6.0, Temperature 37.0, Oxygen saturation 96", 0),
)
_SALIENT = ["pH", "Oxygen saturation", "Heart Rate"]


def measure(cell: Cell) -> dict[str, Any]:
    """What the trainer logged of each step, and how far the adapter moved."""
    trainer = trainer_of(cell)
    before = [weight.detach().clone() for weight in _adapter(trainer)]
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    moved = max(
        float((weight.detach() - old).abs().max())
        for weight, old in zip(_adapter(trainer), before, strict=True)
    )
    wanted = ("reward", "reward_std", "reward_cls", "reward_att", "format_failure_rate", "loss")
    steps = [
        {name: entry[name] for name in (*wanted, "grad_norm") if name in entry}
        for entry in trainer.state.log_history
        if "reward" in entry
    ]
    return {
        "outcome": "measured",
        "seconds": round(seconds, 2),
        "steps": steps,
        "largest_change_of_a_weight": moved,
        "versions": {name: metadata.version(name) for name in ("torch", "trl", "transformers")},
    }


def trainer_of(cell: Cell) -> Any:
    """GRPOTrainer as its users make it."""
    # TRL and what it brings are installed for this benchmark only.
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from peft import LoraConfig
    from trl import (  # loaded lazily by trl, unseen by the checker
        GRPOConfig,  # pyright: ignore[reportAttributeAccessIssue]
        GRPOTrainer,  # pyright: ignore[reportAttributeAccessIssue]
    )

    data = {
        "prompt": [f"{_EXAMPLES}Record: {record}\n" for record, _ in _PATIENTS],
        "label": [label for _, label in _PATIENTS],
        "salient_features": [_SALIENT] * len(_PATIENTS),
        "salient_weights": [[1.0, 0.5, 0.5]] * len(_PATIENTS),
    }
    arguments = GRPOConfig(
        output_dir="/tmp/eag-rl-trl",
        per_device_train_batch_size=cell.group_size,
        gradient_accumulation_steps=2,
        num_generations=cell.group_size,
        max_completion_length=cell.answer_tokens,
        max_steps=STEPS,
        gradient_checkpointing=False,  # with it, sampling has no cache
        learning_rate=1e-4,
        logging_steps=1,
        use_cpu=cell.device == "cpu",
        report_to=[],
        save_strategy="no",
        seed=0,
        model_init_kwargs={"dtype": "bfloat16"},
    )
    return GRPOTrainer(
        model=cell.model_path,
        reward_funcs=TrajectoryReward(BENCHMARK_17),
        args=arguments,
        train_dataset=Dataset.from_dict(data),
        peft_config=LoraConfig(
            r=cell.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )


def _adapter(trainer: Any) -> list[torch.Tensor]:
    return [weight for weight in trainer.model.parameters() if weight.requires_grad]


if __name__ == "__main__":
    run_cell(measure)
