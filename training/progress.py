"""What a person sees of a long stage: a bar with rate and time left, or a line a stage.

On a terminal a live bar is shown; elsewhere (a file, a job's log) one line when a stage begins
and one when it ends, plus a line every few minutes so that a log shows that work goes on.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

OnProgress = Callable[[float, float, str], None]
"""Called with work done, work in total and a short text."""

LOG_INTERVAL_S = 120
"""Without a terminal: a sign of life at most this often."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        unit = f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each"
        return Text(unit, style="cyan")


class Reporter:
    """Prints the progress of stages to standard error; results go to standard output."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stderr, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Prints one line."""
        self.console.print(text, markup=False)

    @contextmanager
    def stage(self, name: str) -> Iterator[OnProgress]:
        """Shows a stage while it runs; yields the callback that moves its bar."""
        started = time.monotonic()
        if self.console.is_terminal:
            progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.fields[stage]:<9}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                _Rate(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                console=self.console,
                transient=True,
            )
            with progress:
                task = progress.add_task("", total=None, stage=name)

                def move(done: float, total: float, text: str = "") -> None:
                    progress.update(task, completed=done, total=total, description=text)

                yield move
        else:
            self.say(f"{name}: started")
            last = started

            def log(done: float, total: float, text: str = "") -> None:
                nonlocal last
                now = time.monotonic()
                if now - last >= LOG_INTERVAL_S:
                    last = now
                    left = (now - started) / done * (total - done) if done else float("nan")
                    remaining = f", about {left:.0f} s left" if done else ""
                    self.say(f"{name}: {done:g}/{total:g} {text}{remaining}")

            yield log
        self.say(f"{name}: done in {time.monotonic() - started:.1f} s")
