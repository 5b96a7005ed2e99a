"""The learner on one group: ours, a dense computation, and TRL's GRPOTrainer.

    python -m benchmarks.learner [--quick] [--json PATH] [--arms ARM ...] [--prompts N ...] ...

Forward and backward of one group's loss (SmolLM2-135M in bf16, LoRA of rank 64 on all linear
layers, answers of 256 tokens), and our pass for old log-probabilities. "Useful" tokens are those
of the answers. Every cell runs in a process of its own, which is ended above --limit-gib. The
machine's bf16 matrix-product rate is measured before each repetition; the seconds are set against
it by counted operations (`benchmarks.learner.flops`).

Arms: `ours`, `dense` (a prompt per answer: rows of our own, and torch's attention), `table` (ours
over prompts and sizes of groups), `trl`, `trl-reward` (two steps of TRL's GRPOTrainer with our
reward), `gpu` (a Qwen2.5-7B-sized model with random weights; TRL with and without Liger beside it).
A call adds its cells to the results file: with --arms, --prompts, --micro-batches and
--checkpointing the work is done in parts, and calls by turns interleave the repetitions.
"""

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.learner.cell import Cell, at
from benchmarks.learner.cell_process import ROOT, run_limited
from benchmarks.learner.flops import Flops, group_flops, shape_of
from benchmarks.learner.results import (
    TRL_ARMS,
    line,
    merged,
    ratios,
    read_rows,
    row_of,
)
from benchmarks.record import RESULTS, write_result
from training.run.versions import commit

ARMS = ("ours", "dense", "table", "trl", "trl-reward", "gpu")
PROMPTS = (512, 1500)
MICRO_BATCHES = (1, 2, 4, 8)
TABLE_PROMPTS = (256, 512, 1024, 2048, 4096)
TABLE_GROUPS = (4, 8, 16)
GPU_MODEL = "qwen2.5-7b"
GPU_PROMPT, GPU_ANSWER = 2000, 500
LIMIT_GIB = 16
TIMEOUT_S = 900
MODULES = {
    "trl": "benchmarks.learner.trl",
    "trl_liger": "benchmarks.learner.trl",
    "trl_reward": "benchmarks.learner.trl_reward",
}
"""What runs in TRL's environment."""
TRL_VERSION = "1.16.0"
MAKE_TRL = f"""\
.venv/bin/python -m venv --without-pip runs/trl
echo $PWD/.venv/lib/python3.11/site-packages > runs/trl/lib/python3.11/site-packages/project.pth
runs/trl/bin/python -m pip install --no-deps trl=={TRL_VERSION} datasets==5.2.0 \
multiprocess==0.70.19 xxhash==4.1.0
python -m benchmarks.learner --arms trl --trl-python runs/trl/bin/python"""


def main() -> None:
    """Runs the chosen cells and writes the results."""
    arguments = parse()
    rows = read_rows(arguments.json)
    for cell in cells(arguments):
        row = merged(rows, _measured(cell, arguments))
        rows[row["key"]] = row
        print(line(row), flush=True)
        write_result(arguments.json, list(rows.values()), ratios(rows))
    for name, value in ratios(rows).items():
        print(f"{name:<45} {value:8.2f}")


def parse() -> argparse.Namespace:
    """The command line's choices."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="ours and dense at 512, one turn")
    parser.add_argument("--json", type=Path, default=RESULTS / "learner.json")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--prompts", nargs="+", type=int, metavar="N", help="lengths of the prompt")
    parser.add_argument("--groups", nargs="+", type=int, metavar="G", help="answers of a prompt")
    parser.add_argument(
        "--micro-batches",
        nargs="+",
        type=int,
        default=MICRO_BATCHES,
        metavar="M",
        help="sequences of a forward pass, for arms that have them",
    )
    parser.add_argument("--checkpointing", choices=("on", "off", "both"), default="both")
    parser.add_argument("--turns", type=int, default=5, help="most repetitions of a cell")
    parser.add_argument(
        "--seconds", type=float, default=60, help="no repetition begins after so long"
    )
    parser.add_argument("--limit-gib", type=float, default=LIMIT_GIB)
    parser.add_argument(
        "--trl-python",
        type=Path,
        help="Python of an environment that has TRL; without it, TRL's arms are skipped",
    )
    parser.add_argument(
        "--gpu-model-dir", type=Path, help="where to put the GPU case's random weights (15 GB)"
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.arms = [arm for arm in arguments.arms if arm in ("ours", "dense")]
        arguments.prompts, arguments.turns = arguments.prompts or [512], 1
        arguments.micro_batches = [1]
    return arguments


def cells(arguments: argparse.Namespace) -> Iterator[Cell]:
    """The chosen cells, those of one size beside each other."""
    limits = {"turns": arguments.turns, "seconds": arguments.seconds}
    with_trl = _can_run_trl(arguments)
    if set(arguments.arms) & {"ours", "dense", "table", "trl"}:
        model = _smollm2()
        for prompt, group in itertools.product(
            arguments.prompts or PROMPTS, arguments.groups or (8,)
        ):
            base = at(model, prompt_tokens=prompt, group_size=group, **limits)
            if "ours" in arguments.arms:
                yield from _with_checkpointing(base, arguments)
            if "dense" in arguments.arms:
                for arm, size in itertools.product(
                    ("dense_rows", "dense_sdpa"), arguments.micro_batches
                ):
                    # Recomputation only costs time: a tuned path leaves it off.
                    yield at(base, arm=arm, micro_batch=size)
            if "trl" in arguments.arms and with_trl:
                for size in arguments.micro_batches:
                    yield from _with_checkpointing(at(base, arm="trl", micro_batch=size), arguments)
        if "table" in arguments.arms:
            for prompt, group in itertools.product(
                arguments.prompts or TABLE_PROMPTS, arguments.groups or TABLE_GROUPS
            ):
                yield at(model, prompt_tokens=prompt, group_size=group, **limits)
    if "trl-reward" in arguments.arms and with_trl:
        yield at(_smollm2(), arm="trl_reward", prompt_tokens=0, answer_tokens=40, group_size=4)
    if "gpu" in arguments.arms:
        yield from _gpu_cells(arguments, with_trl, limits)


def _with_checkpointing(cell: Cell, arguments: argparse.Namespace) -> Iterator[Cell]:
    for checkpointing in (False, True):
        if arguments.checkpointing in ("both", "on" if checkpointing else "off"):
            yield at(cell, checkpointing=checkpointing)


def _smollm2() -> Cell:
    from services.config import ModelSection
    from services.models import resolve_model

    model = resolve_model(ModelSection())
    return Cell(
        arm="ours", model_name=model.name, model_path=str(model.path), prompt_tokens=PROMPTS[0]
    )


def _gpu_cells(
    arguments: argparse.Namespace, with_trl: bool, limits: dict[str, Any]
) -> Iterator[Cell]:
    if not torch.cuda.is_available():
        print(f"gpu: skipped, {GPU_MODEL} with random weights needs a GPU and torch finds none")
        return
    folder = arguments.gpu_model_dir or ROOT / "runs" / "bench" / GPU_MODEL
    if not (folder / "config.json").exists():
        command = [sys.executable, "-m", "benchmarks.learner.random_model", GPU_MODEL, str(folder)]
        subprocess.run(command, cwd=ROOT, check=True)
    base = Cell(
        arm="ours",
        model_name=GPU_MODEL,
        model_path=str(folder),
        device="cuda",
        prompt_tokens=GPU_PROMPT,
        answer_tokens=GPU_ANSWER,
        **limits,
    )
    yield from _with_checkpointing(base, arguments)
    for arm, size in itertools.product(TRL_ARMS if with_trl else (), arguments.micro_batches):
        yield from _with_checkpointing(at(base, arm=arm, micro_batch=size), arguments)


def _can_run_trl(arguments: argparse.Namespace) -> bool:
    wanted = {"trl", "trl-reward", "gpu"} & set(arguments.arms)
    if wanted and arguments.trl_python is None:
        print(f"trl: skipped, TRL is no dependency of the project; to measure it:\n{MAKE_TRL}")
    return arguments.trl_python is not None


def _measured(cell: Cell, arguments: argparse.Namespace) -> dict[str, Any]:
    module = MODULES.get(cell.arm, "benchmarks.learner.ours")
    is_trl = cell.arm in MODULES
    python = arguments.trl_python.absolute() if is_trl else sys.executable
    # A GPU's cells hold the base's weights on their way to it.
    limit = arguments.limit_gib * 2**30 if cell.device == "cpu" else None
    result = run_limited([str(python), "-m", module, cell.to_json()], limit, TIMEOUT_S)
    code = f"trl {TRL_VERSION}" if is_trl else str(commit())
    return row_of(cell, result, flops_of(cell), code)


def flops_of(cell: Cell) -> Flops:
    """Operations that the arm needs for the group, its own copies of the prompt included."""
    config = json.loads((Path(cell.model_path) / "config.json").read_text())
    return group_flops(
        shape_of(config, cell.lora_rank),
        cell.prompt_tokens,
        [cell.answer_tokens] * cell.group_size,
        prompt_copies=1 if cell.arm == "ours" else cell.group_size,
    )


if __name__ == "__main__":
    main()
