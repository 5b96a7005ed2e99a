"""Variables that libraries read only from the environment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.environment import prepare_process, process_environment


def test_nothing_leaves_the_machine_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "RAY_USAGE_STATS_ENABLED", "VLLM_NO_USAGE_STATS"):
        monkeypatch.delenv(name, raising=False)

    found = process_environment(verbose=False)

    assert found["HF_HUB_OFFLINE"] == "1"
    assert found["RAY_USAGE_STATS_ENABLED"] == "0"
    assert found["VLLM_NO_USAGE_STATS"] == "1"


def test_what_the_user_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")

    prepare_process()

    assert os.environ["HF_HUB_OFFLINE"] == "0"


def test_verbose_leaves_the_libraries_logs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_LOGGING_LEVEL", raising=False)

    assert "VLLM_LOGGING_LEVEL" in process_environment(verbose=False)
    assert "VLLM_LOGGING_LEVEL" not in process_environment(verbose=True)


def test_threads_of_a_prepared_process_spin_for_a_bounded_time() -> None:
    script = "from services.environment import prepare_process; prepare_process(); import torch"
    # vLLM, in this process, preloads the OpenMP library for the processes started after it.
    set_here = {"GOMP_SPINCOUNT", "LD_PRELOAD"}
    unset = {name: value for name, value in os.environ.items() if name not in set_here}

    told = subprocess.run(
        [sys.executable, "-c", script],
        env={**unset, "OMP_DISPLAY_ENV": "VERBOSE"},
        check=True,
        capture_output=True,
        text=True,
    ).stderr

    assert "GOMP_SPINCOUNT = '1000'" in told


def test_processes_of_a_run_keep_the_bytecode_of_libraries(tmp_path: Path) -> None:
    (tmp_path / "library.py").write_text("")
    child = "import library"
    script = (
        "import subprocess, sys; from services.environment import prepare_process;"
        f"prepare_process(); subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    search = os.pathsep.join([str(Path(__file__).parents[3]), str(tmp_path)])

    subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": search, "PYTHONDONTWRITEBYTECODE": "1"},
        check=True,
    )

    assert list((tmp_path / "__pycache__").glob("library.*.pyc"))
