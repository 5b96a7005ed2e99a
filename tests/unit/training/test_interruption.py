import os
import signal

import pytest

from training.interruption import raise_on_signals


@pytest.fixture(autouse=True)
def handlers():
    """Leaves the session's handlers as they were."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
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


def test_a_hang_up_that_nohup_ignores_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    raise_on_signals()

    os.kill(os.getpid(), signal.SIGHUP)
