"""An experiment as a user runs it, stopped in the middle and taken up again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from training.run.folder import RunFolder

ROOT = Path(__file__).parents[2]
ARMS = ("stage1/seed-17", "eag_rl/seed-17")
SHORT = (
    "prompt.kind=short_answer", "search.method=samples", "learn.arms=[stage1, eag_rl]",
    "learn.seeds=[17]", "evaluate.faithfulness_patients=0", "cluster.dashboard=false",
)  # fmt: skip


def begin(run_dir: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable, "-m", "training.cli", "learn", str(ROOT / "configs" / "tiny.yaml"),
            *SHORT, "--run-dir", str(run_dir), *more,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
    )  # fmt: skip


def learn(run_dir: Path, *more: str) -> tuple[int, str, str]:
    process = begin(run_dir, *more)
    out, err = process.communicate(timeout=1800)
    return process.returncode, out, err


def is_done(run_dir: Path, unit: str) -> bool:
    return RunFolder(run_dir / "arms" / unit).stage("evaluate").done


@pytest.mark.slow
@pytest.mark.timeout(2700)
def test_a_stopped_experiment_goes_on_where_it_was_and_keeps_its_units(tmp_path: Path) -> None:
    run_dir = tmp_path / "experiment"
    process = begin(run_dir)
    deadline = time.monotonic() + 900
    while not is_done(run_dir, ARMS[0]):
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130, err[-3000:]
    first = (run_dir / "arms" / ARMS[0] / "evaluate" / "predictions.parquet").stat().st_mtime_ns

    code, out, err = learn(run_dir)

    assert code == 0, err[-3000:]
    assert out.strip().splitlines()[-1] == str(run_dir)
    assert all(is_done(run_dir, unit) for unit in ARMS)
    kept = (run_dir / "arms" / ARMS[0] / "evaluate" / "predictions.parquet").stat().st_mtime_ns
    assert kept == first
    asked = {
        unit: pd.read_parquet(run_dir / "arms" / unit / "evaluate" / "predictions.parquet")
        for unit in ARMS
    }
    assert [set(table["method"]) for table in asked.values()] == [{"stage1"}, {"eag_rl"}]
    assert len({frozenset(table["patient_id"]) for table in asked.values()}) == 1
    assert not any("<Subquestion" in text for text in asked["eag_rl/seed-17"]["text"])
    assert (run_dir / "learn.html").exists()
    estimate = json.loads((run_dir / "learn" / "estimate.json").read_text())
    assert set(estimate) == set(ARMS)

    code, out, err = learn(run_dir)
    assert (code, "nothing to run" in err) == (0, True)

    code, out, err = learn(run_dir, "grpo.learning_rate=0.01")
    assert code == 2
    assert "unit eag_rl/seed-17" in err.strip().splitlines()[-1]
    assert "grpo.learning_rate" in err.strip().splitlines()[-1]


@pytest.mark.timeout(300)
def test_patients_too_few_for_a_step_are_refused_before_an_expert_is_trained(
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "experiment"

    code, _, err = learn(run_dir, "cohort.train_patients=10", "grpo.patients_per_step=16")

    assert code == 2, err[-3000:]
    assert "unit eag_rl/seed-17" in err
    assert "lower grpo.patients_per_step" in err
    assert not (run_dir / "expert").exists()
