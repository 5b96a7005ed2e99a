"""A run folder's files, each of which may be missing, cut off or odd."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

BULKY = ("token_ids", "prompt_token_ids", "model_written")
"""Columns of trajectories that no picture needs."""


Rows = Sequence[dict[str, Any]]
"""Objects of a JSON file, or rows of a Parquet table; any value may be missing."""


def as_object(value: object) -> dict[str, Any]:
    """The value if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


class RunFiles:
    """Reads a run folder's files and notes those that cannot be read."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self.problems: list[str] = []

    def json_object(self, name: str) -> dict[str, Any] | None:
        """The object in a JSON file; None if there is no such file."""
        value = self._json(name)
        if value is not None and not isinstance(value, dict):
            self.problems.append(f"{name} holds a {type(value).__name__} instead of an object.")
        return value if isinstance(value, dict) else None

    def json_rows(self, name: str) -> tuple[dict[str, Any], ...]:
        """The objects of a JSON list."""
        value = self._json(name)
        if value is not None and not isinstance(value, list):
            self.problems.append(f"{name} holds a {type(value).__name__} instead of a list.")
        return (
            tuple(row for row in value if isinstance(row, dict)) if isinstance(value, list) else ()
        )

    def json_lines(self, name: str) -> tuple[dict[str, Any], ...]:
        """One object a line, the last one of each `step`: a resumed run may repeat a step."""
        path = self._run_dir / name
        if not path.is_file():
            return ()
        by_step: dict[object, dict[str, Any]] = {}
        unreadable = 0
        for index, line in enumerate(path.read_text("utf-8", errors="replace").splitlines()):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                unreadable += 1
                continue
            if isinstance(row, dict):
                step = row.get("step")
                by_step[step if isinstance(step, int | float) else f"line {index}"] = row
        if unreadable:
            self.problems.append(
                f"{name} has {unreadable} unreadable line(s); the others are shown."
            )
        return tuple(by_step.values())

    def rows(self, name: str, required: Sequence[str]) -> Rows | None:
        """Rows of a Parquet table that has the required columns, less its bulky ones."""
        table = self._parquet(name, required)
        return None if table is None else table.to_pylist()

    def table(self, name: str, required: Sequence[str]) -> pd.DataFrame | None:
        """A Parquet table that has the required columns; None if there is no such file."""
        table = self._parquet(name, required)
        return None if table is None else table.to_pandas()

    def _parquet(self, name: str, required: Sequence[str]) -> pa.Table | None:
        path = self._run_dir / name
        if not path.is_file():
            return None
        try:
            columns = [column for column in pq.read_schema(path).names if column not in BULKY]
            missing = [column for column in required if column not in columns]
            if missing:
                self.problems.append(f"{name} lacks the columns {', '.join(missing)}.")
                return None
            return pq.read_table(path, columns=columns)
        except (OSError, pa.ArrowException) as error:
            self.problems.append(f"{name} cannot be read: {_first_line(error)}")
            return None

    def _json(self, name: str) -> Any:
        path = self._run_dir / name
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            self.problems.append(f"{name} cannot be read: {_first_line(error)}")
            return None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
