"""Renders docs/configuration.md: `python -m training.config.reference`."""

from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from training.config.run import RunConfig

TARGET = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"

HEADER = """\
# Configuration

Every setting, its default and what it does. Sources in rising order: these defaults, YAML files
from left to right, `section.key=value` arguments. Unknown keys are errors, and so are a key that
stands twice in one file or among the arguments, and settings that contradict each other. Values are
read as YAML 1.2 reads them (`1e-4` is a number, `010` is ten). This page is generated:
`python -m training.config.reference`.
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
    of_list = get_origin(field.annotation) is tuple
    kinds = list(get_args(field.annotation) or (field.annotation,))
    if of_list and get_origin(kinds[0]) is not Annotated:
        kinds = list(get_args(kinds[0]) or (kinds[0],))
    elif of_list:
        kinds = kinds[:1]
    text = " \\| ".join(name for kind in kinds for name in _names(kind))
    return f"list of {text}" if of_list else text + _bounds(field.metadata)


def _names(kind: Any) -> list[str]:
    """What a setting may be: the members of an enum, the name of a type, a literal."""
    if get_origin(kind) is Annotated:
        inner, *metadata = get_args(kind)
        found = [m for each in metadata for m in getattr(each, "metadata", (each,))]
        return [*(_names(inner)[:-1]), _names(inner)[-1] + _bounds(found)]
    if kind is type(None):
        return ["null"]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [f"`{member.value}`" for member in kind]
    if isinstance(kind, type):
        return [{"str": "text", "bool": "true, false"}.get(kind.__name__, kind.__name__)]
    return [f"`{kind}`"]


def _bounds(metadata: Sequence[Any]) -> str:
    signs = {Ge: ">= {0.ge}", Gt: "> {0.gt}", Le: "<= {0.le}", Lt: "< {0.lt}"}
    bounds = [text.format(m) for m in metadata for c, text in signs.items() if isinstance(m, c)]
    return f", {', '.join(bounds)}" if bounds else ""


if __name__ == "__main__":
    if not TARGET.parent.is_dir():
        raise SystemExit(f"expected the folder {TARGET.parent}, which only a checkout has")
    TARGET.write_text(render())
