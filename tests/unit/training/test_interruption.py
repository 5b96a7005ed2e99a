import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from training.run.interruption import raise_on_signals

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def handlers():
    """Leaves the session's handlers as they were."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_interrupts_once_and_a_second_does_not_break_the_cleanup(number):
    signal.signal(number, signal.SIG_DFL)  # the tests themselves may run under nohup
    raise_on_signals()

    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_the_caller_ignores_stays_ignored(number):
    signal.signal(number, signal.SIG_IGN)

    raise_on_signals()

    os.kill(os.getpid(), number)


INTERRUPTED_IN_CODE_FROM_TEXT = """
import os, signal, sys
from training.run.interruption import raise_on_signals
signal.signal({number}, signal.default_int_handler)
raise_on_signals()
try:
    exec("os.kill(os.getpid(), {number})")
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_inside_code_from_text_leaves_the_exit_status_alone(tmp_path, number):
    (tmp_path / "command.py").write_text(INTERRUPTED_IN_CODE_FROM_TEXT.format(number=int(number)))
    paths = [str(tmp_path), str(ROOT)]

    ended = subprocess.run(
        [sys.executable, "-m", "command"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        timeout=60,
        check=False,
    )

    assert ended.returncode == 130
