"""What setuptools would put into the wheel, without building it."""

from pathlib import Path

import pytest
from setuptools import Distribution
from setuptools.command.build_py import build_py

from training.run import versions

ROOT = Path(__file__).parents[2]
PACKAGES = ("ehr", "services", "actors", "training")


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """Files that setuptools finds by pyproject.toml, modules and data."""
    monkeypatch.chdir(ROOT)
    distribution = Distribution({"script_name": "setup.py"})
    distribution.parse_config_files()
    command = build_py(distribution)
    command.ensure_finalized()
    modules = [Path(file) for _, _, file in command.find_all_modules()]
    data = [
        Path(source, name)
        for _, source, _, names in command.get_data_files_without_manifest()
        for name in names
    ]
    return {*modules, *data}


def test_the_wheel_has_every_file_of_the_four_packages_and_no_other(packed: set[Path]):
    files = {
        path.relative_to(ROOT)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    assert packed == files


def test_the_wheel_has_every_package_and_says_that_it_is_typed(packed: set[Path]):
    inits = {
        path.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("__init__.py")
    }

    assert inits >= {Path("ehr/catalogue/__init__.py"), Path("training/objective/__init__.py")}
    assert packed >= inits | {Path(name, "py.typed") for name in PACKAGES}


def test_an_installed_package_has_no_commit_of_the_repository_around_it(
    monkeypatch: pytest.MonkeyPatch,
):
    # As if this checkout's own folder of tests were an environment's site-packages.
    inside = ROOT / "tests" / "training" / "run" / "versions.py"
    monkeypatch.setattr(versions, "__file__", str(inside))

    assert versions.commit() is None
