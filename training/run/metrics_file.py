"""`metrics.jsonl`: one object a step, each step once, whatever was interrupted."""

import json
from pathlib import Path
from typing import Any

from ehr.whole_files import write_text


class MetricsFile:
    """The metrics of a stage's steps, in order."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def lines(self) -> list[dict[str, Any]]:
        """What has been written so far."""
        if not self._path.exists():
            return []
        return [json.loads(line) for line in self._path.read_text().splitlines()]

    def append(self, line: dict[str, Any]) -> None:
        """Add a step's line; what was written for that step or a later one is replaced."""
        kept = [old for old in self.lines() if old["step"] < line["step"]]
        text = "".join(json.dumps(each, allow_nan=False) + "\n" for each in [*kept, line])
        write_text(self._path, text, durable=True)
