"""What every benchmark writes: commit, machine, rows, and the ratios that the documents quote."""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ehr.whole_files import write_json
from training.run.versions import commit

RESULTS = Path(__file__).resolve().parent / "results"


def machine() -> str:
    """Processor, cores and memory, without anything that names a host."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}"


def write_result(
    path: Path, rows: Sequence[Mapping[str, Any]], ratios: Mapping[str, float | None]
) -> None:
    """Writes one benchmark's JSON."""
    write_json(
        path,
        {
            "commit": commit(),
            "machine": machine(),
            "rows": list(rows),
            "ratios": dict(ratios),
        },
    )
