import subprocess
import sys
from pathlib import Path

import pytest

from training import cli

ROOT = Path(__file__).parents[3]
DEMO = str(ROOT / "configs" / "demo.yaml")


def run(*arguments, **environment):
    import os

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


def test_relative_paths_are_refused_inside_a_submitted_job(monkeypatch, capsys):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")

    status = cli.main(["cohort", DEMO, "--run-dir", "runs/demo"])

    assert status == 2
    assert "make it absolute" in capsys.readouterr().err


def test_the_cohort_stage_writes_its_folder_and_prints_the_run_folder_last(tmp_path):
    folder = tmp_path / "run"

    first = run("cohort", DEMO, "--run-dir", str(folder))
    second = run("cohort", DEMO, "--run-dir", str(folder))

    assert first.returncode == 0, first.stderr
    assert first.stdout.strip().splitlines()[-1] == str(folder)
    assert (folder / "cohort" / "summary.json").exists()
    assert (folder / "cohort" / "truth.parquet").exists()
    assert "cohort: already done, same inputs; skipped" in second.stderr
