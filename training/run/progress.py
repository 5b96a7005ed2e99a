"""What a person sees of a long stage: a bar with rate and time left, or a line a stage.

On a terminal a live bar is shown; elsewhere (a file, a job's log) one line when a stage begins
and one when it ends, plus a line every few minutes so that a log shows that work goes on. A stage
of optimizer steps also shows what they measured: a table under the bar, or a line a step.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console, RenderableType
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
from rich.table import Table
from rich.text import Text

from training.run.step_table import step_line, step_table
from training.run.step_watch import StepWatch

OnProgress = Callable[[float, float, str], None]
"""Called with work done, work in total and a short text; its further lines stand under the bar."""

LOG_INTERVAL_S = 120
"""Without a terminal: a sign of life at most this often."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        unit = f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each"
        return Text(unit, style="cyan")


class _StepProgress(Progress):
    """A bar with what the work says of itself under it: lines, and a table of the last steps."""

    lines: Text | None = None
    steps: Table | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.lines is not None:
            yield self.lines
        if self.steps is not None:
            yield self.steps


class Display:
    """Prints the progress of stages to standard error; results go to standard output."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stderr, highlight=False, soft_wrap=True)

    @classmethod
    def silent(cls) -> Self:
        """One that shows nothing: for a look that nobody waits for."""
        return cls(Console(quiet=True))

    def say(self, text: str) -> None:
        """Prints one line."""
        self.console.print(text, markup=False)

    @contextmanager
    def stage(self, name: str, steps: StepWatch | None = None) -> Iterator[OnProgress]:
        """Shows a stage while it runs; yields the callback that moves its bar.

        Args:
            name: of the stage.
            steps: its optimizer steps, if it has some; looked at whenever the callback is called.
        """
        started = time.monotonic()
        if steps is not None:
            steps.refresh()  # what an earlier attempt did is no news
        shown = self._on_terminal if self.console.is_terminal else self._in_log
        try:
            with shown(name, steps) as move:
                yield move
        finally:
            if steps is not None:
                steps.close()
        self.say(f"{name}: done in {time.monotonic() - started:.1f} s")

    @contextmanager
    def _on_terminal(self, name: str, steps: StepWatch | None) -> Iterator[OnProgress]:
        progress = _StepProgress(
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
        try:
            with progress:
                task = progress.add_task("", total=None, stage=name)

                def move(done: float, total: float, text: str = "") -> None:
                    if steps is not None and steps.refresh():
                        progress.steps = step_table(steps.lines, self.console.width)
                    description, _, lines = text.partition("\n")
                    progress.lines = Text(lines, style="dim") if lines else None
                    progress.update(task, completed=done, total=total, description=description)

                yield move
        finally:
            if steps is not None:
                steps.refresh()
                if steps.lines:
                    self.console.print(step_table(steps.lines, self.console.width))

    @contextmanager
    def _in_log(self, name: str, steps: StepWatch | None) -> Iterator[OnProgress]:
        self.say(f"{name}: started")
        last = time.monotonic()
        first: tuple[float, float] | None = None  # what an earlier attempt did took no time here
        num_steps = 0.0

        def tell_steps() -> None:
            for line in steps.refresh() if steps is not None else ():
                self.say(f"{name}: {step_line(line, num_steps)}")

        def log(done: float, total: float, text: str = "") -> None:
            nonlocal first, last, num_steps
            num_steps = total
            tell_steps()
            now = time.monotonic()
            first = first or (now, done)
            if now - last >= LOG_INTERVAL_S:
                last = now
                began, before = first
                left = (now - began) / (done - before) * (total - done) if done > before else None
                told = text.replace("\n", ", ")
                remaining = "" if left is None else f", about {left:.0f} s left"
                self.say(f"{name}: {done:g}/{total:g} {told}{remaining}")

        try:
            yield log
        finally:
            tell_steps()
