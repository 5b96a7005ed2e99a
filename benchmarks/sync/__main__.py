"""Policy syncs on a real Ray: a storm of kills and joins, and how long a sync stops a replica.

    python -m benchmarks.sync [--parts storm pause] [--replicas 1 2] [--modes merged]
                              [--quick] [--json PATH]

`storm`: Stage-2's controller publishes a new policy of a tiny model again and again while replicas,
the store, the learner and the controller die at random. It fails if an invariant is broken.
`pause`: SmolLM2 in vLLM with adapters of rank 64 on all linear layers, no requests beside the sync.
The pause is the time in which a replica answers nothing; the sync is what the controller waits for:
bytes to the store, from there to every replica, loaded and acknowledged by all.

Rows of parts that are not run stay in the JSON file, each with the commit it was measured at.
"""

import argparse
import asyncio
import itertools
import json
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.record import RESULTS, write_result
from services.environment import prepare_process
from training.run.versions import commit

RANK = 64
SYNCS = 210
QUICK_SYNCS = 20
PAUSES = 100
QUICK_PAUSES = 10
WARM = 2
"""Syncs that are not counted: the first ones read the base's tensors from disk."""
LONGEST_S = 110.0
"""Fewer pauses are measured where so many would take longer; the row says how many there are."""
TIMEOUT_S = 300.0


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few syncs, one replica")
    parser.add_argument(
        "--parts", nargs="+", choices=["storm", "pause"], default=["storm", "pause"]
    )
    parser.add_argument("--replicas", nargs="+", type=int, default=[1, 2], help="of part pause")
    parser.add_argument(
        "--modes", nargs="+", choices=["merged", "adapter"], default=["merged"], help="of pause"
    )
    parser.add_argument("--json", type=Path, default=RESULTS / "sync.json")
    arguments = parser.parse_args()
    replicas = arguments.replicas[:1] if arguments.quick else arguments.replicas
    prepare_process()
    rows = earlier_rows(arguments.json)
    folder = Path(tempfile.mkdtemp(prefix="eag-sync-", dir="/tmp"))  # Ray's socket paths are short
    cluster = start_ray(folder / "ray")
    try:
        if "storm" in arguments.parts:
            from benchmarks.sync.storm import storm

            (folder / "storm").mkdir()
            row = storm(folder / "storm", QUICK_SYNCS if arguments.quick else SYNCS)
            keep(rows, row, arguments.json)
        if "pause" in arguments.parts:
            for mode, num in itertools.product(arguments.modes, replicas):
                run = folder / f"{mode}-{num}"
                run.mkdir()
                row = pause(run, mode, num, QUICK_PAUSES if arguments.quick else PAUSES)
                keep(rows, row, arguments.json)
    finally:
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)
    if broken := sum(row.get("violations", 0) for row in rows):
        sys.exit(f"{broken} violations of what must hold, see {arguments.json}")


def start_ray(folder: Path) -> Any:
    """A Ray of this benchmark's own, with Serve and without a port of its own in the way."""
    from services.cluster import connect, start_serve
    from services.config import ClusterSection, ServeSection

    cluster = connect(
        ClusterSection(num_cpus=16, dashboard=False, object_store_gib=0.5, temp_dir=str(folder))
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start_serve(ServeSection(port=port), listen=False, shared=False)
    return cluster


def pause(folder: Path, mode: str, num_replicas: int, num: int) -> dict[str, Any]:
    """Syncs of SmolLM2, one after the other; a row of the result."""
    from services.clients import GeneratorClient
    from services.config import GeneratorSection, ModelSection
    from services.generator import start_generator, stop_generator
    from services.models import resolve_model

    model_section = ModelSection(max_model_len=2048)
    model = resolve_model(model_section)
    files = [adapter_file(model.path, folder / f"adapter-{i}", seed=i) for i in range(2)]
    section = GeneratorSection.model_validate(
        {
            "num_replicas": num_replicas,
            "cpus_per_replica": 0.5,
            "cache_gib": 1.0,
            "max_num_seqs": 16,
            "sync": mode,
            "max_lora_rank": RANK,
        }
    )
    start_generator(folder.name, folder, model, model_section, section)
    try:
        client = GeneratorClient(folder.name, TIMEOUT_S)
        syncs, pauses = asyncio.run(measure_syncs(client, files, num))
    finally:
        stop_generator(folder.name)
    weights = sum(file.stat().st_size for file in model.path.glob("*.safetensors"))
    return {
        "part": "pause",
        "mode": mode,
        "replicas": num_replicas,
        "syncs": len(syncs),
        **quantiles("pause", pauses),
        **quantiles("sync", syncs),
        "adapter_bytes": files[0].stat().st_size,
        "bytes_moved_per_sync": num_replicas * files[0].stat().st_size,
        "model_bytes": weights,
    }


async def measure_syncs(
    client: Any, files: list[Path], num: int
) -> tuple[list[float], list[float]]:
    """Seconds of each sync, and seconds that each replica's engine was stopped in each."""
    from services.adapters import adapter_checksum
    from services.policy_store import PolicyRecord
    from services.types import PolicyVersion

    checksums = [adapter_checksum(file.read_bytes()) for file in files]
    syncs: list[float] = []
    pauses: list[float] = []
    before = {each.replica: each.sync_s for each in await client.stats()}
    deadline = time.monotonic() + LONGEST_S
    for version in range(num + WARM):
        which = version % len(files)
        record = PolicyRecord(
            version=PolicyVersion(lineage="grpo", version=version),
            adapter_path=str(files[which]),
            checksum=checksums[which],
            scaling=0.5,
        )
        start = time.monotonic()
        await client.publish(record)
        seconds = time.monotonic() - start
        after = {each.replica: each.sync_s for each in await client.stats()}
        if version >= WARM:
            syncs.append(seconds)
            pauses += [after[name] - before[name] for name in after]
        before = after
        if time.monotonic() > deadline:
            break
    return syncs, pauses


def adapter_file(model: Path, target: Path, seed: int) -> Path:
    """A random LoRA of rank 64, fp32 as the learner commits it, on every linear layer."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    with safe_open(model / "model.safetensors", framework="pt") as base:
        for name in [each for each in base.keys() if "_proj" in each]:  # noqa: SIM118
            outputs, inputs = base.get_slice(name).get_shape()
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = 0.05 * torch.randn(
                RANK, inputs, generator=generator
            )
            tensors[f"{module}.lora_B.weight"] = 0.01 * torch.randn(
                outputs, RANK, generator=generator
            )
    save_file(tensors, target)
    return target


def quantiles(name: str, seconds: list[float]) -> dict[str, float]:
    """Median and 99th percentile (the nearest rank)."""
    ranked = sorted(seconds)
    return {
        f"{name}_p50_s": median(ranked),
        f"{name}_p99_s": ranked[-(-99 * len(ranked) // 100) - 1],
    }


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a row is about."""
    return row["part"], row.get("mode"), row["replicas"]


def earlier_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of an earlier run."""
    return json.loads(path.read_text())["rows"] if path.exists() else []


def keep(rows: list[dict[str, Any]], row: dict[str, Any], path: Path) -> None:
    """Puts a new row in the place of the earlier one and writes the file."""
    print(", ".join(f"{name} {_short(value)}" for name, value in row.items()), flush=True)
    rows[:] = sorted(
        [each for each in rows if key(each) != key(row)] + [{**row, "commit": commit()}],
        key=lambda each: str(key(each)),
    )
    write_result(path, rows, ratios(rows))


def _short(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def ratios(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """What the documents quote."""
    found: dict[str, float | None] = {}
    pauses = {(row["mode"], row["replicas"]): row for row in rows if row["part"] == "pause"}
    one, two = pauses.get(("merged", 1)), pauses.get(("merged", 2))
    for row in filter(None, (one, two)):
        found["adapter_bytes_vs_model_bytes"] = row["adapter_bytes"] / row["model_bytes"]
    if one and two:
        found["pause_p50_two_replicas_vs_one"] = two["pause_p50_s"] / one["pause_p50_s"]
    return found


if __name__ == "__main__":
    main()
