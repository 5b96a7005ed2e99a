"""Slips of the pen: a long word that is one letter away from exactly one known word."""

from collections.abc import Collection

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
