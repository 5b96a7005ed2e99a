import errno
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from training import cli

ROOT = Path(__file__).parents[3]
DEMO = str(ROOT / "configs" / "demo.yaml")
TINY = str(ROOT / "configs" / "tiny.yaml")


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "training.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=120,
        check=False,
    )


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from training import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'ray', 'vllm', 'pandas', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )

    assert "eag-rl" in done.stdout
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "configs/none.yaml"], "does not exist"),
        (["run", DEMO, "search.num_rollout=1"], "did you mean 'search.num_rollouts'"),
        (["run", DEMO, "cohort.source=tjh", "cohort.path=/nowhere"], "/nowhere"),
        (["cohort", "search.num_rollouts=1"], "at least one configuration file"),
        (["cohort", DEMO, "run=3"], "an override is section.key=value"),
    ],
)
def test_bad_input_ends_with_status_2_and_a_one_line_error(arguments, expected, tmp_path):
    done = run(*arguments, "--run-dir", str(tmp_path / "run"))

    assert done.returncode == 2
    assert expected in done.stderr.strip().splitlines()[-1]
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_table_in_an_error_keeps_its_lines_before_the_last(capsys):
    cli._print_error("too much:\n  part   CPU\n  rank   900\nlower it")

    assert capsys.readouterr().err.splitlines() == [
        "  part   CPU",
        "  rank   900",
        "error: too much: lower it",
    ]


def test_a_full_disk_ends_a_stage_with_one_line_that_names_the_place(tmp_path, capsys):
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort" / f".summary.json.{os.getpid()}.partial").symlink_to("/dev/full")

    status = cli.main(["cohort", TINY, "--run-dir", str(tmp_path)])

    said = capsys.readouterr().err
    assert status == 1
    assert said.splitlines()[-1].startswith(
        f"error: a file or connection failed at {str(tmp_path)!r}: No space left on device; free "
    )
    assert "Traceback" not in said


def test_a_folder_where_a_stage_writes_a_file_is_named_with_the_fix(tmp_path, capsys):
    (tmp_path / "cohort" / "patients.parquet").mkdir(parents=True)

    status = cli.main(["cohort", TINY, "--run-dir", str(tmp_path)])

    said = capsys.readouterr().err
    assert status == 1
    assert said.splitlines()[-1].startswith("error: ")
    assert "patients.parquet" in said.splitlines()[-1]
    assert "Traceback" not in said


def test_a_run_folder_below_a_file_is_bad_input(tmp_path, capsys):
    (tmp_path / "file").write_text("")

    status = cli.main(["cohort", TINY, "--run-dir", str(tmp_path / "file" / "run")])

    assert status == 2
    assert "cannot make the run folder" in capsys.readouterr().err.splitlines()[-1]


def test_what_a_worker_could_not_write_is_one_line_without_the_workers_traceback():
    cause = OSError(errno.EACCES, "Permission denied", "/data/x")
    error = RayTaskError("search", "Traceback (most recent call last): ...", cause)

    raised = error.as_instanceof_cause()
    assert isinstance(raised, OSError)
    text = cli._system_error_text(raised, Namespace(run_dir="runs/x"))

    assert text.startswith("a file or connection failed at '/data/x': Permission denied; let this")


def test_an_empty_run_folder_name_is_refused(capsys):
    assert cli.main(["cohort", TINY, "--run-dir", ""]) == 2
    assert "--run-dir is empty" in capsys.readouterr().err


def test_relative_paths_are_refused_inside_a_submitted_job(monkeypatch, capsys):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")

    status = cli.main(["cohort", DEMO, "--run-dir", "runs/demo"])

    assert status == 2
    assert "make it absolute" in capsys.readouterr().err


def test_the_cohort_stage_writes_its_folder_and_prints_the_run_folder_last(tmp_path, capsys):
    folder = tmp_path / "run"

    first = run("cohort", DEMO, "--run-dir", str(folder))
    second = cli.main(["cohort", DEMO, "--run-dir", str(folder)])

    assert first.returncode == 0, first.stderr
    assert first.stdout.strip().splitlines()[-1] == str(folder)
    assert (folder / "cohort" / "summary.json").exists()
    assert (folder / "cohort" / "truth.parquet").exists()
    assert second == 0
    assert "cohort: already done, same inputs; skipped" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing_half_written_of_a_cohort(tmp_path, capsys):
    stage = tmp_path / "run" / "cohort"
    stage.mkdir(parents=True)
    (stage / f".visits.parquet.{os.getpid()}.partial").symlink_to("/dev/full")
    command = ["cohort", DEMO, "--run-dir", str(tmp_path / "run")]

    status = cli.main(command)

    said = capsys.readouterr().err
    assert status == 1
    assert said.splitlines()[-1].startswith("error: a file or connection failed at ")
    assert "; free space there" in said
    assert "Traceback" not in said
    assert sorted(path.name for path in stage.iterdir()) == ["patients.parquet", "stage.json"]
    assert cli.main(command) == 0
