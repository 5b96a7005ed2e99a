"""One stage of a run: what it reads, needs and writes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from training.config.run import RunConfig
from training.run.progress import OnProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of the main job."""

    name: str
    sections: tuple[str, ...]
    """Configuration it reads: whole sections, or single `section.field`s."""
    needs: tuple[str, ...]
    """Stages whose output it reads."""
    outputs: tuple[str, ...]
    """Files or folders in RUN/NAME whose bytes are its output."""
    function: "Callable[[Any, OnProgress], None]"
    """Does the work, given the session and a progress callback; must be able to resume."""
    has_steps: bool = False
    """It writes `metrics.jsonl`, an object a step, which is shown and copied while it grows."""
    when: "Callable[[RunConfig], bool]" = lambda config: True
    """Whether the configuration wants it at all."""
