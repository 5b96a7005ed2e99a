"""What OpenMP's way of waiting costs processes that share cores.

A loop of small products, as a small model's forward pass is, with a thread for every core: alone,
and in as many processes as there are cores. `services.environment` bounds how long threads spin.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from benchmarks.record import RESULTS, write_result

REPETITIONS = 3
SECONDS = 5.0

#: How often a waiting thread looks before it gives its core away (libgomp's `GOMP_SPINCOUNT`);
#: "default" leaves that to libgomp, which spins for milliseconds.
SPIN_COUNTS = ("default", "0", "300", "1000", "3000", "10000")

_LOOP = """
import sys, time
import torch
seconds, threads = float(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(threads)
left, right = torch.randn(256, 128), torch.randn(128, 384)
(left @ right).relu_()
print("ready", flush=True)
input()
started, done = time.perf_counter(), 0
while time.perf_counter() - started < seconds:
    (left @ right).relu_()
    done += 1
print(done / (time.perf_counter() - started))
"""


def products_per_second(spin_count: str, num_processes: int, seconds: float) -> float:
    """Products of all processes together, which begin at the same time."""
    unset = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
    environment = {name: text for name, text in os.environ.items() if name not in unset}
    if spin_count != "default":
        environment["GOMP_SPINCOUNT"] = spin_count
    command = [sys.executable, "-c", _LOOP, str(seconds), str(os.cpu_count() or 1)]
    processes = [
        subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(num_processes)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return sum(float(process.communicate()[0]) for process in processes)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one repetition of a second")
    parser.add_argument("--json", type=Path, default=RESULTS / "waiting_threads.json")
    arguments = parser.parse_args()
    repetitions, seconds = (1, 1.0) if arguments.quick else (REPETITIONS, SECONDS)
    rows = []
    for num_processes in (1, os.cpu_count() or 1):
        # taken in turns, so that all meet the same machine
        found: dict[str, list[float]] = {spin_count: [] for spin_count in SPIN_COUNTS}
        for _ in range(repetitions):
            for spin_count, rates in found.items():
                rates.append(products_per_second(spin_count, num_processes, seconds))
        for spin_count, rates in found.items():
            rows.append({"processes": num_processes, "spin_count": spin_count, "rates": rates})
            print(
                f"{num_processes} processes, spin count {spin_count}: "
                f"median {median(rates):,.0f} products/s"
            )
    rate = {(row["processes"], row["spin_count"]): median(row["rates"]) for row in rows}
    ratios = {
        f"spin_{spin_count}_vs_default_{n}_processes": rate[n, spin_count] / rate[n, "default"]
        for n, spin_count in rate
        if spin_count != "default"
    }
    write_result(arguments.json, rows, ratios)


if __name__ == "__main__":
    main()
