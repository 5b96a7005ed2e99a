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
from ehr.catalogue.name_denials import (
    NEGATIONS,
    TURNS,
    ends_denied,
    is_denied_from_before,
    takes_back,
)
from ehr.catalogue.name_lists import (
    AND,
    WITH,
    comma_parts,
    joined_parts,
)
from ehr.catalogue.name_text import (
    HYPHENS,
    Reading,
    bracket_contents,
    is_prefix,
    plain,
    without_brackets,
)
from ehr.catalogue.name_words import (
    CHANGING,
    OPENERS,
    OTHER_QUANTITY,
    OTHER_SPECIMEN,
    RELATIONS,
    TELLING,
    is_breath_test,
    is_harmless,
    is_trailing,
)
from ehr.catalogue.spelling import (
    NUMBER,
    PERCENT,
    corrected,
    placed_words,
    words_of,
)
from ehr.errors import DataError

_CELLS_PER_LITRE = (("x10", "9", "l"), ("10", "9", "l"))

# Two letters with a small one among them that mean one thing in a sentence.
_SHORT_NAMES = frozenset(("pH", "Hb"))


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
        # Its value, behind their names: "mechanical ventilation: no".
        self._with_no = frozenset(
            feature.name
            for feature in features
            if any(words_of(word)[:1] == ("no",) for _, word in feature.categories)
        )
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

        A longest name counts only where the words beside it change nothing
        (`ehr.catalogue.name_words`): up to a mark or a word that opens a clause, each must be known
        to be harmless. So "pre-albumin" is not albumin. What a negation stands in front of is not
        named. Two features with a mark or a relation between them ("PaO2/FiO2", "AST > ALT") are
        one quantity, which names neither; nor does a bare word that several features share
        ("bilirubin", "lymphocytes").
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
        return [read for item in self._own_items(text) for read in self._read_item(item)]

    def _own_items(self, text: str) -> list[str]:
        """A text parted at commas before what is a name by itself.

        `split_names` cannot know that: "urine" says of what, where it is no feature.
        """
        if "," not in text or words_of(text) in self._phrases:
            return [text]
        parts, rest = comma_parts(text)
        items = [parts[0]]
        for part in parts[1:]:
            if words_of(part) in self._names:
                items.append(part)
            else:
                items[-1] += "," + part
        items[-1] += rest
        return [item for item in items if item.strip()] if len(items) > 1 else [text]

    def _read_item(self, text: str) -> list[tuple[str | None, str]]:
        in_one_form = plain(text)
        if words_of(in_one_form) in self._phrases:
            return [(self._one(in_one_form), text)]
        joined = self._joined(in_one_form, AND) or self._joined(in_one_form, WITH)
        return joined or [(self._one(in_one_form), text)]

    def _joined(self, text: str, joints: re.Pattern[str]) -> list[tuple[str | None, str]] | None:
        """Parts of "X and Y", if each is a known name, be it of another cohort; otherwise None.

        A part that a negation denies names nothing; nor do those behind it, up to a "but". A value
        or qualifier by itself belongs to the part before it.
        """
        parts = joined_parts(text, joints)
        if len(parts) < 2:
            return None
        tail = words_of(parts[-1][1])
        read: list[tuple[str | None, str]] = []
        is_denied = False
        for joint, part in parts:
            is_denied = is_denied and not joint.casefold().strip().startswith("but")
            words = words_of(part)
            inner = self._joined(part, WITH) if joints is AND and not is_denied else None
            name = None if is_denied or inner else self._one(part) or self._shared_end(words, tail)
            if inner is not None:
                read += inner
            elif name is not None or (words in self._phrases and not is_denied):
                read.append((name, part))
            elif all(map(is_trailing, words)) or (not is_denied and self._is_taken_back(words)):
                continue
            elif not (is_denied or NEGATIONS.intersection(words)):
                return None
            else:
                is_denied = True
        return read if any(name for name, _ in read) else None

    def _is_taken_back(self, words: tuple[str, ...]) -> bool:
        return ends_denied(words) and bool(self._spans(words))

    def _shared_end(self, words: tuple[str, ...], tail: tuple[str, ...]) -> str | None:
        """The name that begins here and ends as the last part: "direct and indirect bilirubin"."""
        ends = (tail[at:end] for at in range(1, len(tail)) for end in range(len(tail), at, -1))
        return next((self._names[words + end] for end in ends if words + end in self._names), None)

    def _one(self, text: str) -> str | None:
        whole, contents = Reading.of(text), bracket_contents(text)
        outside = Reading.of(without_brackets(text)) if contents else whole
        inside = [words_of(content) for content in contents]
        is_part = any(
            words not in self._phrases and is_prefix(content)
            for words, content in zip(inside, contents, strict=True)
        )
        if is_part or is_breath_test(outside.words):
            return None
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
        self, outside: Reading, whole: Reading, inside: Sequence[tuple[str, ...]]
    ) -> str | None:
        # "hemoglobin (mean corpuscular)" says its first words last.
        for words in (whole.words, *(content + outside.words for content in inside)):
            if words in self._phrases:
                return self._names.get(words)
        told = tuple(itertools.chain.from_iterable(inside))
        if OTHER_SPECIMEN.intersection(told).difference(outside.words) or takes_back(told):
            return None
        # "LDH (high)" is settled outside its brackets, "[pH 7.1]" and "tachypnea (RR 32)" inside.
        readings = (outside,) if whole == outside else (outside, whole)
        found = itertools.chain(
            (self._trimmed_match(reading.words) for reading in readings),
            (self._longest_match(reading) for reading in readings),
            (self._trimmed_match(words) for words in inside if not outside.has_negation),
        )
        name = next((name for name in found if name is not None), None)
        if name not in self._with_no and any(
            map(ends_denied, (outside.words, whole.words, *inside))
        ):
            return None
        is_changed = any(words and CHANGING.issuperset(words) for words in inside)
        return None if name and is_changed and TELLING.isdisjoint(words_of(name)) else name

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

    def _longest_match(self, reading: Reading) -> str | None:
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
        self, reading: Reading, span: tuple[int, int], spans: Sequence[tuple[int, int]]
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


# A word is compared with the whole vocabulary, and answers use the same words again and again.
_corrected = lru_cache(maxsize=2**13)(corrected)


@cache
def _known_phrases() -> frozenset[tuple[str, ...]]:
    """Names of the features of all cohorts, and of other measurements that contain one."""
    names = {name for feature in KNOWN_FEATURES for name in (feature.name, *feature.aliases)}
    return frozenset(words_of(name) for name in names | set(OTHER_MEASUREMENTS))


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
    if is_denied_from_before(before[turns[-1] + 1 if turns else 0 :]):
        return True
    return takes_back(tuple(itertools.takewhile(lambda word: word not in TURNS, behind)))


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
        and text[hyphen : hyphen + 1] in tuple(HYPHENS)
        and hyphen in (places[at][1], places[at][0] - 1)
    ]
    return any(not is_harmless(words, at) and words[at] not in OPENERS for at in tied)
