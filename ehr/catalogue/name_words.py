"""What a word beside a feature's name does to it: nothing, or it ends or changes it.

A word that changes what was measured ("pre-albumin", "heart rate variability") must not pass for
the feature whose name it stands beside, and nobody can list all such words. So the words that
change nothing are listed, and any other makes the name unknown.
"""

import re
from collections.abc import Sequence

from ehr.catalogue import KNOWN_FEATURES
from ehr.catalogue.name_denials import (
    DENIALS,
    SHORTENED_NOT,
    ends_denied,
    takes_back,
)
from ehr.catalogue.spelling import NUMBER, PERCENT, words_of

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
        *("not", "no", "nor", "without", "never", "rather", "instead", "also", "moreover"),
        *("furthermore", *SHORTENED_NOT),
        *("except", "excluding", "vs", "versus", "likely", "unlikely", "secondary"),
        *("rose", "risen", "fell", "fallen", "climb", "climbed", "climbing", "dropped", "worsened"),
        *("worsen", "improve", "improved", "contribute", "contributing", "predict", "matter"),
    )
)
"""Behind one of these a sentence goes on, and in front of one it may have begun with anything."""

RELATIONS = frozenset(
    (
        *("to", "vs", "versus", "over", "per", "than", "greater", "less", "higher", "lower"),
        *("above", "below", "exceed", "exceeding"),
    )
)
"""Between two features these, or marks alone, make them one quantity or a comparison."""

_FLUIDS = frozenset(
    (
        *("urine", "urinary", "csf", "gastric", "pleural", "ascite", "ascitic", "peritoneal"),
        *("stool", "fecal", "faecal", "sputum"),
    )
)
OTHER_SPECIMEN = _FLUIDS.union(
    (
        *("hdl", "ldl", "vldl", "free", "ionized", "glycated", "a1c"),
        *("glycosylated", "fetal", "foetal", "cord", "ionised"),
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

TELLING = frozenset(
    (
        *("absolute", "alpha", "beta", "concentration", "conjugated", "unconjugated", "corrected"),
        *("count", "direct", "indirect", "fraction", "ionized", PERCENT, "sd", "total"),
    )
)
"""These tell features apart, so that brackets around them are part of the name."""
CHANGING = TELLING - HARMLESS
"""Of these, those that are no part of a feature's name change it: "albumin (fraction)"."""
PREFIXES = frozenset(
    (
        *("pre", "micro", "macro", "met", "carboxy", "oxy", "deoxy", "sulf", "apo", "pro"),
        *("pseudo", "anti", "non", "iso"),
    )
)
"""First parts of words that name something else than the rest does."""
_BELONGING = (OTHER_SPECIMEN | TELLING | PREFIXES).union(
    ("blood", "serum", "plasma", "arterial", "venous", "capillary")
)
_BESIDE_KIND = frozenset(
    (
        *("whole", "spot", "random", "hour", "sample", "specimen", "measured", "calculated"),
        *("estimated", "op", "operative", "dialysis"),
    )
)
# Items of a list in their own right, but for the name that they are a kind of.
_KINDS_OF = {
    **dict.fromkeys(("hdl", "ldl", "vldl"), frozenset(("cholesterol",))),
    "a1c": frozenset(("hemoglobin", "hb", "hgb")),
}
_OF_NO_FLUID = frozenset(
    (
        *("rate", "pressure", "scale", "gcs", "weight", "height", "temperature", "saturation"),
        *("age", "sex", "gender", "ventilation", "refill", "pulse", "spo2", "fio2", "temp"),
        *("hr", "rr", "map", "sbp", "dbp", "bp"),
    )
)
_COUNTED_BREATHS = frozenset(("min", "minute", "per", "rate", "rr", "respiration"))


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


def belongs_to_name(part: Sequence[str], name: Sequence[str]) -> bool:
    """Whether a part behind a name and a comma names nothing itself, but says something of it.

    Of what or of which kind it is ("calcium, ionized"), or that it is not meant ("pH, irrelevant").
    """
    telling = _BELONGING.intersection(part)
    if not _OF_NO_FLUID.isdisjoint(name):
        telling -= _FLUIDS
    if any(word in _KINDS_OF and _KINDS_OF[word].isdisjoint(name) for word in telling):
        return False
    if telling:
        others = telling | _BESIDE_KIND | QUALIFIERS
        # A unit has a number: "serum K" is a name.
        has_number = any(map(NUMBER.match, part))
        return all(word in others or (has_number and is_trailing(word)) for word in part)
    words = tuple(part)
    return (takes_back(words) or ends_denied(words)) and all(
        word in DENIALS or word in OPENERS or is_harmless(words, at)
        for at, word in enumerate(words)
    )


def is_breath_test(words: Sequence[str]) -> bool:
    """Whether breath was examined ("urea breath test"), not counted ("28 breaths/min")."""
    if "breath" not in words:
        return False
    if not {"test", "testing"}.isdisjoint(words):
        return True
    return _COUNTED_BREATHS.isdisjoint(words) and not any(map(NUMBER.match, words))
