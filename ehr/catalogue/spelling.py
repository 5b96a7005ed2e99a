"""Words in one spelling, and slips of the pen: a long word one letter away from one known word."""

import re
import unicodedata
from collections.abc import Collection

NUMBER = re.compile(r"\d+(?:\.\d+)?$")
"""A word that is a number."""

_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_][^\W_]*")
_PIECE = re.compile(r"\d+(?:\.\d+)?|[^\W\d_][^\W_]*|[%#+]")

PERCENT = "percent"
"""How the sign and its words are spelled."""
_SYMBOLS = {
    "%": f" {PERCENT} ",
    "#": " count ",
    "+": " plus ",
    "\u03b1": " alpha ",
    "\u03b2": " beta ",
    "\u03b3": " gamma ",
    "\u03bc": "u",
}
_SPELLINGS = {"percentage": PERCENT}

MIN_LETTERS = 7
"""Known words that a slip may stand for: of shorter ones another word is too often one letter away
("weight" and "height", "gender" and "tender")."""


def corrected(word: str, vocabulary: Collection[str]) -> str:
    """The known word that a word misspells, or the word itself.

    A slip is one letter too many, missing, wrong, or two neighbours swapped. A known word, and one
    near several known words, stays as it is.

    Args:
        word: lower case.
        vocabulary: known words, lower case.
    """
    if word in vocabulary or len(word) < MIN_LETTERS - 1 or not word.isalpha():
        return word
    near = [
        known
        for known in vocabulary
        if len(known) >= MIN_LETTERS and known.isalpha() and is_one_slip(word, known)
    ]
    return near[0] if len(near) == 1 else word


def is_one_slip(first: str, second: str) -> bool:
    """Whether two words differ by one inserted, missing, changed or swapped letter."""
    if first == second or abs(len(first) - len(second)) > 1:
        return False
    start = 0
    while start < min(len(first), len(second)) and first[start] == second[start]:
        start += 1
    left, right = first[start:], second[start:]
    if len(left) != len(right):
        longer, shorter = (left, right) if len(left) > len(right) else (right, left)
        return longer[1:] == shorter
    swapped = left[1::-1] + left[2:]
    return left[1:] == right[1:] or swapped == right


def words_of(text: str) -> tuple[str, ...]:
    """Words of a name in one spelling: lower case, singular, symbols written out, no repeats."""
    # Twice, because casefolding can undo the normal form.
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    for symbol, word in _SYMBOLS.items():
        plain = plain.replace(symbol, word)
    words: list[str] = []
    for word in _WORD.findall(plain):
        spelled = _SPELLINGS.get(word, _singular(word.replace("haem", "hem")))
        # "basophil count(#)" says "count" twice.
        if not words or words[-1] != spelled or NUMBER.match(spelled):
            words.append(spelled)
    return tuple(words)


def placed_words(text: str) -> tuple[tuple[str, ...], list[tuple[int, int]]]:
    """Words of a text as `words_of` makes them, and the characters [start, end) behind each."""
    words: list[str] = []
    places: list[tuple[int, int]] = []
    for piece in _PIECE.finditer(text):
        for word in words_of(piece.group()):
            if words and words[-1] == word and not NUMBER.match(word):
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
