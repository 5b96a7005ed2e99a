"""Words that say of a feature's name, in front of it or behind, that the feature is not meant.

All words are singular, as `words_of` makes them.
"""

from collections.abc import Sequence

SHORTENED_NOT = (
    *("isn", "wasn", "aren", "weren", "doesn", "don", "didn", "hasn", "haven", "hadn", "won"),
    *("cannot", "couldn", "wouldn", "shouldn", "isnt", "wasnt", "doesnt", "dont", "didnt"),
)
"""What is left of them before an apostrophe, and without one."""
NEGATIONS = frozenset(
    (
        *("not", "no", "nor", "neither", "never", "without", "absence", "absent", "lack"),
        *("lacking", "except", "exception", "excluding", "excluded", "exclude", "instead"),
        *("unrelated", "irrelevant", "unimportant", "omit", "omitting", "omitted", "ignore"),
        *("ignoring", "ignored", "disregard", "disregarding", "disregarded", "skip", "skipping"),
        *("skipped", "dismissed", "discarded", "neglected", *SHORTENED_NOT),
    )
)
"""What follows one of these is not named."""
_WEIGHT = frozenset(
    (
        *("importance", "relevance", "influence", "effect", "impact", "role", "bearing"),
        *("significance", "use", "consequence", "interest", "contribution"),
        *("difference", "meaning", "factor"),
    )
)
_COUNTING = frozenset(
    (
        *("important", "relevant", "significant", "contributory", "contributing", "salient"),
        *("considered", "included", "needed", "useful", "informative", "predictive", "used"),
        *(
            "matter",
            "mattered",
            "contribute",
            "contributed",
            "affect",
            "predict",
            "help",
            "counted",
            "helpful",
            "pertinent",
        ),
        *("selected", "chosen", "decisive", "crucial", "meaningful", "necessary"),
    )
)
_COUNTS = _COUNTING | _WEIGHT
_LOW = frozenset(("importance", "relevance", "influence", "impact", "significance"))
_REACH = 5
"""Words between a negation and what it says of a name: "not found to be clinically relevant"."""
_SCANT = frozenset(
    (
        *("little", "minor", "minimal", "limited", "negligible", "low", "least", "lesser"),
        *("marginal", "hardly", "scarcely"),
    )
)
"""Next to a word of weight these deny it: "of little relevance", "hardly important"."""
_TAKEN_BACK = frozenset(
    (
        *("irrelevant", "unimportant", "excluded", "unrelated", "omitted", "ignored"),
        *("disregarded", "dismissed", "discarded", "skipped", "removed", "discounted"),
        *("neglected", "negligible", "immaterial", "insignificant", "unnecessary", "useless"),
        *("meaningless", "trivial", "unhelpful", "uninformative", "noncontributory", "rejected"),
    )
)
_OUT = frozenset(
    (*((verb, "out") for verb in ("ruled", "left", "crossed", "struck")), ("set", "aside"))
)
_NOT = frozenset(("not", "no", "never", *SHORTENED_NOT))
_DENIED = frozenset((*_NOT, "nothing"))
"""As the last word these deny what stands before them: "pH: no"."""
DENIALS = NEGATIONS | _COUNTS | _SCANT | _TAKEN_BACK | _DENIED
"""All words with which a name is denied."""
TURNS = frozenset(("but", "however", "although", "though", "yet", "whereas"))
"""A negation does not reach past one of these."""


def takes_back(words: Sequence[str]) -> bool:
    """Whether words behind a name say that it does not count."""
    return counts_little(words) or any(
        _takes_back_at(words, at)
        or (word in NEGATIONS and not _COUNTS.isdisjoint(words[at + 1 : at + 1 + _REACH]))
        for at, word in enumerate(words)
    )


def counts_little(words: Sequence[str]) -> bool:
    """Whether words speak of little relevance, or their like."""
    return any(
        word in _SCANT
        and not (_LOW if word == "low" else _COUNTS).isdisjoint(words[at + 1 : at + 3])
        for at, word in enumerate(words)
    )


def is_denied_from_before(words: Sequence[str]) -> bool:
    """Whether words in front of a name say that it is not meant."""
    is_left_out = tuple(words[-2:]) in _OUT
    return not NEGATIONS.isdisjoint(words) or counts_little(words) or is_left_out


def ends_denied(words: Sequence[str]) -> bool:
    """Whether the last word denies what stands before it, and nothing behind it: "pH: no"."""
    # "isn't" is two words.
    end = len(words) - (tuple(words[-1:]) == ("t",))
    return end > 0 and (words[end - 1] in _DENIED or _takes_back_at(words, end - 1))


def _takes_back_at(words: Sequence[str], at: int) -> bool:
    """Whether a word takes a name back, itself not denied: "pH cannot be ignored" is about pH."""
    is_left_out = words[at] in _TAKEN_BACK or tuple(words[max(at - 1, 0) : at + 1]) in _OUT
    return is_left_out and _NOT.isdisjoint(words[max(at - _REACH, 0) : at])
