"""Where the time of the main job goes: seconds of each stage, and what the engine and learner did.

Runs `configs/demo.yaml` as `make demo` does in a new folder (another of `COMMANDS` by `--config`;
with `--quick`: `configs/tiny.yaml`) unless `--run-dir` names a finished run. While it runs it
samples memory and CPU time of the whole process tree, and when there is a first page to look at.
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
COMMANDS = {"demo": "learn", "smollm2_demo": "run", "tiny": "run"}
"""Configurations and the command that runs each whole."""


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smallest configuration")
    parser.add_argument("--config", choices=COMMANDS, default="demo", help="%(default)s")
    parser.add_argument("settings", nargs="*", help="such as cluster.dashboard_port=8299")
    parser.add_argument("--run-dir", type=Path, help="read a finished run instead of running one")
    parser.add_argument("--json", type=Path, default=RESULTS / "main_job.json")
    arguments = parser.parse_args()
    folder = arguments.run_dir
    measured: dict[str, float] = {}
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="eag-rl-bench-")) / "run"
        name = "tiny" if arguments.quick else arguments.config
        measured = _run(name, folder, arguments.settings)
    rows = _rows(folder)
    for row in rows:
        print(f"{row['stage']:<40} {row['seconds']:>8.1f} s  {100 * row['share']:>5.1f} %")
    ratios = {"stage_seconds_vs_budget": sum(row["seconds"] for row in rows) / BUDGET_S}
    if measured:
        print(", ".join(f"{name} {value:.1f}" for name, value in measured.items()))
        rows.append(measured)
        ratios |= {
            "wall_vs_budget": measured["wall_s"] / BUDGET_S,
            "memory_vs_budget": measured["peak_memory_gib"] / BUDGET_GIB,
        }
    write_result(arguments.json, rows, ratios)


def _rows(folder: Path) -> list[dict]:
    """Every finished stage: those of the run, then those of an experiment's units."""
    found = [
        (path.parent.relative_to(folder), json.loads(path.read_text()))
        for stage in STAGES
        for path in (
            folder / stage.name / "stage.json",
            *sorted(folder.glob(f"arms/*/*/{stage.name}/stage.json")),
        )
        if path.exists() and not path.parent.is_symlink()
    ]
    total = sum(record["seconds"] for _, record in found)
    return [
        {
            "stage": str(stage),
            "seconds": record["seconds"],
            "share": record["seconds"] / total,
            "attempts": record["attempts"],
        }
        for stage, record in found
    ]


def _run(name: str, folder: Path, settings: list[str]) -> dict[str, float]:
    """Wall-clock and CPU seconds and peak GiB (proportional set size) of a whole run."""
    config = ROOT / "configs" / f"{name}.yaml"
    command = [sys.executable, "-m", "training.cli", COMMANDS[name], str(config), *settings]
    started = time.monotonic()
    job = subprocess.Popen([*command, "--run-dir", str(folder)], cwd=ROOT)
    peak = _Peak(job.pid, folder / "report.html")
    peak.start()
    status = job.wait()
    peak.stop()
    if status:
        sys.exit(f"the run ended with status {status}; see above")
    return {
        "wall_s": time.monotonic() - started,
        "cpu_s": peak.cpu_s,
        "first_page_s": peak.first_page_s,
        "peak_memory_gib": peak.gib,
    }


class _Peak(threading.Thread):
    """Samples a process and all its descendants; shared pages are shared out.

    Args:
        pid: of the process.
        page: whose first appearance is noted.
    """

    def __init__(self, pid: int, page: Path) -> None:
        super().__init__(daemon=True)
        self._root, self._page = psutil.Process(pid), page
        self._ended = threading.Event()
        self._cpu_s: dict[int, float] = {}
        self._began = time.monotonic()
        self.gib = 0.0
        self.first_page_s = float("nan")

    @property
    def cpu_s(self) -> float:
        """Of every process as it was last seen."""
        return sum(self._cpu_s.values())

    def run(self) -> None:
        while not self._ended.wait(1.0):
            if self._page.exists() and self.first_page_s != self.first_page_s:
                self.first_page_s = time.monotonic() - self._began
            total = 0
            try:
                family = [self._root, *self._root.children(recursive=True)]
            except psutil.Error:
                continue
            for process in family:
                try:
                    times = process.cpu_times()
                    self._cpu_s[process.pid] = times.user + times.system
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue  # it ended between the two calls
            self.gib = max(self.gib, total / 2**30)

    def stop(self) -> None:
        self._ended.set()
        self.join()


if __name__ == "__main__":
    main()
