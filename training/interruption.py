"""Ctrl-C, a job's stop and a terminal's hang-up all end a command the same way.

They raise KeyboardInterrupt in the main thread, so that services are stopped and work is kept.
"""

import signal


def raise_on_signals() -> None:
    """Install the handlers; call it again after Ray has connected, which installs its own.

    A hang-up that is ignored already (`nohup`) stays ignored.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _interrupt)


def _interrupt(number: int, frame: object) -> None:
    # A second signal must not break off the clean-up of the first.
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
