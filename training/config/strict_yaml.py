"""YAML as configurations are written in it: every key once, values that look like what they are.

PyYAML lets a later key replace an earlier one without a word, and reads values by YAML 1.1: `010`
as eight, `1:30` as ninety, `yes` and `off` as truth values, but `1e-4` as a text.
"""

import re
from typing import Any, ClassVar

import yaml


class DuplicateKeyError(yaml.YAMLError):
    """A key stands twice in one mapping."""


class _StrictLoader(yaml.SafeLoader):
    # PyYAML keeps it on the class, whatever its stubs say.
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # pyright: ignore[reportIncompatibleVariableOverride]

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        node = super().compose_node(parent, index)
        if isinstance(node, yaml.CollectionNode) and node.end_mark is None:  # still being read
            raise yaml.YAMLError(f"what line {node.start_mark.line + 1} begins contains itself")
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in first:
                raise DuplicateKeyError(
                    f"{key.value!r} stands in line {first[name]} and again in line {line}, where "
                    "the later one would replace the earlier; put them together"
                )
            first[name] = line
        return node


_DIGITS = "[0-9][0-9_]*"
_TAG = "tag:yaml.org,2002:"
# A table of its own: importing lm-format-enforcer, which vLLM does, makes SafeLoader read dates as
# texts in the whole process.
for _kind in ("null", "bool", "int", "float", "binary", "timestamp"):
    _StrictLoader.add_constructor(
        _TAG + _kind, getattr(yaml.constructor.SafeConstructor, f"construct_yaml_{_kind}")
    )
for _kind, _pattern, _starts in (
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", "[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    (
        "float",
        rf"[-+]?(?:(?:{_DIGITS}\.[0-9_]*|\.{_DIGITS})(?:[eE][-+]?[0-9]+)?|{_DIGITS}[eE][-+]?[0-9]+"
        r"|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", "<<", "<"),
):
    _StrictLoader.add_implicit_resolver(
        _TAG + _kind, re.compile(rf"^(?:{_pattern})$"), list(_starts)
    )


def read_yaml(text: str) -> Any:
    """What a YAML text holds.

    Raises:
        DuplicateKeyError: if a key stands twice in one mapping, at any depth.
        yaml.YAMLError: if it is no YAML, or nested deeper than can be read.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)  # derives from SafeLoader
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    # A tag such as !!int says of a text what it is not, or a number has too many digits.
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise yaml.YAMLError(f"a value is not what it is written as: {error}") from None
