"""Which feature a written name means: exact names first, longest match on word boundaries last."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from ehr.catalogue import (
    AGE_AND_SEX,
    AGE_AND_SEX_ALIASES,
    KNOWN_FEATURES,
    OTHER_MEASUREMENTS,
    Feature,
)
from ehr.errors import DataError
from ehr.spelling import corrected

_SEPARATOR = re.compile(r"[,;\n\r]")
_LIST_MARK = re.compile(r"^\s*(?:[-*\u2022]+|\d{1,2}[.)])\s+")
_BRACKETS = re.compile(r"[(\[{]([^()\[\]{}]*)(?:[)\]}]|$)")
_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_][^\W_]*")
_PIECE = re.compile(r"\d+(?:\.\d+)?|[^\W\d_][^\W_]*|[%#+]")
_NUMBER = re.compile(r"\d+(?:\.\d+)?$")

_SYMBOLS = {
    "%": " percent ",
    "#": " count ",
    "+": " plus ",
    "\u03b1": " alpha ",
    "\u03b2": " beta ",
    "\u03b3": " gamma ",
    "\u03bc": "u",
}
_PERCENT = "percent"
_SPELLINGS = {"percentage": _PERCENT}

# Singular, as `_words` makes them.
_QUALIFIERS = frozenset(
    (
        *("high", "higher", "low", "lower", "normal", "abnormal", "borderline", "positive"),
        *("elevated", "elevation", "raised", "rising", "increase", "increased", "increasing"),
        *("decline", "decreased", "decreasing", "dropping", "falling", "lowered", "reduced"),
        *("reduction", "mild", "mildly", "moderate", "moderately", "severe", "severely", "slight"),
        *("slightly", "significant", "significantly", "critical", "critically", "very", "poor"),
        *("acute", "persistent", "persistently", "stable", "unstable", "worsening", "initial"),
        *("initially", "last", "latest", "recent", "level", "value", "range", "reading", "result"),
        *("status", "trend", "change", "is", "was", "has", "of", "in", "at", "on", "to", "from"),
        *("and", "above", "below", "over", "under", "around", "within", "plus"),
        *("max", "maximum", "min", "minimum", "peak", "admission", "baseline", "patient"),
    )
)
# Beside those of the catalogue.
_MORE_UNITS = (
    *("second", "sec", "year", "yr", "y", "cmh2o", "breath", "degree", "celsius", "fahrenheit"),
    *("f", "k", "kpa", "torr", "cm", "kg", "lb", "mcg", "mcl", "ul", "meq", "mu", "iu", "ng"),
    *("nmol", "pg", "rpm", "unit", "x10"),
)
_CELLS_PER_LITRE = (("x10", "9", "l"), ("10", "9", "l"))

# Beside a feature's name these words make it another quantity, or the name of a treatment.
_OTHER_QUANTITY = frozenset(
    (
        *("ratio", "variability", "clearance", "transfusion", "urine", "urinary", "csf", "gastric"),
        *("pleural", "ascite", "stool", "sputum", "cd4", "cd8", "cd3"),
    )
)

# Inside brackets these words tell features apart, so that their brackets are part of the name.
_TELLING = frozenset(
    (
        *("absolute", "alpha", "beta", "concentration", "conjugated", "unconjugated", "corrected"),
        *("count", "direct", "indirect", "fraction", "ionized", "percent", "sd", "total"),
    )
)


# Two letters with a small one among them that mean one thing in a sentence.
_SHORT_NAMES = frozenset(("pH", "Hb"))


def split_names(text: str) -> list[str]:
    """Names of a written list: parted at commas, semicolons and line ends, duplicates kept.

    List marks ("1.", "-") leave; a part without any letter is no name.
    """
    parts = (_LIST_MARK.sub("", part).strip(" \t.\"'`*") for part in _SEPARATOR.split(text))
    return [part for part in parts if any(character.isalpha() for character in part)]


def spelling(name: str) -> tuple[str, ...]:
    """A name's words in one spelling: names that differ in case, plural or marks are equal."""
    return _words(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mention:
    """One place in a text that names a feature."""

    name: str
    """Canonical."""
    start: int
    end: int
    """Characters [start, end) of the text."""


class FeatureMatcher:
    """Finds the canonical feature behind a written name, for the features of one cohort."""

    def __init__(self, features: Sequence[Feature]) -> None:
        """Prepares the matcher.

        Args:
            features: of the cohort; `Age & Sex` need not be among them.

        Raises:
            DataError: if two features share a spelling.
        """
        self._names: dict[tuple[str, ...], str] = {}
        for alias in (AGE_AND_SEX, *AGE_AND_SEX_ALIASES):
            self._add(alias, AGE_AND_SEX)
        for feature in features:
            for alias in (feature.name, *feature.aliases):
                self._add(alias, feature.name)
        # Names that other cohorts know guard their parts: where only "hemoglobin" is a feature,
        # "mean corpuscular hemoglobin" is not it.
        self._phrases = _known_phrases() | set(self._names)
        self._longest = max(len(phrase) for phrase in self._phrases)
        # Other features' words too: they are no slips of this cohort's.
        self._vocabulary = {word for phrase in self._phrases for word in phrase}

    def match(self, text: str) -> str | None:
        """Canonical name of the one feature a text names, or None if it names none.

        In this order: the whole text; the text without its brackets; without trailing values,
        units and qualifiers; the longest name inside it on word boundaries; all of these again
        with the slips of long words mended. A bare word that several features share ("bilirubin",
        "lymphocytes") names none of them.
        """
        whole, outside = _words(text), _words(_without_brackets(text))
        inside = [_words(content) for content in _BRACKETS.findall(text)]
        readings = [whole, outside, *inside]
        if (name := self._match_words(*readings)) is not None:
            return name
        mended = [tuple(corrected(w, self._vocabulary) for w in words) for words in readings]
        return self._match_words(*mended) if mended != readings else None

    def canonical_set(self, names: Sequence[str]) -> frozenset[str]:
        """Set C of Eq. 6: canonical names, and unknown ones as casefolded members of their own."""
        written = [name for name in names if name.strip()]
        return frozenset(self.match(name) or " ".join(name.casefold().split()) for name in written)

    def mentions(self, text: str) -> list[Mention]:
        """Where a sentence names features, in order and without overlap.

        More careful than `match`, which reads a list of names: no spelling is mended, names of two
        letters count in capitals only, and a word beside a name that makes it another quantity
        ("urine", "ratio") rules it out.
        """
        words, places = _placed_words(text)
        found: list[Mention] = []
        for start, end in sorted(self._spans(words), key=lambda span: (span[0], -span[1])):
            first, last = places[start][0], places[end - 1][1]
            beside = (*words[max(0, start - 1) : start], *words[end : end + 1])
            is_other = _OTHER_QUANTITY.intersection(beside)
            is_word = len(text[first:last]) == 2 and text[first:last] not in _SHORT_NAMES
            is_unclear = is_word and not text[first:last].isupper()
            if not (is_other or is_unclear or (found and first < found[-1].end)):
                found.append(Mention(name=self._names[words[start:end]], start=first, end=last))
        return found

    def _add(self, alias: str, name: str) -> None:
        words = _words(alias)
        taken = self._names.setdefault(words, name)
        if taken != name:
            raise DataError(
                f"features {taken!r} and {name!r} share the spelling {alias!r}: every name and "
                "alias must mean one feature. Remove the alias from one of them."
            )

    def _match_words(
        self, whole: tuple[str, ...], outside: tuple[str, ...], *inside: tuple[str, ...]
    ) -> str | None:
        if whole in self._phrases:
            return self._names.get(whole)
        # "LDH (high)" is settled outside its brackets, "[pH 7.1]" and "tachypnea (RR 32)" inside.
        readings = (
            *(self._trimmed_match(words) for words in (outside, whole)),
            *(self._longest_match(words) for words in (outside, whole)),
            *(self._trimmed_match(words) for words in inside),
        )
        return next((name for name in readings if name is not None), None)

    def _trimmed_match(self, words: tuple[str, ...]) -> str | None:
        tail: tuple[str, ...] = ()
        while words:
            if words in self._names:
                return self._names[words]
            # "lymphocytes 0.6 x10^9/L" says in its unit which of two features is meant.
            if _counts_cells(tail) and (*words, "count") in self._names:
                return self._names[(*words, "count")]
            *before, last = words
            is_percentage = last == _PERCENT and bool(before and _NUMBER.match(before[-1]))
            # So does "lymphocytes 11 %".
            if is_percentage and (*before[:-1], _PERCENT) in self._names:
                return self._names[(*before[:-1], _PERCENT)]
            if not (is_percentage or _is_trailing(last)):
                return None
            words, tail = tuple(before), (last, *tail)
        return None

    def _longest_match(self, words: tuple[str, ...]) -> str | None:
        found = [span for span in self._spans(words) if not _needs_to_stand_alone(words, span)]
        if not found:
            return None
        # Longest in letters; of equals the first.
        start, end = max(found, key=lambda span: len(" ".join(words[slice(*span)])))
        if _OTHER_QUANTITY.intersection((*words[:start], *words[end:])):
            return None
        return self._names[words[start:end]]

    def _spans(self, words: tuple[str, ...]) -> list[tuple[int, int]]:
        """Where this cohort's names stand, those inside a longer name of anything left out."""
        spans = [
            (start, end)
            for start in range(len(words))
            for end in range(start + 1, min(len(words), start + self._longest) + 1)
            if words[start:end] in self._phrases
        ]
        return [
            span
            for span in spans
            if words[slice(*span)] in self._names and not any(_inside(span, o) for o in spans)
        ]


@cache
def _known_phrases() -> frozenset[tuple[str, ...]]:
    """Names of the features of all cohorts, and of other measurements that contain one."""
    names = {name for feature in KNOWN_FEATURES for name in (feature.name, *feature.aliases)}
    return frozenset(_words(name) for name in names | set(OTHER_MEASUREMENTS))


def _words(text: str) -> tuple[str, ...]:
    """Words of a name in one spelling: lower case, singular, symbols written out, no repeats."""
    # Twice, because casefolding can undo the normal form.
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    for symbol, word in _SYMBOLS.items():
        plain = plain.replace(symbol, word)
    words: list[str] = []
    for word in _WORD.findall(plain):
        spelled = _SPELLINGS.get(word, _singular(word.replace("haem", "hem")))
        # "basophil count(#)" says "count" twice.
        if not words or words[-1] != spelled or _NUMBER.match(spelled):
            words.append(spelled)
    return tuple(words)


def _placed_words(text: str) -> tuple[tuple[str, ...], list[tuple[int, int]]]:
    """Words of a text as `_words` makes them, and the characters [start, end) behind each."""
    words: list[str] = []
    places: list[tuple[int, int]] = []
    for piece in _PIECE.finditer(text):
        for word in _words(piece.group()):
            if words and words[-1] == word and not _NUMBER.match(word):
                places[-1] = (places[-1][0], piece.end())
            else:
                words.append(word)
                places.append(piece.span())
    return tuple(words), places


def _singular(word: str) -> str:
    if word.endswith("ies"):
        return word[:-3] + "y"
    # Not "gas", "loss", "status", "analysis".
    is_plural = re.fullmatch(r"\w{2,}[^sui]s", word)
    return word[:-1] if is_plural else word


def _without_brackets(text: str) -> str:
    def keep_telling(match: re.Match[str]) -> str:
        content = match.group(1)
        return f" {content} " if _TELLING.intersection(_words(content)) else " "

    return _BRACKETS.sub(keep_telling, text)


_UNITS = frozenset(
    word
    for unit in (*(feature.unit for feature in KNOWN_FEATURES), *_MORE_UNITS)
    for word in _words(unit)
) - {_PERCENT}


def _is_trailing(word: str) -> bool:
    return bool(_NUMBER.match(word)) or word in _UNITS or word in _QUALIFIERS


def _counts_cells(words: tuple[str, ...]) -> bool:
    return any(words[start : start + 3] in _CELLS_PER_LITRE for start in range(len(words)))


def _needs_to_stand_alone(words: tuple[str, ...], span: tuple[int, int]) -> bool:
    """Whether a name of two letters stands among other words, where it may mean something else.

    "PT" is a patient, too, and "HT" hypertension; `pH` has no second meaning.
    """
    name = words[slice(*span)]
    others = (*words[: span[0]], *words[span[1] :])
    is_short = len(name) == 1 and len(name[0]) <= 2 and name[0] != "ph"
    return is_short and not all(_is_trailing(word) for word in others)


def _inside(span: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether a span lies within a longer one."""
    return span != other and other[0] <= span[0] and span[1] <= other[1]
