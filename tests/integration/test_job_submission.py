"""The cluster way on one machine: `ray start --head`, then `ray job submit`."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


TOKEN = secrets.token_hex(32)


def environment():
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    # A Ray that `ray.init` has started leaves a token, and `ray start` then asks for one.
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    return {**kept, **token, "PATH": f"{BIN}:{kept['PATH']}"}


@pytest.fixture(scope="module")
def dashboard():
    """A head node with a dashboard; ends with the module, by the id of its own process."""
    with ExitStack() as started:
        for _ in range(3):  # Ray gives its parts a time to start in, which a busy machine exceeds
            # Not pytest's folder: Ray's socket paths must stay under 107 characters.
            folder = tempfile.mkdtemp(prefix="eag-job-", dir="/tmp")
            started.callback(shutil.rmtree, folder, ignore_errors=True)
            head, address = start_head(folder)
            started.callback(stop, head)
            if answers(head, address):
                break
            stop(head)
        else:
            pytest.fail("no head node answered in three starts")
        yield address


def start_head(folder):
    port = free_port()
    head = subprocess.Popen(
        [
            BIN / "ray", "start", "--head", "--block", "--num-cpus=8", f"--port={free_port()}",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={port}", f"--temp-dir={folder}",
            # The session's own Ray has the default one.
            f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats",
        ],
        env=environment(),
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return head, f"http://127.0.0.1:{port}"


def answers(head, address):
    deadline = time.monotonic() + 240
    while head.poll() is None and time.monotonic() < deadline:
        try:
            subprocess.run(
                [BIN / "ray", "job", "list", "--address", address],
                env=environment(),
                capture_output=True,
                timeout=60,
                check=True,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            continue
        return True
    return False


def stop(head):
    head.terminate()
    try:
        head.wait(timeout=60)
    except subprocess.TimeoutExpired:
        head.kill()  # Ray's reaper then ends what it had started
        head.wait(timeout=60)


def submit(dashboard, *arguments):
    return subprocess.run(
        [
            BIN / "ray", "job", "submit", "--address", dashboard, "--working-dir", str(ROOT), "--",
            "python", "-m", "training.cli", *arguments,
        ],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )  # fmt: skip


def test_a_submitted_job_runs_a_stage_on_the_cluster(dashboard, tmp_path):
    done = submit(dashboard, "expert", "configs/tiny.yaml", "--run-dir", str(tmp_path / "run"))

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "succeeded" in done.stdout + done.stderr
    metrics = json.loads((tmp_path / "run" / "expert" / "metrics.json").read_text())
    assert 0 <= metrics["test"]["auroc"] <= 1


def test_a_relative_run_folder_is_refused_there_with_the_reason(dashboard):
    refused = submit(dashboard, "cohort", "configs/tiny.yaml", "--run-dir", "runs/tiny")

    assert refused.returncode != 0
    assert "make it absolute" in refused.stdout + refused.stderr
