import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from training.run.metrics_file import MetricsFile
from training.run.progress import Display
from training.run.step_table import step_line, step_table
from training.run.step_watch import StepWatch

GRPO = {
    "step": 3,
    "policy_version": 2,
    "policy_version_out": 3,
    "reward/mean": -0.4123,
    "reward/cls_mean": -0.63,
    "reward/att_mean": 0.12,
    "rollout/parse_failure_rate": 0.125,
    "rollout/truncated_rate": 0.0,
    "rollout/dead_groups": 1,
    "rollout/groups": 2,
    "entropy/salient_mean": None,
    "entropy/all_mean": 2.4,
    "mismatch/k3": 0.00123,
    "mismatch/mean_abs": 0.05,
    "mismatch/max_abs": 0.4,
    "sync/served_share": 0.976,
    "sync/trained_change": 0.03125,
    "tokens/useful_per_s": 37.6,
    "time/rollout_s": 121.4,
    "time/old_logprob_s": 9.0,
    "time/train_s": 38.0,
    "time/sync_s": 1.4,
    "time/canary_s": 0.5,
}


def printed(width=100, **console):
    stream = io.StringIO()
    return stream, Console(file=stream, width=width, highlight=False, soft_wrap=True, **console)


def text_of(table):
    stream, console = printed()
    console.print(table)
    return stream.getvalue()


def test_a_step_is_one_line_that_says_what_is_missing():
    text = step_line(GRPO, 4)

    assert text.startswith("step 3/4: policy sampled by/published 2/3, reward R/cls/att -0.412/")
    assert "entropy salient/all -/2.4" in text
    assert "groups dead/all 1/2" in text
    assert "served share/trained change 0.976/0.0312" in text
    assert "format failures/cut off 12.5%/0.0%" in text
    assert "useful tokens/s 38" in text
    assert "seconds rollout/waited/old/train/sync 121/-/9.0/38.0/1.4" in text


def test_a_row_that_no_step_has_is_left_out():
    text = step_line({"step": 1, "sft/loss": 2.0}, 8)

    assert text == "step 1/8: loss 2"


@pytest.mark.parametrize(
    ("width", "steps"), [(5, [9]), (15, [8, 9]), (1000, [2, 3, 4, 5, 6, 7, 8, 9])]
)
def test_the_table_has_as_many_of_the_last_steps_as_fit(width, steps):
    table = step_table([{"step": step, "sft/loss": 2.0} for step in range(1, 10)], width)

    assert [str(column.header) for column in table.columns] == ["step", *map(str, steps)]


def test_the_table_is_not_cut_off_in_a_terminal_of_eighty_columns():
    lines = text_of(step_table([GRPO, GRPO], 80)).splitlines()

    assert max(map(len, lines)) <= 80
    assert any("-0.412/-0.63/0.12" in line for line in lines)


def test_a_log_has_a_line_a_step_and_none_of_an_earlier_attempt(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append({"step": 1, "sft/loss": 3.0})
    stream, console = printed(force_terminal=False)

    with Display(console).stage("sft", StepWatch(tmp_path / "metrics.jsonl")) as move:
        move(1, 3, "")
        file.append({"step": 2, "sft/loss": 2.0})
        move(2, 3, "")
        file.append({"step": 3, "sft/loss": 1.0})  # written after the last look

    said = stream.getvalue().splitlines()
    assert said[:3] == ["sft: started", "sft: step 2/3: loss 2", "sft: step 3/3: loss 1"]
    assert said[3].startswith("sft: done in")


def test_a_terminal_shows_the_table_under_the_bar_and_keeps_it(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    stream, console = printed(force_terminal=True)

    with Display(console).stage("sft", StepWatch(tmp_path / "metrics.jsonl")) as move:
        file.append({"step": 1, "sft/loss": 2.125})
        move(1, 3, "training")

    assert "2.12" in stream.getvalue()
    assert stream.getvalue().rstrip().splitlines()[-1].startswith("sft: done in")


def fail_after_a_step(display, path):
    with display.stage("sft", StepWatch(path)) as move:
        move(0, 3, "")
        MetricsFile(path).append({"step": 1, "sft/loss": 2.0})
        raise RuntimeError


def test_the_steps_before_a_failure_are_told(tmp_path):
    stream, console = printed(force_terminal=False)

    with pytest.raises(RuntimeError):
        fail_after_a_step(Display(console), tmp_path / "metrics.jsonl")

    assert stream.getvalue().splitlines() == ["sft: started", "sft: step 1/3: loss 2"]


def test_the_time_left_in_a_log_leaves_out_what_an_earlier_attempt_did(monkeypatch):
    clock = SimpleNamespace(monotonic=iter([0.0, 0.0, 0.0, 10.0, 20.0]).__next__)
    monkeypatch.setattr("training.run.progress.LOG_INTERVAL_S", 5)
    monkeypatch.setattr("training.run.progress.time", clock)
    stream, console = printed(force_terminal=False)

    with Display(console).stage("search") as move:
        move(80, 100, "rollouts")
        move(82, 100, "rollouts")

    assert "search: 82/100 rollouts, about 90 s left" in stream.getvalue()
