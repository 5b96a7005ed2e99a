"""A written list taken apart: the names in it, and what joins several names in one item."""

import itertools
import re
from collections.abc import Iterator

from ehr.catalogue.name_words import belongs_to_name
from ehr.catalogue.spelling import words_of

_ITEM = re.compile(r"[^,;\n\r]+")
_LIST_MARK = re.compile(r"\s*(?:[-*\u2022]+|\(?\d{1,2}[.)])\s+")
_FIRST_MARK = re.compile(r"\s*\(?1[.)]\s")
_AROUND = " \t.\"'`*"
_QUOTED = re.compile(r"\s*[\"'`*]")
AND = re.compile(
    r"(\s(?:and/or|and|or|plus|as\s+well\s+as|along\s+with|together\s+with|but(?:\s+also)?)\s"
    r"|&|\s\+\s)",
    re.I,
)
"""Joins the names of one item."""
WITH = re.compile(
    r"(\s(?:also|moreover|furthermore|then|with|besides|alongside|in\s+addition\s+to"
    r"|in\s+(?:combination|conjunction)\s+with|(?:then\s+)?(?:followed|accompanied)\s+by)\s|[|\u2022])",
    re.I,
)
"""Joins names that stand between two of `AND`, and begins a clause elsewhere."""
# "pt with low pH" is about a patient, "HT with ..." about hypertension.
_SUFFERERS = frozenset(("pt", "ht"))


def split_names(text: str) -> list[str]:
    """Names of a written list: parted at commas, semicolons and line ends, duplicates kept.

    So are items numbered in one line ("1. pH 2. Glucose"). List marks ("1.", "-") leave; a part
    without any letter is no name. A part behind a comma that says only which kind or of what is
    meant belongs to the name before it ("calcium, ionized", "albumin, urine").
    """
    return [text[start:end] for start, end in name_spans(text)]


def name_spans(text: str) -> list[tuple[int, int]]:
    """Where the names of `split_names` stand in the list: characters [start, end)."""
    spans: list[tuple[int, int]] = []
    for first, end in _items(text):
        mark = _LIST_MARK.match(text, first, end)
        start = mark.end() if mark else first
        start += len(text[start:end]) - len(text[start:end].lstrip(_AROUND))
        stop = start + len(text[start:end].rstrip(_AROUND))
        if not any(character.isalpha() for character in text[start:stop]):
            continue
        is_own = mark is not None or not spans or _QUOTED.match(text, first, end) is not None
        if not is_own and _explains(text, spans[-1], (first, stop)):
            spans[-1] = (spans[-1][0], stop)
        else:
            spans.append((start, stop))
    return spans


def comma_parts(text: str) -> tuple[list[str], str]:
    """The parts at the commas before the first bracket, and what begins with that bracket."""
    bracket = re.search(r"[(\[{]", text)
    end = bracket.start() if bracket else len(text)
    return text[:end].split(","), text[end:]


def joined_parts(text: str, joints: re.Pattern[str]) -> list[tuple[str, str]]:
    """Parts of a text at its joints, each behind its own.

    The first has no joint, and is the only one where the text is no list.
    """
    first, *pieces = joints.split(text)
    parts = [("", first), *zip(pieces[::2], pieces[1::2], strict=True)]
    for (_, before), (joint, _) in itertools.pairwise(parts):
        if joint.casefold().strip() == "with" and _SUFFERERS.intersection(words_of(before)[-1:]):
            return [("", text)]
    return parts


def _items(text: str) -> Iterator[tuple[int, int]]:
    """Parts between separators, and of each the items that are numbered from 1 in one line."""
    for part in _ITEM.finditer(text):
        start, end = part.span()
        if _FIRST_MARK.match(text, start, end):
            for number in itertools.count(2):
                mark = re.compile(rf"\s\(?{number}[.)]\s+(?=[^\W\d])").search(text, start, end)
                if mark is None:
                    break
                yield start, mark.start()
                start = mark.start()
        yield start, end


def _explains(text: str, name: tuple[int, int], part: tuple[int, int]) -> bool:
    """Whether a part behind a comma, in the same line, belongs to the name before it."""
    gap = text[name[1] : part[0]]
    is_same_line = gap.rstrip().endswith(",") and not re.search(r"[;\n\r]", gap)
    return is_same_line and belongs_to_name(
        words_of(text[slice(*part)]), words_of(text[slice(*name)])
    )
