"""A written name before it is looked up: marks and phrases in one form, brackets, words."""

import re
from dataclasses import dataclass

from ehr.catalogue.name_denials import NEGATIONS
from ehr.catalogue.name_lists import comma_parts
from ehr.catalogue.name_words import (
    PREFIXES,
    TELLING,
    belongs_to_name,
    is_trailing,
)
from ehr.catalogue.spelling import placed_words, words_of

HYPHENS = "-\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d"
"""Characters that tie two words where they stand between them without blanks."""

_BRACKETS = re.compile(r"[(\[{]([^()\[\]{}]*)(?:[)\]}]|$)")
# Behind such a mark a name may be explained, in front of one it may be introduced.
_MARK = re.compile(r"[:=<>~|?!()\[\]{}\u2264\u2265\u2192\u2013\u2014]|\.\s|\s-+\s")
_NOT_ONLY = re.compile(r"\bnot\s+(?:only|just|merely|simply)\b", re.I)
_EVERYTHING = (
    r"(?:all|any|every)(?:thing)?(?:\s+(?:of|the|th[eo]se|them|others?|vitals?|signs?|labs?|values?"
    r"|features?|variables?|measurements?|parameters?|tests?|results?|markers?))*"
)
_WITHOUT = re.compile(
    r"\b(?:(?:rather|other)\s+than|(?:instead|exclusive|regardless|irrespective)\s+of"
    r"|(?:apart|aside)\s+from|as\s+opposed\s+to|in\s+(?:place|lieu)\s+of|save\s+for"
    rf"|(?:leaving|setting|putting)\s+(?:out|aside)|{_EVERYTHING}\s+but(?!\s+(?:also|not)\b))\b",
    re.I,
)
_NOT_SIGN = re.compile(
    r"[\u00ac\u2717\u2718\u274c]|^\s*(?:!=|\u2260)"
    r"|(?<![\w)\]])[!~\uff01\uff5e\u223c]+(?=(?P<word>[^\W\d_]\w*))"
)
_SIGN = re.compile(rf"[{HYPHENS}\u2014(\[{{\u00ac\u2717\u2718\u274c\u2260!~\uff01\uff5e\u223c]")
_TIE = re.compile(rf"(?<=\w)(?:[{HYPHENS}]|\([{HYPHENS}]\))(?=\w)")
_PREFIX = re.compile(rf"\b(pre|micro|macro|non|carboxy)\s?[{HYPHENS}\u2014]\s?(?=[^\W\d_])", re.I)
_BRACKETED_PREFIX = re.compile(
    rf"(?<!\w)[(\[{{]([^\W\d_]{{3,}})[{HYPHENS}]?[)\]}}][{HYPHENS}]?(?=[^\W\d_])"
)
_ENDS_TIED = re.compile(rf"(?!hyp(?:er|o)\b)[^\W\d_]{{3,}}[{HYPHENS}]\s*", re.I)


def plain(text: str) -> str:
    """A name with one word for each way to deny, one hyphen, and explanations in brackets."""
    text = _WITHOUT.sub(" without ", _NOT_ONLY.sub(" ", text))
    if _SIGN.search(text):
        text = _TIE.sub("-", _NOT_SIGN.sub(_denial, text))
        text = _PREFIX.sub(r"\1-", _BRACKETED_PREFIX.sub(r"\1-", text))
    if "," not in text:
        return text
    (first, *parts), rest = comma_parts(text)
    name = words_of(first)
    explained = (
        f" ({part})" if belongs_to_name(words_of(part), name) else f",{part}" for part in parts
    )
    return first + "".join(explained) + rest


def without_brackets(text: str) -> str:
    """A text whose brackets left, but for words that tell features apart."""

    def keep_telling(match: re.Match[str]) -> str:
        content = match.group(1)
        return f" {content} " if TELLING.intersection(words_of(content)) else " "

    return _BRACKETS.sub(keep_telling, text)


def bracket_contents(text: str) -> list[str]:
    """What stands in each pair of brackets; the last may be open."""
    return _BRACKETS.findall(text)


def is_prefix(content: str) -> bool:
    """Whether brackets hold the first part of a word: "albumin (pre-)", "albumin (micro)"."""
    words = words_of(content)
    return len(words) == 1 and (words[0] in PREFIXES or bool(_ENDS_TIED.fullmatch(content)))


@dataclass(frozen=True, slots=True)
class Reading:
    """Words of a text, and where the marks are that `words_of` leaves out."""

    words: tuple[str, ...]
    behind_marks: frozenset[int]
    """Words with a mark between them and the word before."""

    @classmethod
    def of(cls, text: str) -> "Reading":
        """Reads a text."""
        words, places = placed_words(text)
        gaps = (text[places[at - 1][1] : places[at][0]] for at in range(1, len(places)))
        return cls(words, frozenset(at for at, gap in enumerate(gaps, 1) if _MARK.search(gap)))

    def with_words(self, words: tuple[str, ...]) -> "Reading":
        """The same text with as many other words."""
        return Reading(words, self.behind_marks)

    @property
    def has_negation(self) -> bool:
        """Whether it denies anything."""
        return not NEGATIONS.isdisjoint(self.words)


def _denial(match: re.Match[str]) -> str:
    # "~normal pH" is about normal.
    word = match["word"]
    is_about = word is not None and all(map(is_trailing, words_of(word)))
    return match.group() if is_about else " not "
