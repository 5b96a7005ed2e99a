"""Which feature a written name means: exact names first, longest match on word boundaries last."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from ehr.catalogue import (
    AGE_AND_SEX,
    AGE_AND_SEX_ALIASES,
    KNOWN_FEATURES,
    OTHER_MEASUREMENTS,
    Feature,
)
from ehr.errors import DataError
from ehr.name_words import (
    NEGATIONS,
    OPENERS,
    OTHER_QUANTITY,
    OTHER_SPECIMEN,
    RELATIONS,
    TURNS,
    is_harmless,
    is_trailing,
    takes_back,
)
from ehr.spelling import NUMBER, PERCENT, corrected, placed_words, words_of

_SEPARATOR = re.compile(r"[,;\n\r]")
_LIST_MARK = re.compile(r"^\s*(?:[-*\u2022]+|\(?\d{1,2}[.)])\s+")
_FIRST_MARK = re.compile(r"\s*\(?1[.)]\s")
_BRACKETS = re.compile(r"[(\[{]([^()\[\]{}]*)(?:[)\]}]|$)")
# Behind such a mark a name may be explained, in front of one it may be introduced.
_MARK = re.compile(r"[:=<>~|?!()\[\]{}\u2264\u2265\u2192\u2013\u2014]|\.\s|\s-+\s")
_JOINT = re.compile(
    r"(\s(?:and/or|and|or|plus|as\s+well\s+as|along\s+with|together\s+with|but(?:\s+also)?)\s"
    r"|&|\s\+\s)",
    re.I,
)
_NOT_ONLY = re.compile(r"\bnot\s+(?:only|just|merely|simply)\b", re.I)
_RATHER_THAN = re.compile(r"\b(?:(?:rather|other)\s+than|instead\s+of|apart\s+from)\b", re.I)
_CELLS_PER_LITRE = (("x10", "9", "l"), ("10", "9", "l"))

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

    So are items numbered in one line ("1. pH 2. Glucose"). List marks ("1.", "-") leave; a part
    without any letter is no name.
    """
    items = [item for part in _SEPARATOR.split(text) for item in _numbered(part)]
    parts = (_LIST_MARK.sub("", item).strip(" \t.\"'`*") for item in items)
    return [part for part in parts if any(character.isalpha() for character in part)]


def spelling(name: str) -> tuple[str, ...]:
    """A name's words in one spelling: names that differ in case, plural or marks are equal."""
    return words_of(name)


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
        self._vocabulary = frozenset(word for phrase in self._phrases for word in phrase)

    def match(self, text: str) -> str | None:
        """Canonical name of the one feature a text names, or None if it names none or several."""
        known = {name for name, _ in self._read(text) if name is not None}
        return known.pop() if len(known) == 1 else None

    def members(self, written: str) -> tuple[str, ...]:
        """What one item of a list names: canonical names, or itself as a casefolded unknown one.

        In this order: the whole text; its parts at "and", "or", "&" and their like, if every part
        is a known name; the text without its brackets; without trailing values, units and
        qualifiers; the longest name inside it on word boundaries; all of these again with the slips
        of long words mended.

        A longest name counts only where the words beside it change nothing (`ehr.name_words`): up
        to a mark or a word that opens a clause, each must be known to be harmless. So "pre-albumin"
        is not albumin. What a negation stands in front of is not named. Two features with a mark or
        a relation between them ("PaO2/FiO2", "AST > ALT") are one quantity, which names neither;
        nor does a bare word that several features share ("bilirubin", "lymphocytes").
        """
        return tuple(
            dict.fromkeys(
                name or " ".join(part.casefold().split()) for name, part in self._read(written)
            )
        )

    def canonical_set(self, names: Sequence[str]) -> frozenset[str]:
        """Set C of Eq. 6: canonical names, and unknown ones as casefolded members of their own."""
        return frozenset(m for name in names if name.strip() for m in self.members(name))

    def mentions(self, text: str) -> list[Mention]:
        """Where a sentence names features, in order and without overlap.

        More careful than `match`, which reads a list of names: no spelling is mended, names of two
        letters count in capitals only, and a word beside a name that makes it another quantity
        ("urine", "ratio"), or hangs on it by a hyphen ("pre-albumin"), rules it out.
        """
        words, places = placed_words(text)
        found: list[Mention] = []
        for start, end in sorted(self._spans(words), key=lambda span: (span[0], -span[1])):
            first, last = places[start][0], places[end - 1][1]
            beside = (*words[max(0, start - 1) : start], *words[end : end + 1])
            is_other = OTHER_QUANTITY.intersection(beside) or _hangs_on(
                text, words, places, start, end
            )
            is_word = len(text[first:last]) == 2 and text[first:last] not in _SHORT_NAMES
            is_unclear = is_word and not text[first:last].isupper()
            if not (is_other or is_unclear or (found and first < found[-1].end)):
                found.append(Mention(name=self._names[words[start:end]], start=first, end=last))
        return found

    def _add(self, alias: str, name: str) -> None:
        words = words_of(alias)
        taken = self._names.setdefault(words, name)
        if taken != name:
            raise DataError(
                f"features {taken!r} and {name!r} share the spelling {alias!r}: every name and "
                "alias must mean one feature. Remove the alias from one of them."
            )

    def _read(self, text: str) -> list[tuple[str | None, str]]:
        """Names in a text with the part that each was read from; None = unknown."""
        plain = _RATHER_THAN.sub(" without ", _NOT_ONLY.sub(" ", text))
        joined = None if words_of(text) in self._phrases else self._joined(plain)
        return joined or [(self._one(plain), text)]

    def _joined(self, text: str) -> list[tuple[str | None, str]] | None:
        """Parts of "X and Y", if each is a known name, be it of another cohort; otherwise None.

        A part that a negation denies names nothing; nor do those behind it, up to a "but".
        """
        first, *pieces = _JOINT.split(text)
        parts = [("", first), *zip(pieces[::2], pieces[1::2], strict=True)]
        if len(parts) < 2:
            return None
        tail = words_of(parts[-1][1])
        read: list[tuple[str | None, str]] = []
        is_denied = False
        for joint, part in parts:
            is_denied = is_denied and not joint.casefold().strip().startswith("but")
            words = words_of(part)
            name = None if is_denied else self._one(part) or self._shared_end(words, tail)
            if name is not None or (words in self._phrases and not is_denied):
                read.append((name, part))
            elif words and not (is_denied or NEGATIONS.intersection(words)):
                return None
            else:
                is_denied = is_denied or bool(words)
        return read if any(name for name, _ in read) else None

    def _shared_end(self, words: tuple[str, ...], tail: tuple[str, ...]) -> str | None:
        """The name that begins here and ends as the last part: "direct and indirect bilirubin"."""
        ends = (tail[at:end] for at in range(1, len(tail)) for end in range(len(tail), at, -1))
        return next((self._names[words + end] for end in ends if words + end in self._names), None)

    def _one(self, text: str) -> str | None:
        outside, whole = _Reading.of(_without_brackets(text)), _Reading.of(text)
        inside = [words_of(content) for content in _BRACKETS.findall(text)]
        if (name := self._match_readings(outside, whole, inside)) is not None:
            return name
        mend = self._mended
        mended = [mend(words) for words in (outside.words, whole.words, *inside)]
        if mended == [outside.words, whole.words, *inside]:
            return None
        outside, whole = outside.with_words(mended[0]), whole.with_words(mended[1])
        return self._match_readings(outside, whole, mended[2:])

    def _mended(self, words: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_corrected(word, self._vocabulary) for word in words)

    def _match_readings(
        self, outside: "_Reading", whole: "_Reading", inside: Sequence[tuple[str, ...]]
    ) -> str | None:
        # "hemoglobin (mean corpuscular)" says its first words last.
        for words in (whole.words, *(content + outside.words for content in inside)):
            if words in self._phrases:
                return self._names.get(words)
        told = {word for content in inside for word in content}
        if OTHER_SPECIMEN.intersection(told - set(outside.words)) or takes_back(told):
            return None
        # "LDH (high)" is settled outside its brackets, "[pH 7.1]" and "tachypnea (RR 32)" inside.
        found = (
            *(self._trimmed_match(reading.words) for reading in (outside, whole)),
            *(self._longest_match(reading) for reading in (outside, whole)),
            *(self._trimmed_match(words) for words in inside if not outside.has_negation),
        )
        return next((name for name in found if name is not None), None)

    def _trimmed_match(self, words: tuple[str, ...]) -> str | None:
        tail: tuple[str, ...] = ()
        while words:
            if words in self._names:
                return self._names[words]
            # "lymphocytes 0.6 x10^9/L" says in its unit which of two features is meant.
            if _counts_cells(tail) and (*words, "count") in self._names:
                return self._names[(*words, "count")]
            *before, last = words
            is_percentage = last == PERCENT and bool(before and NUMBER.match(before[-1]))
            # So does "lymphocytes 11 %".
            if is_percentage and (*before[:-1], PERCENT) in self._names:
                return self._names[(*before[:-1], PERCENT)]
            if not (is_percentage or is_trailing(last)):
                return None
            words, tail = tuple(before), (last, *tail)
        return None

    def _longest_match(self, reading: "_Reading") -> str | None:
        words = reading.words
        spans = self._spans(words)
        if self._are_related(words) or _one_is_another_quantity(words, spans):
            return None
        found = [
            span
            for span in spans
            if not _needs_to_stand_alone(words, span)
            and not _is_denied(words, span)
            and self._stands_free(reading, span, spans)
        ]
        if not found:
            return None
        # Longest in letters; of equals the first.
        start, end = max(found, key=lambda span: len(" ".join(words[slice(*span)])))
        return self._names[words[start:end]]

    def _stands_free(
        self, reading: "_Reading", span: tuple[int, int], spans: Sequence[tuple[int, int]]
    ) -> bool:
        """Whether nothing beside a name changes what it means."""
        words, (start, end) = reading.words, span
        name = self._names[words[start:end]]
        # The same feature again: "procalcitonin PCT".
        same = {
            at
            for first, last in spans
            if self._names[words[first:last]] == name
            for at in range(first, last)
        }
        # "protein in urine" says where it was, "reduced urine" how much of it.
        is_specimen = OTHER_SPECIMEN.issuperset(words[start:end])
        for at in range(start - 1, -1, -1):
            if at + 1 in reading.behind_marks or words[at] in OPENERS:
                if is_specimen:
                    return False
                break
            if at not in same and not is_harmless(words, at):
                return False
        for at in range(end, len(words)):
            if at in reading.behind_marks or words[at] in OPENERS:
                break
            if at not in same and not is_harmless(words, at):
                return False
        return True

    def _are_related(self, words: tuple[str, ...]) -> bool:
        """Whether two features, of any cohort, stand with nothing but a relation between them."""
        spans = sorted(self._phrase_spans(words))
        named = [words[slice(*span)] for span in spans]
        return any(
            self._names.get(first, first) != self._names.get(second, second)
            and left[1] <= right[0]
            and RELATIONS.issuperset(words[left[1] : right[0]])
            for (left, right), (first, second) in zip(
                itertools.pairwise(spans), itertools.pairwise(named), strict=True
            )
        )

    def _spans(self, words: tuple[str, ...]) -> list[tuple[int, int]]:
        """Where this cohort's names stand, those inside a longer name of anything left out."""
        return [span for span in self._phrase_spans(words) if words[slice(*span)] in self._names]

    def _phrase_spans(self, words: tuple[str, ...]) -> list[tuple[int, int]]:
        """Where names of anything stand, those inside a longer one left out."""
        spans = [
            (start, end)
            for start in range(len(words))
            for end in range(start + 1, min(len(words), start + self._longest) + 1)
            if words[start:end] in self._phrases
        ]
        return [span for span in spans if not any(_inside(span, other) for other in spans)]


@dataclass(frozen=True, slots=True)
class _Reading:
    """Words of a text, and where the marks are that `words_of` leaves out."""

    words: tuple[str, ...]
    behind_marks: frozenset[int]
    """Words with a mark between them and the word before."""

    @classmethod
    def of(cls, text: str) -> "_Reading":
        words, places = placed_words(text)
        gaps = (text[places[at - 1][1] : places[at][0]] for at in range(1, len(places)))
        return cls(words, frozenset(at for at, gap in enumerate(gaps, 1) if _MARK.search(gap)))

    def with_words(self, words: tuple[str, ...]) -> "_Reading":
        return _Reading(words, self.behind_marks)

    @property
    def has_negation(self) -> bool:
        return not NEGATIONS.isdisjoint(self.words)


# A word is compared with the whole vocabulary, and answers use the same words again and again.
_corrected = lru_cache(maxsize=2**13)(corrected)


@cache
def _known_phrases() -> frozenset[tuple[str, ...]]:
    """Names of the features of all cohorts, and of other measurements that contain one."""
    names = {name for feature in KNOWN_FEATURES for name in (feature.name, *feature.aliases)}
    return frozenset(words_of(name) for name in names | set(OTHER_MEASUREMENTS))


def _without_brackets(text: str) -> str:
    def keep_telling(match: re.Match[str]) -> str:
        content = match.group(1)
        return f" {content} " if _TELLING.intersection(words_of(content)) else " "

    return _BRACKETS.sub(keep_telling, text)


def _counts_cells(words: tuple[str, ...]) -> bool:
    return any(words[start : start + 3] in _CELLS_PER_LITRE for start in range(len(words)))


def _needs_to_stand_alone(words: tuple[str, ...], span: tuple[int, int]) -> bool:
    """Whether a name of two letters stands among other words, where it may mean something else.

    "PT" is a patient, too, and "HT" hypertension; `pH` has no second meaning.
    """
    name = words[slice(*span)]
    others = (*words[: span[0]], *words[span[1] :])
    is_short = len(name) == 1 and len(name[0]) <= 2 and name[0] != "ph"
    return is_short and not all(is_trailing(word) for word in others)


def _inside(span: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether a span lies within a longer one."""
    return span != other and other[0] <= span[0] and span[1] <= other[1]


def _one_is_another_quantity(words: tuple[str, ...], spans: Sequence[tuple[int, int]]) -> bool:
    """Whether a word beside a name makes it another specimen's, a ratio or a treatment."""
    return any(OTHER_QUANTITY.intersection(words[:start] + words[end:]) for start, end in spans)


def _is_denied(words: tuple[str, ...], span: tuple[int, int]) -> bool:
    """Whether a negation reaches a name, or one behind it takes it back."""
    before, behind = words[: span[0]], words[span[1] :]
    turns = [at for at, word in enumerate(before) if word in TURNS]
    if NEGATIONS.intersection(before[turns[-1] + 1 if turns else 0 :]):
        return True
    return takes_back(itertools.takewhile(lambda word: word not in TURNS, behind))


def _hangs_on(
    text: str,
    words: tuple[str, ...],
    places: Sequence[tuple[int, int]],
    start: int,
    end: int,
) -> bool:
    """Whether a word that is not harmless is tied to a name by a hyphen, in front or behind."""
    tied = [
        at
        for at, hyphen in ((start - 1, places[start][0] - 1), (end, places[end - 1][1]))
        if 0 <= at < len(words)
        and text[hyphen : hyphen + 1] == "-"
        and hyphen in (places[at][1], places[at][0] - 1)
    ]
    return any(not is_harmless(words, at) and words[at] not in OPENERS for at in tied)


def _numbered(part: str) -> list[str]:
    """Items of a list that is numbered from 1 in one line; the part itself if it is none."""
    if not _FIRST_MARK.match(part):
        return [part]
    items: list[str] = []
    for number in itertools.count(2):
        mark = re.search(rf"\s\(?{number}[.)]\s+(?=[^\W\d])", part)
        if mark is None:
            return [*items, part]
        items.append(part[: mark.start()])
        part = part[mark.start() :]
    return items
