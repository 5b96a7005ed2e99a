"""Renders docs/configuration.md: `python -m training.config_reference`."""

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from training.config import RunConfig

TARGET = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"

HEADER = """\
# Configuration

Every setting, its default and what it does. Sources in rising order: these defaults, YAML files
from left to right, `section.key=value` arguments. Unknown keys are errors. This page is generated:
`python -m training.config_reference`.
"""


def render() -> str:
    """The whole page."""
    return "\n".join([HEADER, *_sections()]) + "\n"


def _sections() -> Iterator[str]:
    for name, field in RunConfig.model_fields.items():
        section = field.annotation
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        yield f"## {name}\n\n{(section.__doc__ or '').strip()}\n"
        yield "| Key | Default | Values | Meaning |\n| --- | --- | --- | --- |"
        for key, entry in section.model_fields.items():
            meaning = " ".join((entry.description or "").split()).replace("|", "\\|")
            yield f"| `{key}` | `{_text(entry.default)}` | {_values(entry)} | {meaning} |"
        yield ""


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _values(field: FieldInfo) -> str:
    kinds = list(get_args(field.annotation) or (field.annotation,))
    if get_origin(field.annotation) is tuple:
        return "list of " + " \\| ".join(f"`{v}`" for v in get_args(kinds[0]))
    names = []
    for kind in kinds:
        if kind is type(None):
            names.append("null")
        elif isinstance(kind, type) and issubclass(kind, Enum):
            names += [f"`{member.value}`" for member in kind]
        elif isinstance(kind, type):
            names.append({"str": "text", "bool": "true, false"}.get(kind.__name__, kind.__name__))
        else:
            names.append(f"`{kind}`")
    signs = {Ge: ">= {0.ge}", Gt: "> {0.gt}", Le: "<= {0.le}", Lt: "< {0.lt}"}
    bounds = [
        text.format(m) for m in field.metadata for c, text in signs.items() if isinstance(m, c)
    ]
    return " \\| ".join(names) + (f", {', '.join(bounds)}" if bounds else "")


if __name__ == "__main__":
    TARGET.write_text(render())
