"""What a test knows of its values, said to the type checker."""

from typing import Any, TypeVar

ValueT = TypeVar("ValueT")


def known(value: ValueT | None) -> ValueT:
    """A value that must be there."""
    assert value is not None
    return value


def untyped(value: Any) -> Any:
    """A fake, a value that is wrong on purpose, or one whose library states its type wrongly."""
    return value
