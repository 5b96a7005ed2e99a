"""Where the time of the main job goes: seconds of each stage, and what the engine and learner did.

Runs `configs/demo.yaml` in a new folder (with `--quick`: `configs/tiny.yaml`) unless `--run-dir`
names a finished run, and samples the memory of the whole process tree while it runs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from benchmarks.record import RESULTS, write_result
from training.run.stages import STAGES

ROOT = Path(__file__).resolve().parent.parent
BUDGET_S = 600
"""`make demo` on two cores, installation apart."""
BUDGET_GIB = 12


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smallest configuration")
    parser.add_argument("--run-dir", type=Path, help="read a finished run instead of running one")
    parser.add_argument("--json", type=Path, default=RESULTS / "main_job.json")
    arguments = parser.parse_args()
    peak_gib = None
    wall_s = None
    folder = arguments.run_dir
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="eag-rl-bench-")) / "run"
        config = "tiny" if arguments.quick else "demo"
        wall_s, peak_gib = _run(ROOT / "configs" / f"{config}.yaml", folder)
    rows = _rows(folder)
    for row in rows:
        print(f"{row['stage']:<10} {row['seconds']:>8.1f} s  {100 * row['share']:>5.1f} %")
    ratios = {"stage_seconds_vs_budget": sum(row["seconds"] for row in rows) / BUDGET_S}
    if wall_s is not None and peak_gib is not None:
        print(f"wall clock {wall_s:.0f} s, peak memory of all processes {peak_gib:.1f} GiB")
        rows.append({"wall_s": wall_s, "peak_memory_gib": peak_gib})
        ratios |= {"wall_vs_budget": wall_s / BUDGET_S, "memory_vs_budget": peak_gib / BUDGET_GIB}
    write_result(arguments.json, rows, ratios)


def _rows(folder: Path) -> list[dict]:
    records = [
        json.loads((folder / stage.name / "stage.json").read_text())
        for stage in STAGES
        if (folder / stage.name / "stage.json").exists()
    ]
    total = sum(record["seconds"] for record in records)
    return [
        {
            "stage": record["stage"],
            "seconds": record["seconds"],
            "share": record["seconds"] / total,
            "attempts": record["attempts"],
        }
        for record in records
    ]


def _run(config: Path, folder: Path) -> tuple[float, float]:
    """Wall-clock seconds and peak GiB (proportional set size) of a whole run."""
    command = [sys.executable, "-m", "training.cli", "run", str(config), "--run-dir", str(folder)]
    started = time.monotonic()
    job = subprocess.Popen(command, cwd=ROOT)
    peak = _Peak(job.pid)
    peak.start()
    status = job.wait()
    peak.stop()
    if status:
        sys.exit(f"the run ended with status {status}; see above")
    return time.monotonic() - started, peak.gib


class _Peak(threading.Thread):
    """Samples the memory of a process and all its descendants; shared pages are shared out."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root = psutil.Process(pid)
        self._ended = threading.Event()
        self.gib = 0.0

    def run(self) -> None:
        while not self._ended.wait(2.0):
            total = 0
            try:
                family = [self._root, *self._root.children(recursive=True)]
            except psutil.Error:
                continue
            for process in family:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue  # it ended between the two calls
            self.gib = max(self.gib, total / 2**30)

    def stop(self) -> None:
        self._ended.set()
        self.join()


if __name__ == "__main__":
    main()
