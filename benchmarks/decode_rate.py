"""Tokens a second of a bfloat16 engine, by how the policy is served.

    python -m benchmarks.decode_rate [--other CHECKOUT] [--ways base merged adapter] [--turns 3]
        [--quick] [--json PATH]

SmolLM2 in vLLM without Serve, a random adapter of rank 64 on all linear layers, `SEQUENCES` answers
of `TOKENS` tokens together. `base` is the model as its file has it, `merged` the policy merged and
rounded at random, `adapter` the same policy as vLLM's own LoRA. With `--other` the cells of another
checkout (one before the rounding, say) take turns with ours. Every cell is a process of its own.
"""

import argparse
import asyncio
import os
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save

from benchmarks.record import RESULTS, write_result
from services.adapters import adapter_checksum
from services.config import GeneratorSection, ModelSection
from services.engine import VllmEngine
from services.environment import prepare_process
from services.models import resolve_model
from services.types import Policy, PolicyVersion

ROOT = Path(__file__).resolve().parent.parent
WAYS = ("base", "merged", "adapter")
RANK = 64
SCALING = 0.5
SEQUENCES = 64
PROMPT_TOKENS = 64
TOKENS = 64
REPEATS = 3
_RATE = "tokens a second: "


def main() -> None:
    """Runs the benchmark, or one cell of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--other", type=Path, help="a checkout with an environment to compare with")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="which to measure")
    parser.add_argument("--turns", type=int, default=3, help="processes of each cell")
    parser.add_argument("--quick", action="store_true", help="one turn")
    parser.add_argument("--json", type=Path, default=RESULTS / "decode_rate.json")
    parser.add_argument("--cell", nargs=2, metavar=("WAY", "ADAPTER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cell is not None:
        prepare_process(verbose=False)
        way, path = given.cell
        print(f"{_RATE}{asyncio.run(_measure(way, Path(path)))}", flush=True)
        return
    checkouts = {"ours": ROOT} | ({"other": given.other.resolve()} if given.other else {})
    rates: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="eag-rl-decode-") as folder:
        adapter = Path(folder) / "adapter.safetensors"
        adapter.write_bytes(_random_adapter(resolve_model(ModelSection()).path))
        for _ in range(1 if given.quick else given.turns):
            for way in given.ways:
                for name, checkout in checkouts.items():
                    rates.setdefault((name, way), []).append(_cell(checkout, way, adapter))
                    print(f"{name}, {way}: {rates[name, way][-1]:.0f} tokens/s", flush=True)
                    _write(given.json, rates)


def _write(path: Path, rates: dict[tuple[str, str], list[float]]) -> None:
    """Writes what has been measured so far."""
    medians = {key: median(each) for key, each in rates.items()}
    rows = [
        {"checkout": name, "way": way, "tokens_per_s": each, "median": medians[name, way]}
        for (name, way), each in rates.items()
    ]
    compared = {
        "merged_vs_base": (("ours", "merged"), ("ours", "base")),
        "adapter_vs_base": (("ours", "adapter"), ("ours", "base")),
        "merged_vs_other": (("ours", "merged"), ("other", "merged")),
    }
    ratios = {
        name: medians[of] / medians[to]
        for name, (of, to) in compared.items()
        if {of, to} <= medians.keys()
    }
    write_result(path, rows, ratios)


def _cell(checkout: Path, way: str, adapter: Path) -> float:
    """The rate in a process of its own, this file run on the checkout's packages."""
    done = subprocess.run(
        [checkout / ".venv" / "bin" / "python", __file__, "--cell", way, adapter],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    (line,) = (each for each in done.stdout.splitlines() if each.startswith(_RATE))
    return float(line.removeprefix(_RATE))


async def _measure(way: str, adapter: Path) -> float:
    section = GeneratorSection(
        cache_gib=2,
        max_num_seqs=SEQUENCES,
        max_lora_rank=RANK,
        sync="adapter" if way == "adapter" else "merged",
    )
    model_section = ModelSection(dtype="bfloat16")
    engine = VllmEngine(resolve_model(model_section), model_section, section)
    await engine.start()
    try:
        if way != "base":
            await engine.load_policy(_policy(adapter.read_bytes()))
        await _seconds(engine)  # memory and kernels
        found = [await _seconds(engine) for _ in range(REPEATS)]
    finally:
        engine.stop()
    return SEQUENCES * TOKENS / median(found)


def _policy(adapter: bytes) -> Policy:
    return Policy(
        version=PolicyVersion(lineage="benchmark", version=1),
        adapter=adapter,
        scaling=SCALING,
        checksum=adapter_checksum(adapter),
        number=1,
    )


async def _seconds(engine: Any) -> float:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    # A request of the service may end early; here every answer has the same length.
    sampling = SamplingParams(
        max_tokens=TOKENS, ignore_eos=True, logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY
    )
    started = time.perf_counter()
    await asyncio.gather(
        *(
            engine._run(tuple(range(1000 + number, 1000 + number + PROMPT_TOKENS)), sampling)
            for number in range(SEQUENCES)
        )
    )
    return time.perf_counter() - started


def _random_adapter(folder: Path) -> bytes:
    """A peft adapter for every linear layer of the model, small enough to leave it its language."""
    from safetensors import safe_open

    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as model:
            for name in model.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                if not name.endswith("_proj.weight"):
                    continue
                outputs, inputs = model.get_slice(name).get_shape()
                module = f"base_model.model.{name.removesuffix('.weight')}"
                for side, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK))):
                    tensors[f"{module}.lora_{side}.weight"] = 1e-3 * torch.randn(
                        shape, generator=generator
                    )
    return save(tensors)


if __name__ == "__main__":
    main()
