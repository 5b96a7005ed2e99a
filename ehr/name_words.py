"""What a word beside a feature's name does to it: nothing, or it ends, denies or changes it.

A word that changes what was measured ("pre-albumin", "heart rate variability") must not pass for
the feature whose name it stands beside, and nobody can list all such words. So the words that
change nothing are listed, and any other makes the name unknown.
"""

import re
from collections.abc import Iterable

from ehr.catalogue import KNOWN_FEATURES
from ehr.spelling import NUMBER, PERCENT, words_of

# All words are singular, as `words_of` makes them.
QUALIFIERS = frozenset(
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
"""These leave from the end of a name before it is looked up."""

# Beside those of the catalogue.
_MORE_UNITS = (
    *("second", "sec", "year", "yr", "y", "cmh2o", "breath", "degree", "celsius", "fahrenheit"),
    *("f", "k", "kpa", "torr", "cm", "kg", "lb", "mcg", "mcl", "ul", "meq", "mu", "iu", "ng"),
    *("nmol", "pg", "rpm", "unit", "x10"),
)
_UNITS = frozenset(
    word
    for unit in (*(feature.unit for feature in KNOWN_FEATURES), *_MORE_UNITS)
    for word in words_of(unit)
) - {PERCENT}

_HOW_MUCH = (
    *("abnormality", "acidic", "adequate", "alarming", "altered", "concerning", "control"),
    *("controlled", "decrease", "decreasing", "delayed", "depressed", "deranged", "derangement"),
    *("desaturation", "deteriorating", "deterioration", "deviation", "dip", "disturbance", "drop"),
    *("elevating", "extreme", "fall", "fast", "febrile", "fluctuating", "fluctuation"),
    *("gain", "good", "imbalance", "impaired", "improved", "improvement", "improving"),
    *("inadequate", "increment", "instability", "insufficient", "irregular", "loss", "marked"),
    *("mean", "average", "median", "nadir", "highest", "lowest", "best", "worst", "maximal"),
    *("minimal", "missing", "notable", "optimal", "out", "profound", "prolongation", "prolonged"),
    *("rapid", "regular", "rise", "shortened", "slow", "spike", "stability", "steady"),
    *("subnormal", "suboptimal", "sudden", "supranormal", "surge", "uncontrolled", "unmeasured"),
    *("variable", "variation", "weak", "widening", "deficiency", "extremely", "markedly"),
    *("balance", "difference", "fever", "least", "less", "more", "most", "quite", "too"),
    *("bradycardic", "tachycardic", "hypotensive", "hypertensive", "hypoxic", "acidotic"),
)
_WHAT_KIND_OF_STATEMENT = (
    *("actual", "assessment", "calculated", "category", "chart", "charted", "check", "data"),
    *("documented", "estimated", "estimate", "factor", "feature", "finding", "group", "important"),
    *("indicator", "key", "lab", "laboratory", "main", "major", "marker", "measure", "measured"),
    *("measurement", "monitoring", "observed", "parameter", "potential", "possible", "primary"),
    *("record", "recorded", "reported", "relevant", "score", "sign", "sum", "test", "testing"),
    *("vital", "biomarker", "concentration", "count", "number", "percentage", PERCENT),
    *("activity", "requirement", "need", "support", "use", "dependence", "dependent", "setting"),
)
_WHEN_AND_WHO = (
    *("advanced", "advancing", "elderly", "middle", "old", "older", "young", "younger"),
    *("female", "male", "man", "woman", "adult"),
    *("current", "daily", "day", "discharge", "evening", "fasting", "final", "first", "hourly"),
    *("hour", "morning", "night", "overnight", "postprandial", "previous", "prior", "random"),
    *("repeat", "repeated", "resting", "second", "serial", "subsequent", "third", "visit"),
    *("postoperative", "preoperative", "postop", "preop", "hospital", "icu", "bedside"),
)
_HOW_IT_WAS_TAKEN = (
    *("abg", "abp", "apical", "arterial", "automated", "axillary", "blood", "capillary", "cardiac"),
    *(
        "core",
        "cuff",
        "venous",
        "fingerstick",
        "fingertip",
        "hypersensitive",
        "ibp",
        "invasive",
        "manual",
    ),
    *(
        "nibp",
        "noninvasive",
        "oral",
        "peripheral",
        "plasma",
        "poc",
        "radial",
        "rectal",
        "sensitive",
    ),
    *("sensitivity", "serum", "total", "tympanic", "ultrasensitive", "whole", "absolute"),
)
_LITTLE_WORDS = ("a", "an", "the", "this", "that", "his", "her", "their", "its", "both", "either")
HARMLESS = frozenset(
    (
        *(*_HOW_MUCH, *_WHAT_KIND_OF_STATEMENT, *_WHEN_AND_WHO, *_HOW_IT_WAS_TAKEN),
        *_LITTLE_WORDS,
    )
)
"""A name with one of these beside it is the same feature."""

_HARMLESS_PAIRS = frozenset(
    (
        *(("pre", "op"), ("post", "op"), ("pre", "operative"), ("post", "operative")),
        *(("pre", "dialysis"), ("post", "dialysis"), ("non", "invasive"), ("room", "air")),
    )
)
# What a value is called when it is high or low: "hypoxemia SpO2 80", "severe acidosis pH 7.1".
_CONDITION = re.compile(r"\w{2,}(?:emia|osis|penia|cardia|tension|pnea|thermia|oxia)")

OPENERS = frozenset(
    (
        *("of", "in", "at", "on", "to", "from", "for", "with", "by", "due", "despite", "during"),
        *("over", "under", "above", "below", "within", "around", "between", "across", "through"),
        *("throughout", "after", "before", "until", "per", "via", "against", "among", "toward"),
        *("and", "or", "plus", "as", "because", "since", "when", "while", "where", "which", "who"),
        *("than", "if", "but", "however", "although", "though", "yet", "whereas", "so", "then"),
        *("is", "are", "was", "were", "be", "been", "being", "has", "have", "had", "remain"),
        *("remained", "may", "can", "could", "will", "would", "should", "suggest", "suggesting"),
        *("suggested", "indicate", "indicating", "indicated", "reflect", "reflecting", "show"),
        *("showing", "showed", "consistent", "concern", "caused", "causing", "given"),
        *("not", "no", "nor", "without", "never", "isn", "wasn", "doesn", "rather", "instead"),
        *("except", "excluding", "vs", "versus", "likely", "unlikely", "secondary"),
        *("rose", "risen", "fell", "fallen", "climb", "climbed", "climbing", "dropped", "worsened"),
        *("worsen", "improve", "improved", "contribute", "contributing", "predict", "matter"),
    )
)
"""Behind one of these a sentence goes on, and in front of one it may have begun with anything."""

NEGATIONS = frozenset(
    (
        *(
            "not",
            "no",
            "nor",
            "neither",
            "never",
            "without",
            "absence",
            "absent",
            "lack",
            "lacking",
        ),
        *("except", "excluding", "excluded", "exclude", "instead", "unrelated", "isn", "wasn"),
        *("doesn", "irrelevant", "unimportant"),
    )
)
"""What follows one of these is not named."""
_AFTER_NEGATION = frozenset(
    (
        *("important", "relevant", "significant", "contributory", "contributing", "salient"),
        *("considered", "included", "needed", "useful", "informative", "predictive", "used"),
    )
)
"""Behind a name and a negation these take the name back: "pH not relevant"."""
_TAKEN_BACK = frozenset(("irrelevant", "unimportant", "excluded"))
TURNS = frozenset(("but", "however", "although", "though", "yet", "whereas"))
"""A negation does not reach past one of these."""

RELATIONS = frozenset(
    (
        *("to", "vs", "versus", "over", "per", "than", "greater", "less", "higher", "lower"),
        *("above", "below", "exceed", "exceeding"),
    )
)
"""Between two features these, or marks alone, make them one quantity or a comparison."""

OTHER_SPECIMEN = frozenset(
    (
        *("urine", "urinary", "csf", "gastric", "pleural", "ascite", "ascitic", "peritoneal"),
        *("stool", "fecal", "sputum", "hdl", "ldl", "vldl", "free", "ionized", "glycated", "a1c"),
        *("glycosylated", "fetal", "cord"),
    )
)
OTHER_QUANTITY = OTHER_SPECIMEN | frozenset(
    (
        *("ratio", "variability", "clearance", "transfusion", "cd4", "cd8", "cd3", "excretion"),
        *("infusion", "supplement", "supplementation", "replacement", "administration"),
        *("tolerance", "kinase", "therapy", "gradient"),
    )
)
"""Wherever they stand beside a feature's name, these make it another quantity or a treatment."""


def is_trailing(word: str) -> bool:
    """Whether a word at the end of a name is its value, unit or qualifier."""
    return bool(NUMBER.match(word)) or word in _UNITS or word in QUALIFIERS


def is_harmless(words: tuple[str, ...], at: int) -> bool:
    """Whether a word beside a feature's name leaves its meaning alone."""
    word = words[at]
    if is_trailing(word) or word in HARMLESS:
        return True
    if _HARMLESS_PAIRS.intersection((words[at - 1 : at + 1], words[at : at + 2])):
        return True
    # Adverbs say how much or when.
    return (word.endswith("ly") and len(word) > 4) or bool(_CONDITION.fullmatch(word))


def takes_back(words: Iterable[str]) -> bool:
    """Whether words behind a name say that it does not count."""
    said = set(words)
    is_denied = not said.isdisjoint(NEGATIONS) and not said.isdisjoint(_AFTER_NEGATION)
    return is_denied or not said.isdisjoint(_TAKEN_BACK)
