import time
import urllib.request

import pytest
import ray

from training.run.metrics_file import MetricsFile
from training.run.step_watch import RayGauges, StepWatch


def exported():
    port = ray.nodes()[0]["MetricsExportPort"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return [line for line in answer.read().decode().splitlines() if "eag_rl_" in line]


@pytest.mark.slow  # Ray hands metrics on every ten seconds
def test_the_last_step_is_a_ray_metric_with_run_and_stage(local_ray, tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    watch = StepWatch(tmp_path / "metrics.jsonl", [RayGauges("run-1", "grpo")])
    for step in (1, 2):
        file.append({"step": step, "reward/mean": -0.5 / step, "entropy/salient_mean": None})
        watch.refresh()

    deadline = time.monotonic() + 60
    while not any("reward_mean" in line for line in exported()) and time.monotonic() < deadline:
        time.sleep(1)
    values = {
        line.split("{")[0]: (line, float(line.rsplit(" ", 1)[1]))
        for line in exported()
        if not line.startswith("#")
    }

    assert values["ray_eag_rl_reward_mean"][1] == -0.25
    assert values["ray_eag_rl_step"][1] == 2
    assert 'run="run-1"' in values["ray_eag_rl_step"][0]
    assert 'stage="grpo"' in values["ray_eag_rl_step"][0]
    assert "ray_eag_rl_entropy_salient" not in values
