"""Which parameter type a run computes in: decided once, by what products cost on its devices."""

import fcntl
import hashlib
import json
import logging
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from ehr.whole_files import in_home, write_json
from services.environment import default_cache_dir, process_environment

logger = logging.getLogger(__name__)

Dtype = Literal["auto", "bfloat16", "float32"]
"""As the configuration says it (`model.dtype`)."""

ParameterType = Literal["bfloat16", "float32"]
"""What a model is loaded in."""

_CPU_INFO = Path("/proc/cpuinfo")
_CLEARLY_FASTER = 0.9
"""Below this share of float32's time bfloat16 is chosen. A tenth less is no reason: float32 rounds
no update away, and times on a busy machine differ by as much."""

_ROWS, _WIDTH = 64, 1024
"""Of the timed product: a decoding step of a small model. Emulated bfloat16 takes 60 ms for it on
the slowest machine that was seen."""
_REPEATS = 5
_CHILD_TIMEOUT_S = 120.0
"""Nearly all of it is the import of torch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """A parameter type and why it was chosen."""

    parameter_type: ParameterType
    reason: str
    """For a reader of the run's record."""


def parameter_type(dtype: Dtype, *, on_gpu: bool) -> ParameterType:
    """The type that a model is loaded in; see `choose_precision`."""
    return choose_precision(dtype, on_gpu=on_gpu).parameter_type


def choose_precision(
    dtype: Dtype,
    *,
    on_gpu: bool,
    cache_dir: str | None = None,
    measure: Callable[[], float] | None = None,
) -> Precision:
    """The configured type; `auto` is bfloat16 on GPUs and where this CPU is faster in it.

    What a CPU says of itself is not enough: some emulate bfloat16 at up to 140 times float32's
    time, some have instructions that their libraries do not use. So a product is timed in both
    types, once for a machine's kind of CPU and a version of torch, and kept in the cache.

    Args:
        dtype: the configured one.
        on_gpu: whether every model of the run is on a GPU.
        cache_dir: `model.cache_dir`.
        measure: times the products; a process of its own does by default.
    """
    if dtype != "auto":
        return Precision(parameter_type=dtype, reason="model.dtype says so")
    if on_gpu:
        return Precision(parameter_type="bfloat16", reason="GPUs multiply in bfloat16")
    cache = in_home(cache_dir) if cache_dir else default_cache_dir()
    ratio = time_ratio(cache, measure or measure_in_child)
    if math.isnan(ratio):
        return Precision(
            parameter_type="float32", reason="products in bfloat16 could not be timed here"
        )
    return Precision(
        parameter_type="bfloat16" if ratio < _CLEARLY_FASTER else "float32",
        reason=f"a product in bfloat16 takes {ratio:.2f} times as long as in float32 on this CPU "
        f"({cpu_model()})",
    )


def time_ratio(cache: Path, measure: Callable[[], float]) -> float:
    """Time of a bfloat16 product over that of a float32 product on this machine's CPU.

    Processes that ask at the same time wait for one measurement.

    Args:
        cache: where the result is kept, by CPU model, number of cores and version of torch.
        measure: measures it; NaN where it cannot, which is not kept.
    """
    subject = {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": metadata.version("torch"),
    }
    name = hashlib.sha256(json.dumps(subject, sort_keys=True).encode()).hexdigest()[:12]
    file = cache / f"precision-{name}.json"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f".{file.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = _read_ratio(file)
            if not math.isnan(known):
                return known
            ratio = measure()
            if not math.isnan(ratio):
                write_json(file, {**subject, "bfloat16_over_float32": ratio})
            return ratio
    except OSError as error:
        logger.warning("the time of a bfloat16 product could not be kept error=%r", error)
        return measure()


def cpu_model() -> str:
    """The CPU's name as the system gives it."""
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        lines = []
    # x86 has a name; ARM has numbers of the maker and the part.
    found = [
        line.partition(":")[2].strip()
        for key in ("model name", "CPU implementer", "CPU part")
        for line in lines
        if line.startswith(key)
    ]
    return " ".join(dict.fromkeys(found)) or platform.processor() or platform.machine()


def _read_ratio(file: Path) -> float:
    try:
        return float(json.loads(file.read_text())["bfloat16_over_float32"])
    except (OSError, ValueError, KeyError, TypeError):
        return math.nan  # not there, or cut off: measured again


def measure_in_child() -> float:
    """`measure_ratio` in a process of its own, since torch costs the caller hundreds of MB."""
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, **process_environment(verbose=False)}
    environment["PYTHONPATH"] = os.pathsep.join(
        [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    try:
        done = subprocess.run(
            # -P: a folder `services` of whoever calls from there is not this one.
            [sys.executable, "-P", "-m", "services.precision"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=_CHILD_TIMEOUT_S,
        )
        return float(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        logger.warning("a bfloat16 product could not be timed, float32 is used error=%r", error)
        return math.nan


def measure_ratio() -> float:
    """Time of a bfloat16 product over that of a float32 product, each the best of a few."""
    import torch

    seconds = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    operands = {
        dtype: (
            torch.ones(_ROWS, _WIDTH, dtype=dtype),
            torch.ones(_WIDTH, _WIDTH, dtype=dtype),
        )
        for dtype in seconds
    }
    with torch.inference_mode():
        # In turns, so that another process's load falls on both; the first one also warms up.
        for _ in range(_REPEATS):
            for dtype, (rows, weight) in operands.items():
                start = time.perf_counter()
                torch.nn.functional.linear(rows, weight)
                seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return seconds[torch.bfloat16] / seconds[torch.float32]


if __name__ == "__main__":
    sys.stdout.write(f"{measure_ratio()}\n")
