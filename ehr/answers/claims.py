"""What a text claims about a patient's features, where that can be read without a guess.

Four kinds of claim are read, each tied to a feature that the text names: values ("pH of 7.21"), a
change ("heart rate rose from 88 to 120"), a trend ("lactate is falling") and a level ("sodium is
low"). What is negated, conditional, a question, about several features at once, or about part of
the stay only is no claim here: a claim that is read wrongly would blame the writer.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from ehr.catalogue import AGE_AND_SEX
from ehr.catalogue.names import FeatureMatcher, Mention


class Direction(StrEnum):
    """Where a feature is said to go."""

    UP = "up"
    """It rises."""
    DOWN = "down"
    """It falls."""
    STABLE = "stable"
    """It stays."""


class Level(StrEnum):
    """Where a feature is said to lie, seen from its reference range."""

    HIGH = "high"
    """Above it."""
    LOW = "low"
    """Below it."""
    NORMAL = "normal"
    """Inside, bounds included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One statement about one feature; at least one of the optional fields is set."""

    feature: str
    """Canonical name."""
    text: str
    """The words that make the claim."""
    start: int
    end: int
    """Characters [start, end) of the whole text."""
    numbers: tuple[str, ...] = ()
    """As written. All must have been recorded; in this order where `is_sequence`."""
    is_sequence: bool = False
    has_percent_sign: bool = False
    """A percent sign follows the last number."""
    direction: Direction | None = None
    """With two numbers in sequence their direction, otherwise that since the first value."""
    level: Level | None = None
    is_latest: bool = False
    """The level is that of the last recorded value ("is"), otherwise of any ("was", "low pH")."""


NUMBER = r"(?<![\w.,/\u2212-])(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?![\w.]*\d)"
"""A number as prose writes it, with or without thousands separators; no part of a date or code."""

_NOT_A_VALUE = (
    r"(?!\s*(?:[-\u2013/]|to\b)\s*\d|\s*(?:times|fold|visits?|days?|hours?|h|weeks?|months?|"
    r"points?\s+(?:lower|higher|below|above)|percentage|standard\s+deviations?)\b|"
    r"(?:st|nd|rd|th)\b)"
)
_VALUE = rf"{NUMBER}{_NOT_A_VALUE}"
_UNIT = r"(?:\s*(?!(?:to|and)\b)[^\s\d,;:()]+){0,2}"
_ARROW = r"\s*(?:->|=>|\u2192|\u2013>)\s*"

_RISE = (
    r"ris(?:e|es|ing|en)|rose|increas(?:e|es|ed|ing)|climb(?:s|ed|ing)?|grew|grow(?:s|ing|n)|upward"
)
_FALL = (
    r"fall(?:s|ing|en)?|fell|drop(?:s|ped|ping)?|decreas(?:e|es|ed|ing)|declin(?:e|es|ed|ing)|"
    r"reduction|downward|dip(?:s|ped)?"
)
_STAY = r"stable|unchanged|constant"
_UP, _DOWN, _STABLE = (re.compile(rf"\b(?:{w})\b", re.I) for w in (_RISE, _FALL, _STAY))
# "increases the risk" has a subject and no trend; "is increased" may mean a level or a trend.
_TREND_VERB = (
    r"ris(?:ing|en)|rose|increas(?:ed|ing)|climb(?:ed|ing)|grew|growing|"
    r"fall(?:ing|en)|fell|dropp(?:ed|ing)|decreas(?:ed|ing)|declin(?:ed|ing)|"
    rf"(?:up|down)wards?|{_STAY}"
)
_TREND_NOUN = r"increase|rise|decrease|decline|drop|fall"

_LEVELS = {
    **dict.fromkeys(("high", "elevated"), Level.HIGH),
    **dict.fromkeys(("low",), Level.LOW),
    **dict.fromkeys(("normal",), Level.NORMAL),
    **dict.fromkeys(("above normal", "above the normal range"), Level.HIGH),
    **dict.fromkeys(("below normal", "below the normal range"), Level.LOW),
    **dict.fromkeys(("within normal limits", "within the normal range"), Level.NORMAL),
    **dict.fromkeys(("within normal range", "in the normal range"), Level.NORMAL),
}
_LEVEL_WORD = "|".join(sorted(_LEVELS, key=len, reverse=True))

# "HCO3-" and "basophil(%)" end behind their last word.
_FILL = r"[)+-]{0,2}(?:\s+(?:levels?|values?|readings?|measurements?|counts?))?"
_DEGREE = (
    r"(?:very|slightly|mildly|moderately|markedly|significantly|severely|extremely|quite|"
    r"consistently|persistently|steadily|gradually|slowly|sharply|progressively|relatively|"
    r"fairly|generally|overall|clearly|also|still|now|currently|been|a|an|clear|steady|notable|"
    r"gradual|slight|marked|significant|sharp|consistent|abnormally|dangerously|critically)"
)
_COPULA = r"(?:is|are|was|were|remains?|remained|appears?|stays?|stayed)"

_CHANGE = re.compile(
    rf"^{_FILL}(?P<between>[^\d.;:]{{0,80}}?)\bfrom\s+(?P<first>{NUMBER}){_UNIT}\s+to\s+"
    rf"(?P<last>{_VALUE})",
    re.I,
)
_ARROWS = re.compile(
    rf"^{_FILL}\s*(?:{_COPULA}|of|went|:|=)?\s*\[?(?P<list>{NUMBER}(?:{_ARROW}{NUMBER})+)", re.I
)
_MOVED_TO = re.compile(
    rf"^{_FILL}\s+(?:{_DEGREE}\s+|has\s+|have\s+|had\s+)*(?P<between>{_TREND_VERB})\s+"
    rf"(?:{_DEGREE}\s+|at\s+|back\s+)*(?:to|at)\s+(?P<last>{_VALUE})",
    re.I,
)
_VALUES = re.compile(
    rf"^{_FILL}\s*(?:(?:{_COPULA}|of|at|being|measured|reads?|equals?|=|:)\s*"
    rf"(?:(?:at|now|currently|only|also|recorded|measured|as)\s+)*\[?|[(\[]\s*)?"
    rf"(?P<list>{_VALUE}(?:\s*,\s*{_VALUE})*(?:,?\s+and\s+{_VALUE}(?!\s+(?:is|was)\b))?)",
    re.I,
)
_TREND = re.compile(
    rf"^{_FILL}(?:(?:\s+(?:has|have|had|shows?|showed|{_COPULA}|{_DEGREE}))*?"
    rf"(?P<verb>\s+(?:trending\s+)?(?:{_TREND_VERB}))|"
    rf"(?:\s+(?:shows?|showed|has|had))(?:\s+{_DEGREE})*(?P<noun>\s+(?:{_TREND_NOUN})))"
    r"(?=\s*(?:$|[.,;:)]|by\b|over\b|across\b|throughout\b|during\b|and\b|trend))",
    re.I,
)
_AMBIGUOUS_TREND = re.compile(rf"\b{_COPULA}\s+(?:{_DEGREE}\s+)*(?:increased|decreased)\b", re.I)
_LEVEL = re.compile(
    rf"^{_FILL}\s+(?P<copula>{_COPULA})\s+(?:{_DEGREE}\s+)*(?P<level>{_LEVEL_WORD})\b"
    r"(?=\s*(?:$|[.,;:()\[]|at\s+\d|and\b|or\s+\w+ing\b|indicating\b|suggesting\b|throughout\b))",
    re.I,
)
_LEVEL_BEFORE = re.compile(
    # "a normal heart rate" may be anybody's.
    r"(?<![\w-])(?P<level>high|elevated|low|(?<!\ba )(?<!\bthe )normal)"
    r"(?:\s+(?:levels?|values?)\s+of)?\s+$",
    re.I,
)
_TREND_BEFORE = re.compile(
    r"(?<![\w-])(?P<word>rising|increasing|climbing|falling|decreasing|declining|dropping|stable)\s+$",
    re.I,
)
_MOVE_BEFORE = re.compile(
    rf"(?P<word>{_TREND_NOUN}|reduction|increasing|decreasing|rising|falling|stable)\s+"
    r"(?:(?:in|of)\s+)?(?:(?:the|her|his|their|patient's)\s+)*$",
    re.I,
)
_AGE_WRITTEN = re.compile(rf"(?P<age>{NUMBER})[- ]years?[- ]old\b", re.I)

_CLAUSE_END = re.compile(
    r"(?<=[.!?;])\s+|\n+|,?\s+(?:but|while|whereas|although|though|however|which|suggesting|"
    r"indicating|because|since)\s+",
    re.I,
)
# Not stated as a fact, or about something else than the record as a whole.
_UNCLEAR = re.compile(
    r"\b(?:not?|never|without|nor|neither|cannot|if|unless|whether|may|might|could|would|should|"
    r"can|target|goal|typical(?:ly)?|usual(?:ly)?|expected|threshold|cut-?off|reference|"
    r"respectively|unlikely|about|approximately|around|nearly|almost)\b|n't\b|\?",
    re.I,
)
_PART_OF_STAY = re.compile(
    r"\b(?:initial(?:ly)?|first|then|before|later|after|until|between|visits?|day|days|hours?|"
    r"subsequent(?:ly)?|followed|early|fluctuat\w*|vari(?:es|ed|able)|recently|temporarily)\b",
    re.I,
)
_ALSO_ABOUT = re.compile(r"^[\s,&/]*(?:(?:and|or|as well as)\b)?[\s,]*(?:(?:the|a|an)\s+)?$", re.I)


def read_claims(text: str, matcher: FeatureMatcher) -> list[Claim]:
    """Claims of a text in order; sentences that end with a question mark make none.

    Args:
        text: prose without tags.
        matcher: of the cohort whose features the text is about.
    """
    return [
        claim
        for start, end in _clauses(text)
        if not _UNCLEAR.search(text, start, end)
        for claim in _clause_claims(text, start, end, matcher)
    ]


def _clauses(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for separator in _CLAUSE_END.finditer(text):
        yield start, separator.start()
        start = separator.end()
    yield start, len(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A mention and its surroundings up to the neighbouring mentions, as characters of a text."""

    feature: str
    text: str
    begin: int
    start: int
    end: int
    stop: int
    is_partial: bool
    """The clause speaks about part of the stay."""

    @property
    def before(self) -> str:
        return self.text[self.begin : self.start]

    @property
    def after(self) -> str:
        return self.text[self.end : self.stop]

    def claim(
        self,
        match: re.Match[str],
        *,
        numbers: tuple[str, ...] = (),
        is_sequence: bool = False,
        direction: Direction | None = None,
        level: Level | None = None,
        is_latest: bool = False,
    ) -> Claim:
        """A claim from a match in `before` or `after`."""
        is_before = match.string == self.before and match.end() == len(self.before)
        start = self.begin + match.start() if is_before else self.start
        end = self.end if is_before else self.end + match.end()
        following = self.text[end : self.stop].lstrip()
        return Claim(
            feature=self.feature,
            text=self.text[start:end].strip(),
            start=start,
            end=end,
            numbers=numbers,
            is_sequence=is_sequence,
            has_percent_sign=bool(numbers) and following.startswith(("%", "percent")),
            direction=direction,
            level=level,
            is_latest=is_latest,
        )


def _clause_claims(text: str, start: int, end: int, matcher: FeatureMatcher) -> Iterator[Claim]:
    clause = text[start:end]
    for match in _AGE_WRITTEN.finditer(clause):
        span = (start + match.start(), start + match.end())
        yield Claim(
            feature=AGE_AND_SEX, text=match.group(), start=span[0], end=span[1], numbers=(match[1],)
        )
    mentions = _without_abbreviations(clause, matcher.mentions(clause))
    for index, mention in enumerate(mentions):
        if _shares_statement(clause, mentions, index):
            continue
        place = _Place(
            feature=mention.name,
            text=text,
            begin=start + (mentions[index - 1].end if index else 0),
            start=start + mention.start,
            end=start + mention.end,
            stop=start + mentions[index + 1].start if index + 1 < len(mentions) else end,
            is_partial=_PART_OF_STAY.search(clause) is not None,
        )
        yield from _claims_at(place)


def _claims_at(place: _Place) -> Iterator[Claim]:
    number = _change(place) or _sequence(place) or _moved_to(place) or _values(place)
    if place.feature == AGE_AND_SEX:
        is_age = place.text[place.start : place.end].casefold() == "age"
        if number is not None and number.direction is None and is_age:
            yield number
        return
    if number is not None:
        yield number
    has_direction = number is not None and number.direction is not None
    trend = None if has_direction or place.is_partial else _trend(place)
    if trend is not None:
        yield trend
    yield from _levels(place)


def _change(place: _Place) -> Claim | None:
    """From A to B, with or without a direction."""
    match = _CHANGE.search(place.after)
    if match is None:
        return None
    noun = _MOVE_BEFORE.search(place.before)
    words = match["between"] + " " + (noun["word"] if noun else "")
    if re.search(r"\brang(?:es?|ed|ing)\b|\bexcept\b", words, re.I):
        return None
    directions = [_UP.search(words), _DOWN.search(words)]
    if all(directions):
        return None
    return place.claim(
        match,
        numbers=(match["first"], match["last"]),
        is_sequence=True,
        direction=_direction(words),
    )


def _sequence(place: _Place) -> Claim | None:
    """A -> B -> C."""
    match = _ARROWS.search(place.after)
    if match is None:
        return None
    numbers = tuple(re.findall(NUMBER, match["list"]))
    return place.claim(match, numbers=numbers, is_sequence=True)


def _moved_to(place: _Place) -> Claim | None:
    """Rose to B."""
    match = _MOVED_TO.search(place.after)
    if match is None:
        return None
    return place.claim(match, numbers=(match["last"],), direction=_direction(match["between"]))


def _values(place: _Place) -> Claim | None:
    """One value, or a list of them."""
    match = _VALUES.search(place.after)
    # "a normal heart rate of 60" speaks of no patient.
    if match is None or re.search(r"\bnormal\s+$", place.before, re.I):
        return None
    return place.claim(match, numbers=tuple(re.findall(NUMBER, match["list"])))


def _trend(place: _Place) -> Claim | None:
    match = _TREND.search(place.after)
    if match is not None and not _AMBIGUOUS_TREND.search(match.group()):
        return place.claim(match, direction=_direction(match["verb"] or match["noun"]))
    before = _TREND_BEFORE.search(place.before)
    return None if before is None else place.claim(before, direction=_direction(before["word"]))


def _levels(place: _Place) -> Iterator[Claim]:
    match = _LEVEL.search(place.after)
    if match is not None:
        is_latest = match["copula"].lower() in ("is", "are", "remain", "remains")
        level = _LEVELS[" ".join(match["level"].lower().split())]
        yield place.claim(match, level=level, is_latest=is_latest and not place.is_partial)
    before = _LEVEL_BEFORE.search(place.before)
    if before is not None and not re.match(r"\s*(?:range|limits?)\b", place.after, re.I):
        yield place.claim(before, level=_LEVELS[before["level"].lower()])


def _direction(words: str) -> Direction | None:
    for pattern, direction in (
        (_UP, Direction.UP),
        (_DOWN, Direction.DOWN),
        (_STABLE, Direction.STABLE),
    ):
        if pattern.search(words):
            return direction
    return None


def _without_abbreviations(clause: str, mentions: list[Mention]) -> list[Mention]:
    """Mentions with "Heart rate (HR)" as one."""
    kept: list[Mention] = []
    for mention in mentions:
        last = kept[-1] if kept else None
        if (
            last is not None
            and last.name == mention.name
            and re.fullmatch(r"\s*\(\s*", clause[last.end : mention.start])
            and clause[mention.end : mention.end + 1] == ")"
        ):
            kept[-1] = Mention(name=last.name, start=last.start, end=mention.end + 1)
        else:
            kept.append(mention)
    return kept


def _shares_statement(clause: str, mentions: list[Mention], index: int) -> bool:
    """Whether a statement is about this feature and its neighbour at once."""
    gaps = [
        clause[left.end : right.start]
        for left, right in pairwise(mentions)
        if mentions[index] in (left, right)
    ]
    return any(_ALSO_ABOUT.fullmatch(gap) for gap in gaps)
