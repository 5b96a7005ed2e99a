"""Seconds of `performance` (four metrics with bootstrap intervals) against its budget."""

import argparse
import time
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.record import RESULTS, write_result
from ehr.metrics import performance

BUDGET_S = 2.0
"""1,000 resamples of 2,000 patients."""
REPETITIONS = 5


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one repetition")
    parser.add_argument("--json", type=Path, default=RESULTS / "metrics.json")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    probabilities = rng.uniform(size=2000)
    labels = (rng.uniform(size=2000) < probabilities).astype(int)
    seconds = []
    for _ in range(1 if arguments.quick else REPETITIONS):
        started = time.process_time()
        performance(labels, probabilities, num_resamples=1000)
        seconds.append(time.process_time() - started)
    row = {"patients": 2000, "resamples": 1000, "cpu_s": median(seconds), "all_cpu_s": seconds}
    print(f"performance: median {row['cpu_s']:.2f} CPU s, budget {BUDGET_S:.0f} s")
    write_result(arguments.json, [row], {"vs_budget": row["cpu_s"] / BUDGET_S})


if __name__ == "__main__":
    main()
