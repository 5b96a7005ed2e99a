"""The reward of a run inside TRL's GRPOTrainer: `python examples/reward_in_trl.py RUN [--steps 2]`.

RUN is a run folder whose expert is trained: its training patients and their salient features are
exported, TRL samples the answers, and `TrajectoryReward` gives each what the run would have given.
TRL is no dependency of the project.
"""

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from training.interop.export import FOLDER, PATIENTS_FILE, export
from training.interop.reward_function import TrajectoryReward

# With --no-deps the project's versions stay: it has everything else that TRL needs.
INSTALL_TRL = (
    "pip install --no-deps trl==1.16.0 datasets==5.2.0 multiprocess==0.70.19 xxhash==4.1.0"
)


def main() -> None:
    """Trains for some steps and prints what TRL logged of the reward at each."""
    arguments = parse()
    if not all(map(importlib.util.find_spec, ("trl", "datasets"))):
        sys.exit(f"TRL is not installed; in a copy of this environment: {INSTALL_TRL}")
    patients = arguments.run / FOLDER / PATIENTS_FILE
    if not patients.exists():
        print("\n".join(export(arguments.run)))
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(arguments, patients, folder)
        trainer.train()
    for entry in trainer.state.log_history:
        if "reward" in entry:  # the last entry is about the training as a whole
            print(
                f"step {entry['step']}: reward {entry['reward']:.4f}, "
                f"prediction {entry['reward_cls']:.4f}, overlap {entry['reward_att']:.4f}, "
                f"format failures {entry['format_failure_rate']:.0%}"
            )


def trainer_of(arguments: argparse.Namespace, patients: Path, folder: str) -> Any:
    """GRPOTrainer as its users make it; only `reward_funcs` and the data set are ours."""
    from datasets import load_dataset  # pyright: ignore[reportMissingImports] # no dependency
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports] # the same

    return GRPOTrainer(
        model=arguments.model,
        args=GRPOConfig(
            output_dir=folder,
            max_steps=arguments.steps,
            per_device_train_batch_size=arguments.answers,
            num_generations=arguments.answers,
            max_completion_length=arguments.tokens,
            use_cpu=not torch.cuda.is_available(),
            logging_steps=1,
            save_strategy="no",
            report_to=[],
        ),
        # Columns beside `prompt` reach the reward by name: label, salient_features, ...
        train_dataset=load_dataset(
            "json", data_files=str(patients), split="train", cache_dir=folder
        ),
        # An answer of so many tokens was cut off, which is a format failure.
        reward_funcs=TrajectoryReward.of_run(arguments.run, max_completion_tokens=arguments.tokens),
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="The reward of a run inside TRL.")
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--answers", type=int, default=8, help="of each patient at a step")
    parser.add_argument("--tokens", type=int, default=512, help="most of an answer")
    return parser.parse_args()


if __name__ == "__main__":
    main()
