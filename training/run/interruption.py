"""Ctrl-C, a job's stop and a terminal's hang-up all end a command the same way.

They raise `Interrupted` in the main thread, so that services are stopped and work is kept.
"""

import signal


class Interrupted(KeyboardInterrupt):
    """A KeyboardInterrupt that leaves the exit status to the command.

    Python notes a plain one that passes through code it compiles from text (a dataclass of some
    module that is being imported): a program begun by `python -m` that has caught it still dies of
    SIGINT at its end instead of returning its status.
    """


def raise_on_signals() -> None:
    """Install the handlers; call it again after Ray has connected, which installs its own.

    A signal that is ignored already (a hang-up under `nohup`, Ctrl-C of a script's background
    job) stays ignored.
    """
    for number, handler in (
        (signal.SIGINT, _interrupt),
        (signal.SIGTERM, _interrupt_once),
        (signal.SIGHUP, _interrupt_once),
    ):
        # Nothing sets SIGTERM aside for a command it starts.
        if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted


def _interrupt_once(number: int, frame: object) -> None:
    # A second signal must not break off the clean-up of the first; a second Ctrl-C may.
    signal.signal(number, signal.SIG_IGN)
    raise Interrupted
