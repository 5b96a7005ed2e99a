"""Which feature a written name means: exact names first, longest match on word boundaries last."""

import re
import unicodedata
from collections.abc import Sequence

from ehr.catalogue import AGE_AND_SEX, AGE_AND_SEX_ALIASES, KNOWN_FEATURES, Feature
from ehr.errors import DataError

_SEPARATOR = re.compile(r"[,;\n\r]")
_LIST_MARK = re.compile(r"^\s*(?:[-*\u2022]+|\d{1,2}[.)])\s+")
_BRACKETS = re.compile(r"[(\[{]([^()\[\]{}]*)(?:[)\]}]|$)")
_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_][^\W_]*")
_NUMBER = re.compile(r"\d+(?:\.\d+)?$")

_SYMBOLS = {
    "%": " percent ",
    "#": " count ",
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
        *("and", "above", "below", "over", "under", "around", "within"),
    )
)
# Beside those of the catalogue.
_MORE_UNITS = (
    *("second", "sec", "year", "yr", "y", "cmh2o", "breath", "degree", "celsius", "fahrenheit"),
    *("f", "k", "kpa", "torr", "cm", "kg", "lb", "mcg", "mcl", "ul", "meq", "mu", "iu", "ng"),
    *("nmol", "pg", "rpm", "unit"),
)

# Inside brackets these words tell features apart, so that their brackets are part of the name.
_TELLING = frozenset(
    (
        *("absolute", "alpha", "beta", "concentration", "conjugated", "unconjugated", "corrected"),
        *("count", "direct", "indirect", "fraction", "ionized", "percent", "sd", "total"),
    )
)


def split_names(text: str) -> list[str]:
    """Names of a written list: parted at commas, semicolons and line ends, duplicates kept.

    List marks ("1.", "-") leave; a part without any letter is no name.
    """
    parts = (_LIST_MARK.sub("", part).strip(" \t.\"'`*") for part in _SEPARATOR.split(text))
    return [part for part in parts if any(character.isalpha() for character in part)]


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
        self._phrases = {
            _words(alias)
            for feature in KNOWN_FEATURES
            for alias in (feature.name, *feature.aliases)
        } | set(self._names)
        self._longest = max(len(phrase) for phrase in self._phrases)

    def match(self, text: str) -> str | None:
        """Canonical name of the one feature a text names, or None if it names none.

        In this order: the whole text; the text without its brackets; without trailing values,
        units and qualifiers; the longest name inside it on word boundaries. A bare word that
        several features share ("bilirubin", "lymphocytes") names none of them.
        """
        whole = _words(text)
        if whole in self._names:
            return self._names[whole]
        outside = _words(_without_brackets(text))
        # "LDH (high)" is settled outside its brackets, "[pH 7.1]" has nothing there.
        for words in (outside, whole):
            if (name := self._trimmed_match(words)) is not None:
                return name
        for words in (outside, whole):
            if (name := self._longest_match(words)) is not None:
                return name
        return None

    def canonical_set(self, names: Sequence[str]) -> frozenset[str]:
        """Set C of Eq. 6: canonical names, and unknown ones as casefolded members of their own."""
        written = [name for name in names if name.strip()]
        return frozenset(self.match(name) or " ".join(name.casefold().split()) for name in written)

    def _add(self, alias: str, name: str) -> None:
        words = _words(alias)
        taken = self._names.setdefault(words, name)
        if taken != name:
            raise DataError(
                f"features {taken!r} and {name!r} share the spelling {alias!r}: every name and "
                "alias must mean one feature. Remove the alias from one of them."
            )

    def _trimmed_match(self, words: tuple[str, ...]) -> str | None:
        while words:
            if words in self._names:
                return self._names[words]
            *before, last = words
            is_percentage = last == _PERCENT and bool(before and _NUMBER.match(before[-1]))
            # "lymphocytes 11 %" says in its unit which of two features is meant.
            if is_percentage and (*before[:-1], _PERCENT) in self._names:
                return self._names[(*before[:-1], _PERCENT)]
            if not (is_percentage or _is_trailing(last)):
                return None
            words = tuple(before)
        return None

    def _longest_match(self, words: tuple[str, ...]) -> str | None:
        spans = [
            (start, end)
            for start in range(len(words))
            for end in range(start + 1, min(len(words), start + self._longest) + 1)
            if words[start:end] in self._phrases
        ]
        candidates = [
            span
            for span in spans
            if words[slice(*span)] in self._names and not any(_inside(span, o) for o in spans)
        ]
        if not candidates:
            return None
        # Longest in letters; of equals the first.
        start, end = max(candidates, key=lambda span: len(" ".join(words[slice(*span)])))
        return self._names[words[start:end]]


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


def _singular(word: str) -> str:
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


def _inside(span: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether a span lies within a longer one."""
    return span != other and other[0] <= span[0] and span[1] <= other[1]
