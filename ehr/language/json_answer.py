"""Reads the JSON form of Think-then-Answer as language models really write it.

Code fences, text around the object, trailing commas, missing closing quotes and braces, other
quotation marks and probabilities as words are tolerated. A probability is never guessed: keys that
contradict each other, and whatever `ehr.language.trajectory.parse_probability` refuses, are a
failure.
"""

import json
import re

from ehr.language.trajectory import (
    ParsedTrajectory,
    one_probability,
    parse_think,
    reasoning_of,
)

_ANSWER_KEYS = frozenset({"answer", "final answer", "probability"})
_THINK_KEYS = frozenset({"think", "thinking", "thought", "thoughts", "reasoning"})

_TRAILING_COMMA = re.compile(r",(?=\s*[}\]])")
_QUOTES = "\"'\u201c\u201d\u2018\u2019"
# A key stands behind another entry or at the beginning: the same word inside a sentence does not.
_KEY = re.compile(
    rf"(?:^|[{{\[,;`\n{_QUOTES}])\s{{0,40}}"
    rf"[{_QUOTES}](?P<name>[A-Za-z_ ]{{1,20}})[{_QUOTES}]\s*:\s*"
)
_OPEN_VALUE_END = re.compile(rf",\s*(?:[{_QUOTES}}}\n]|$)|[}}\n`]")
_CLOSING = {"\u201c": "\u201d", "\u2018": "\u2019"}


def parse_think_json(text: str) -> ParsedTrajectory:
    """Probability under the key `answer`, after the reasoning under `think`.

    An answer without such a key is read as the form with tags.
    """
    stated = _values(_after_thinking(text), _ANSWER_KEYS)
    if not stated:
        return parse_think(text)
    probability, failure = one_probability(stated)
    return ParsedTrajectory(probability=probability, failure=failure)


def json_reasoning_of(text: str) -> str:
    """The prose under the key `think`; without such a key that of the form with tags."""
    thoughts = _values(_after_thinking(text), _THINK_KEYS)
    return "\n".join(each.strip() for each in thoughts).strip() or reasoning_of(text)


def _after_thinking(text: str) -> str:
    """What follows the reasoning of models that think in tags before they answer at all."""
    lowered = text.lower()
    close, opening, brace = lowered.rfind("</think>"), lowered.find("<think>"), text.find("{")
    if close >= 0:
        return text[close + len("</think>") :]
    is_thinking = opening >= 0 and (brace < 0 or opening < brace)
    return "" if is_thinking else text


def _values(text: str, names: frozenset[str]) -> list[str]:
    """Texts of the values that the outermost objects have under these keys."""
    text = _TRAILING_COMMA.sub("", text)
    # Numbers stay as written, and a key that is there twice stays there twice.
    decoder = json.JSONDecoder(
        object_pairs_hook=list, parse_float=str, parse_int=str, parse_constant=str, strict=False
    )
    found: list[str] = []
    end, place = 0, text.find("{")
    while place >= 0:
        try:
            pairs, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            break  # never an object inside it: its answer would be another's
        found += [_as_text(value) for key, value in pairs if _plain(key) in names]
        place = text.find("{", end)
    return found + _loose_values(text[end:], names)


def _loose_values(text: str, names: frozenset[str]) -> list[str]:
    """The same of a text that is no valid JSON."""
    return [
        _loose_value(text, key.end()) for key in _KEY.finditer(text) if _plain(key["name"]) in names
    ]


def _loose_value(text: str, start: int) -> str:
    quote = text[start : start + 1]
    if not quote or quote not in _QUOTES:
        end = _OPEN_VALUE_END.search(text, start)
        return text[start : end.start() if end else len(text)]
    close = re.compile(rf"(?<!\\){_CLOSING.get(quote, quote)}").search(text, start + 1)
    inside = text[start + 1 : close.start() if close else len(text)]
    return inside.replace("\\n", "\n").replace('\\"', '"')


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _plain(key: str) -> str:
    return " ".join(key.replace("_", " ").split()).casefold()
