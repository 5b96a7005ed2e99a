"""Settings of every test session."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling, Scheduling

from services.environment import prepare_process

# Before any test imports torch, which reads some of it then.
prepare_process()
# Two test processes share the cores with what they start; runs set their own number of threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# An example's first call may build or load something, and the machine may be busy: no test has a
# time of its own to keep.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

_STARTED = time.monotonic()

_OWN_FIXTURES = frozenset(
    {
        "test_examples.py",
        "test_generator_adapter.py",
        "test_job_submission.py",
        "test_learn.py",
        "test_learner.py",
        "test_main_job.py",
        "test_wheel.py",
    }
)
"""Integration tests that use neither the session's Ray nor its engine. A file that is wrongly here
starts them once more."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--start-within",
        type=float,
        metavar="MINUTES",
        help="skip what has not begun after so many minutes, and say so",
    )


class _SharedFixtures(LoadFileScheduling):
    """Deals whole files to the session's processes; files that share a fixture stay together.

    Groups by marks (`--dist loadgroup`) are lost: pytest-xdist 3.8 writes them into the items'
    `_nodeid`, which pytest 9.2 does not read.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = Path(nodeid.partition("::")[0])
        if path.parent.name == "integration" and path.name not in _OWN_FIXTURES:
            return "one Ray, one engine"
        return str(path)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    """How tests are dealt to the processes of `-n`."""
    return _SharedFixtures(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture of the test is made: those of a slow test are most of its time."""
    minutes = item.config.getoption("--start-within")
    if minutes is not None and time.monotonic() - _STARTED > 60 * minutes:
        pytest.skip(f"the {minutes:g} minutes of --start-within were over")
