"""A cell in a process of its own, ended when it holds more memory than it may."""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.learner.cell import OUT_OF_MEMORY, RESULT

ROOT = Path(__file__).resolve().parents[2]
_POLL_S = 0.02
_TAIL = 2000
"""Characters of a failed cell's last words that are kept."""


def run_limited(
    command: Sequence[str], limit_bytes: int | None, timeout_s: float
) -> dict[str, Any]:
    """What the cell's process said, or how it ended.

    The resident memory of the process and its children is watched instead of limited by the
    kernel: torch reserves address space that it never touches.

    Args:
        command: prints one line that begins with `RESULT`.
        limit_bytes: of resident memory; None = no limit.
        timeout_s: after which the cell is ended too.

    Returns:
        The cell's result, or `outcome` "out of memory", "timed out" or "failed" with its reason.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = psutil.Popen(command, cwd=ROOT, stdout=out, stderr=errors, text=True)
        peak, outcome = _watch(process, limit_bytes, timeout_s)
        status = process.wait()
        out.seek(0)
        for line in out:
            if line.startswith(RESULT):
                return json.loads(line.removeprefix(RESULT))
        if outcome is None:
            errors.seek(0)
            return {
                "outcome": "failed",
                "reason": f"status {status}: {errors.read()[-_TAIL:].strip()}",
            }
        return {"outcome": outcome, "peak_gib": round(peak / 2**30, 2)}


def _watch(
    process: psutil.Popen, limit_bytes: int | None, timeout_s: float
) -> tuple[int, str | None]:
    """Largest resident memory seen, and why the process was ended, if it was."""
    peak, outcome = 0, None
    deadline = time.monotonic() + timeout_s
    while process.poll() is None:
        try:
            family = [process, *process.children(recursive=True)]
            held = sum(each.memory_info().rss for each in family)
        except psutil.Error:
            continue  # it ended between two calls
        peak = max(peak, held)
        if limit_bytes is not None and held > limit_bytes:
            outcome = OUT_OF_MEMORY
        elif time.monotonic() > deadline:
            outcome = "timed out"
        if outcome is not None:
            for each in family:
                each.kill()
            break
        time.sleep(_POLL_S)
    return peak, outcome
