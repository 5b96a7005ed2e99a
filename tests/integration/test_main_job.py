"""The whole main job as a user runs it: the command line in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from ehr.tables import rows
from tests.typed import untyped
from training.interop.export import patient_lines
from training.interop.reward_function import TrajectoryReward
from training.run.folder import RunFolder
from training.run.progress import Display
from training.run.session import Session

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "configs" / "tiny.yaml")
MORE = (
    "evaluate.methods=[vanilla, think_then_answer, think_then_answer_json, question_decomposition, "
    "stage1, stage2, concare, logistic_regression]",
    "prompt.think_budget_tokens=8",
    "prompt.missing=locf",
    "prompt.feature_names=listed",  # in its own words this model names nothing that R_att knows
    "grpo.select=validation",
    "grpo.rare_features=true",
    "cohort.positive_fraction=0.5",  # five validation patients of each class
    "cohort.validation_fraction=0.3",
)
"""What the whole run is asked for beyond `tiny.yaml`."""
_SALIENT = ("salient_features", "salient_weights")


def command(run_dir, *more):
    return [
        sys.executable, "-m", "training.cli", "run", TINY, "--run-dir", str(run_dir),
        "cluster.dashboard=false", *more,
    ]  # fmt: skip


def environment():
    # The job must start a Ray of its own, whatever this test session has running.
    return {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}


def run(run_dir, *more, timeout=2400):
    return subprocess.run(
        command(run_dir, *more),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
        timeout=timeout,
        check=False,
    )


def descendants(pid):
    found = subprocess.run(
        ["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    ).stdout.split()
    children = {}
    for child, parent in zip(found[::2], found[1::2], strict=True):
        children.setdefault(int(parent), []).append(int(child))
    pending, result = [pid], []
    while pending:
        for child in children.get(pending.pop(), []):
            result.append(child)
            pending.append(child)
    return result


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("main") / "tiny"
    done = run(folder, *MORE)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, done


@pytest.mark.timeout(2700)
def test_the_main_job_writes_the_whole_run_folder(finished):
    folder, done = finished

    summary = json.loads((folder / "cohort" / "summary.json").read_text())
    expert = json.loads((folder / "expert" / "metrics.json").read_text())
    ledger = json.loads((folder / "search" / "ledger.json").read_text())
    steps = [
        json.loads(line) for line in (folder / "grpo" / "metrics.jsonl").read_text().splitlines()
    ]
    results = {
        row["method"]: row for row in json.loads((folder / "evaluate" / "results.json").read_text())
    }

    assert done.stdout.strip().splitlines()[-1] == str(folder)
    assert set(summary["splits"]) == {"train", "val", "test"}
    assert summary["features"] == 17
    assert {"auroc", "auprc"} <= set(expert["test"])
    assert ledger["patients"] == 2
    assert ledger["prefill_computed_tokens"] <= ledger["prefill_tokens"]
    assert [(step["policy_version"], step["policy_version_out"]) for step in steps] == [(0, 1)]
    assert {
        "reward/mean",
        "reward/cls_mean",
        "reward/att_mean",
        "time/rollout_s",
        "time/sync_s",
    } <= set(steps[0])
    assert {"vanilla", "question_decomposition", "stage1", "eag_rl", "concare"} <= set(results)
    assert all(0 <= row["parse_failure_rate"] <= 1 for row in results.values())
    faithfulness = results["eag_rl"]["faithfulness"]
    assert faithfulness["num_judged"] + sum(faithfulness["unjudged"].values()) == 2
    assert results["vanilla"]["faithfulness"] is None
    assert (folder / "sft" / "adapter" / "adapter_model.safetensors").exists()
    assert (folder / "grpo" / "adapter" / "adapter_model.safetensors").exists()


def test_the_report_is_one_page_that_loads_nothing(finished):
    page = (finished[0] / "report.html").read_text()

    assert "not for clinical use" in page
    assert 'src="http' not in page
    assert '<link rel="stylesheet"' not in page


def test_no_step_of_the_run_lost_the_policy(finished):
    trajectories = pd.read_parquet(finished[0] / "search" / "trajectories.parquet")
    predictions = pd.read_parquet(finished[0] / "evaluate" / "predictions.parquet")
    by_method = {name: set(table["patient_id"]) for name, table in predictions.groupby("method")}

    assert len(set(trajectories["patient_id"])) <= 2
    assert by_method["vanilla"] == by_method["eag_rl"]


def test_both_forms_of_think_then_answer_are_rows(finished):
    predictions = pd.read_parquet(finished[0] / "evaluate" / "predictions.parquet")
    texts = {name: list(table["text"]) for name, table in predictions.groupby("method")}
    failed = {name: set(table["parse_failed"]) for name, table in predictions.groupby("method")}

    assert failed["think_then_answer"] == failed["think_then_answer_json"] == {False}
    assert all(text.startswith("<think>\n") for text in texts["think_then_answer"])
    assert all(0 <= json.loads(text)["answer"] < 1 for text in texts["think_then_answer_json"])
    assert all(json.loads(text)["think"] for text in texts["think_then_answer_json"])


def test_stage_2_keeps_the_step_that_the_validation_patients_choose(finished):
    folder, done = finished
    chosen = json.loads((folder / "grpo" / "selection.json").read_text())
    results = json.loads((folder / "evaluate" / "results.json").read_text())
    policies, adapter = folder / "grpo" / "policies", "adapter/adapter_model.safetensors"

    assert [each["step"] for each in chosen["curve"]] == [chosen["step"]] == [1]
    assert chosen["num_patients"] == 12
    assert (policies / "v1" / adapter).read_bytes() == (folder / "grpo" / adapter).read_bytes()
    assert [row["selected_step"] for row in results if row["method"] == "eag_rl"] == [1]
    assert "Stage 2 keeps step 1 by AUROC on 12 validation patients" in done.stdout


def test_another_trainer_pays_what_stage_2_paid(finished):
    folder, _ = finished
    samples = pd.read_json(folder / "grpo" / "rollouts.jsonl", lines=True)
    is_whole = samples["format_failure"].fillna("") != "truncated"
    whole = rows(samples, is_whole).to_dict("records")
    session = Session(RunFolder(folder).read_config(), RunFolder(folder), Display())
    lines = {
        line["patient_id"]: line
        for line in patient_lines(
            folder,
            pd.read_parquet(folder / "expert" / "salience.parquet"),
            session.tokenizer,
            session.model.chat,
        )
    }
    own = [lines[sample["patient_id"]] for sample in whole]

    rewards = TrajectoryReward.of_run(folder)(
        completions=[sample["text"] for sample in whole],
        **untyped({name: [line[name] for line in own] for name in ("label", *_SALIENT)}),
    )

    assert rewards == pytest.approx([sample["reward"] for sample in whole])
    assert any(sample["reward_att"] > 0 for sample in whole)


def test_a_second_run_does_nothing_and_says_so(finished):
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}

    again = run(folder, *MORE)

    assert again.returncode == 0, again.stderr
    assert again.stderr.count("already done, same inputs; skipped") == 7
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")} == before


def test_another_configuration_is_refused_before_anything_runs(finished):
    refused = run(finished[0], *MORE, "grpo.learning_rate=0.001")

    assert refused.returncode == 2
    assert "grpo.learning_rate" in refused.stderr.strip().splitlines()[-1]
    assert "--redo grpo" in refused.stderr.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.timeout(2700)
def test_ctrl_c_leaves_no_process_and_the_same_command_resumes(tmp_path):
    folder = tmp_path / "interrupted"
    # Two stages behind the one that is stopped: the rest costs minutes and is run above.
    short = ("grpo.enabled=false", "evaluate.methods=[vanilla]", "evaluate.faithfulness_patients=0")
    # Off the session's process group, as a terminal's job is.
    job = subprocess.Popen(
        command(folder, *short),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(),
        start_new_session=True,
        # A shell that started the tests in the background has made them deaf to it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 1200
    while not (folder / "search" / "stage.json").exists():
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.5)
    started = descendants(job.pid)

    job.send_signal(signal.SIGINT)
    _, errors = job.communicate(timeout=600)
    time.sleep(5)
    left = [pid for pid in started if Path(f"/proc/{pid}/cmdline").exists()]
    resumed = run(folder, *short)

    assert job.returncode == 130
    assert "the same command resumes" in errors.strip().splitlines()[-1]
    assert left == []
    assert resumed.returncode == 0, resumed.stderr[-4000:]
    assert "cohort: already done" in resumed.stderr
    assert "expert: already done" in resumed.stderr
    assert (folder / "sft" / "adapter" / "adapter_model.safetensors").exists()
    assert (folder / "evaluate" / "results.json").exists()
