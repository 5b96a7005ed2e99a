"""What other projects may import: that it exists, is described, and serves a stranger's script."""

import ast
import importlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from sklearn.metrics import roc_auc_score

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "stranger.py"
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PUBLIC = (
    "ehr.errors",
    "ehr.answers.grounding",
    "ehr.cohorts.loaders",
    "ehr.metrics",
    "ehr.salience.in_process",
    "training.interop.export",
    "training.interop.reward_function",
)


def documented() -> dict[str, list[str]]:
    """Names by module, from the table of docs/running/other_software.md."""
    page = (ROOT / "docs" / "running" / "other_software.md").read_text()
    section = page.split("## What other projects may import\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \|", section, re.M)
    return {module: sorted(re.findall(r"`(\w+)`", names)) for module, names in rows}


def described(name: str) -> set[str]:
    """Names that a module defines at its top, each with a docstring in it or under it."""
    body = ast.parse(Path(importlib.import_module(name).__file__ or "").read_text()).body
    found = {
        node.name
        for node in body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
    }
    for node, below in pairwise(body):
        if (
            isinstance(node, ast.Assign)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_exists_and_is_described(name: str):
    module = importlib.import_module(name)
    homes = {each: getattr(getattr(module, each), "__module__", name) for each in module.__all__}

    undescribed = [
        each
        for each, home in homes.items()
        if each not in described(home if home.startswith(("ehr.", "training.")) else name)
    ]

    assert undescribed == []


def test_the_page_lists_exactly_the_public_names():
    public = {name: sorted(importlib.import_module(name).__all__) for name in PUBLIC}

    assert documented() == public


def imported(script: Path) -> set[tuple[str, str]]:
    """Modules of the project that a script imports from, each with a name."""
    return {
        (node.module or "", alias.name)
        for node in ast.walk(ast.parse(script.read_text()))
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").split(".")[0] in ("ehr", "services", "actors", "training")
        for alias in node.names
    }


@pytest.mark.parametrize("script", [SCRIPT, *EXAMPLES], ids=lambda script: script.stem)
def test_a_script_imports_public_names_only(script: Path):
    public = {(name, each) for name in PUBLIC for each in importlib.import_module(name).__all__}

    assert imported(script) - public == set()


def test_the_strangers_script_uses_every_public_module():
    assert {module for module, _ in imported(SCRIPT)} == set(PUBLIC)


def test_the_script_passes_a_type_check():
    checked = subprocess.run(
        [Path(sys.executable).with_name("basedpyright"), "--level", "error", SCRIPT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert checked.returncode == 0, checked.stdout


def test_a_strangers_script_runs_outside_the_checkout(tmp_path: Path):
    script = shutil.copy(SCRIPT, tmp_path)

    done = subprocess.run(
        [sys.executable, script, tmp_path / "no run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    check_output(found)
    assert "has no config.json" in found["export"]


def check_output(found: dict) -> None:
    """What the script must have found, by hand or by another library."""
    metrics = found["metrics"]
    auroc = roc_auc_score(metrics["labels"], metrics["risks"])
    assert found["splits"] == {"train": 34, "val": 5, "test": 21}
    assert metrics["row"]["n"] == 21
    assert metrics["row"]["auroc"] == pytest.approx(auroc)
    assert metrics["difference"] == pytest.approx(auroc - 0.5)
    assert found["grounding"] == {
        "claims": 2,
        "problems": ["pH was never 9.87"],
        "error_rate": 0.5,
    }
    opinions = found["opinions"]
    assert (opinions["patients"], opinions["sizes"]) == (60, [5])
    assert len(set(opinions["risks"])) == 21
    assert all(0 < risk < 1 for risk in opinions["risks"])
    # Eq. 7 with equal weights: log-likelihood of the outcome and the margin above .5, two of three
    # features. Unreadable is the worst probability, .01, and no feature.
    assert found["rewards"] == pytest.approx(
        [0.5 * (math.log(0.8) + 0.3) + 0.5 * 2 / 3, 0.5 * math.log(0.01)]
    )
