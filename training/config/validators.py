"""Checks of single settings that several sections share."""

from collections.abc import Sequence
from typing import Any


def require_each_once(name: str, values: Sequence[object]) -> None:
    """Refuses a list that has a value twice.

    Raises:
        ValueError: if one is there twice.
    """
    if len(set(values)) < len(values):
        raise ValueError(f"{name} must name each once, got {list(values)}")


def listed(value: Any) -> Any:
    """A single value as a list of one."""
    return value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
