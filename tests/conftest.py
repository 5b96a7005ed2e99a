"""Settings of every test session."""

import time

import pytest
from hypothesis import settings

from services.environment import prepare_process

# Before any test imports torch, which reads some of it then.
prepare_process()

# An example's first call may build or load something, and the machine may be busy: no test has a
# time of its own to keep.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

_STARTED = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--start-within",
        type=float,
        metavar="MINUTES",
        help="skip what has not begun after so many minutes, and say so",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture of the test is made: those of a slow test are most of its time."""
    minutes = item.config.getoption("--start-within")
    if minutes is not None and time.monotonic() - _STARTED > 60 * minutes:
        pytest.skip(f"the {minutes:g} minutes of --start-within were over")
