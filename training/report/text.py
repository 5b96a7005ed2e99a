"""Texts and values for reading: tags of a trajectory become labels, what is missing a dash."""

import re
from dataclasses import dataclass

from training.readable import MISSING

_TAG = re.compile(
    r"<\s*(/?)\s*(final\s+subquestion|subquestion|important\s+features|final\s+answer|answer|think)"
    r"\s*(\d*)\s*>",
    re.IGNORECASE,
)
# control characters have no picture, and some readers of HTML stop at them
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


MAX_CHARACTERS = 6_000
"""A report shows this much of one text; the whole of it is in the run folder."""


@dataclass(frozen=True, slots=True)
class TextBlock:
    """What stands between two tags."""

    label: str
    """The tag that opened it, such as "Subquestion 1"; empty outside of tags."""
    text: str


def printable(value: object) -> str:
    """The value as text with a mark where a character has no picture."""
    return _UNPRINTABLE.sub("\ufffd", str(value))


def shown(value: object) -> str:
    """The value as text, or a dash."""
    return MISSING if value is None or value == "" else printable(value)


def untagged(text: object) -> str:
    """The text with its tags as words in front of what they hold, one part a line."""
    return "\n".join(
        f"{block.label}: {block.text}" if block.label else block.text for block in text_blocks(text)
    )


def text_blocks(text: object) -> list[TextBlock]:
    """The parts of a trajectory in the order in which the model wrote them, empty ones left out."""
    whole = printable(text)
    shown = whole[:MAX_CHARACTERS]
    pieces: list[tuple[str, str]] = []
    label, start = "", 0
    for tag in _TAG.finditer(shown):
        name = f"{' '.join(tag.group(2).split()).capitalize()} {tag.group(3)}".strip()
        # what a text starts with may have been opened by words that the caller wrote
        opened = name if tag.group(1) and not pieces else label
        pieces.append((opened, shown[start : tag.start()]))
        label = "" if tag.group(1) else name
        start = tag.end()
    pieces.append((label, shown[start:]))
    if len(whole) > MAX_CHARACTERS:
        pieces.append(("", f"({len(whole) - MAX_CHARACTERS:,} more characters are not shown)"))
    return [TextBlock(name, piece.strip()) for name, piece in pieces if piece.strip()]
