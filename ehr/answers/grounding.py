"""Whether what an answer says about the record is in the record.

Claims (`ehr.answers.claims`) are checked against the values that the patient's prompt showed. Only
numeric features and the age are checked; what cannot be read as a claim is neither right nor wrong.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ehr.answers.claims import (
    NUMBER,
    Claim,
    Direction,
    Level,
    read_claims,
)
from ehr.catalogue import AGE_AND_SEX, Feature, FeatureKind
from ehr.catalogue.names import FeatureMatcher
from ehr.cohorts.cohort import PatientCase
from ehr.language.prompts import shown_number
from ehr.language.trajectory import reasoning_of

__all__ = [
    "CheckedClaim",
    "Claim",
    "Direction",
    "FeatureMatcher",
    "Grounding",
    "GroundingChecker",
    "Level",
    "grounding_error_rate",
    "reasoning_of",
]

STABLE_SHARE = 0.10
"""A feature is stable if its last value is within this share of the first. Where its reference
range is narrow (pH, temperature, sodium), a quarter of its width over its middle replaces it."""

_MIN_ROUNDED_DIGITS = 2
"""A number that is rounder than the record must still have so many digits: 7 is no pH of 7.21."""

# Numbers that are no values of the record: bounds, differences, times, ordinals, probabilities.
_BEFORE_NO_VALUE = re.compile(
    r"(?:\b(?:above|below|over|under|than|least|most|by|visits?|days?|hours?|steps?|between|stage|"
    r"approximately|about|around)|[<>\u2264\u2265~])\s*$",
    re.I,
)
_AFTER_NO_VALUE = re.compile(
    r"\s*(?:%|percent|times|fold|visits?|days?|hours?|h\b|weeks?|months?)|(?:st|nd|rd|th)\b", re.I
)
_ABOUT_RISK = re.compile(r"\b(?:probability|risk|likelihood|chance|score|odds)\b", re.I)
_SENTENCE = re.compile(r"[^\n]*?(?:[.!?;](?=\s)|\n|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedClaim:
    """A claim and what is wrong with it."""

    claim: Claim
    problem: str | None
    """None = the record agrees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grounding:
    """How one answer agrees with the record."""

    claims: tuple[CheckedClaim, ...]
    """Every claim that could be checked, in order."""
    unsupported_numbers: tuple[str, ...]
    """Numbers outside these claims that the record does not hold, as written."""

    @property
    def wrong(self) -> tuple[CheckedClaim, ...]:
        """Claims that the record contradicts or does not support."""
        return tuple(checked for checked in self.claims if checked.problem is not None)


class GroundingChecker:
    """Checks answers about the patients of one cohort."""

    def __init__(self, features: Sequence[Feature], matcher: FeatureMatcher) -> None:
        """Prepares the checker.

        Args:
            features: columns of every case's values.
            matcher: of the same features.
        """
        self._features = {feature.name: feature for feature in features}
        self._columns = {feature.name: column for column, feature in enumerate(features)}
        self._matcher = matcher

    def check(self, text: str, case: PatientCase) -> Grounding:
        """Claims of an answer's prose against the record of its patient.

        Args:
            text: prose without tags (`reasoning_of`).
            case: the patient as the prompt showed them.
        """
        claims = [
            CheckedClaim(claim=claim, problem=self._problem(claim, case))
            for claim in read_claims(text, self._matcher)
            if self._is_checkable(claim, case)
        ]
        return Grounding(
            claims=tuple(claims),
            unsupported_numbers=self._unsupported(text, case, [item.claim for item in claims]),
        )

    def _is_checkable(self, claim: Claim, case: PatientCase) -> bool:
        if claim.feature == AGE_AND_SEX:
            return _age(case) is not None
        feature = self._features[claim.feature]
        if feature.kind is not FeatureKind.NUMERIC:
            return False
        if claim.has_percent_sign and feature.unit != "%":
            return False
        needs_two = claim.direction is Direction.STABLE and not claim.numbers
        return (claim.level is None or feature.reference is not None) and not (
            needs_two and len(self._recorded(claim.feature, case)) == 1
        )

    def _problem(self, claim: Claim, case: PatientCase) -> str | None:
        if claim.feature == AGE_AND_SEX:
            strange = [n for n in claim.numbers if _as_number(n) != _age(case)]
            return f"the age is {_age(case):g}, not {strange[0]}" if strange else None
        feature = self._features[claim.feature]
        recorded = self._recorded(claim.feature, case)
        if not recorded:
            return f"{feature.name} was never recorded"
        return (
            _number_problem(claim, feature, recorded)
            or _direction_problem(claim, feature, recorded)
            or _level_problem(claim, feature, recorded)
        )

    def _recorded(self, name: str, case: PatientCase) -> list[float]:
        column = case.values[:, self._columns[name]]
        return [shown_number(float(value)) for value in column if not math.isnan(value)]

    def _unsupported(
        self, text: str, case: PatientCase, claims: Sequence[Claim]
    ) -> tuple[str, ...]:
        known = {float(number) for number in range(case.num_visits + 1)} | set(case.visit_days)
        known |= {
            float(number) for label in case.visit_labels for number in re.findall(NUMBER, label)
        }
        known |= {bound for f in self._features.values() for bound in f.reference or ()}
        age = _age(case)
        known |= set() if age is None else {age}
        taken = [(claim.start, claim.end) for claim in claims]
        taken += [(mention.start, mention.end) for mention in self._matcher.mentions(text)]
        found: list[str] = []
        for match in re.finditer(NUMBER, text):
            written = match.group()
            is_value = not (
                any(start <= match.start() < end for start, end in taken)
                or _BEFORE_NO_VALUE.search(text, max(0, match.start() - 20), match.start())
                or _AFTER_NO_VALUE.match(text, match.end())
                or _ABOUT_RISK.search(_sentence_at(text, match.start()))
            )
            is_known = _as_number(written) in known or any(
                _is_recorded(written, feature, self._recorded(name, case))
                for name, feature in self._features.items()
            )
            if is_value and not is_known:
                found.append(written)
        return tuple(found)


def grounding_error_rate(num_wrong: int, num_checked: int) -> float | None:
    """Share of wrong claims among those checked; None if there was nothing to check."""
    return num_wrong / num_checked if num_checked else None


def stable_tolerance(first: float, reference: tuple[float, float] | None) -> float:
    """Largest distance from the first value at which the last one is still called stable."""
    share = STABLE_SHARE
    if reference is not None and reference[1] > reference[0]:
        low, high = reference
        share = min(share, (high - low) / (2 * (high + low)))
    return abs(first) * share


def level_of(value: float, reference: tuple[float, float]) -> Level:
    """Where a value lies, seen from a reference range; its bounds are normal."""
    if value < reference[0]:
        return Level.LOW
    return Level.HIGH if value > reference[1] else Level.NORMAL


def _number_problem(claim: Claim, feature: Feature, recorded: Sequence[float]) -> str | None:
    for written in claim.numbers:
        if not _is_recorded(written, feature, recorded):
            return f"{feature.name} was never {written}"
    if not claim.is_sequence:
        return None
    visit = -1
    for written in claim.numbers:
        later = [
            index
            for index in range(visit + 1, len(recorded))
            if _is_recorded(written, feature, [recorded[index]])
        ]
        if not later:
            return f"{feature.name} was not {written} after {claim.numbers[0]}"
        visit = later[0]
    return None


def _direction_problem(claim: Claim, feature: Feature, recorded: Sequence[float]) -> str | None:
    if claim.direction is None:
        return None
    first, last = recorded[0], recorded[-1]
    if claim.numbers:
        last = _as_number(claim.numbers[-1])
        first = _as_number(claim.numbers[0]) if len(claim.numbers) > 1 else first
    agrees = {
        Direction.UP: last > first,
        Direction.DOWN: last < first,
        Direction.STABLE: abs(last - first) <= stable_tolerance(first, feature.reference) + 1e-9,
    }
    if agrees[claim.direction]:
        return None
    return f"{first:g} to {last:g} is not {claim.direction}"


def _level_problem(claim: Claim, feature: Feature, recorded: Sequence[float]) -> str | None:
    if claim.level is None or feature.reference is None:
        return None
    looked_at = recorded[-1:] if claim.is_latest else recorded
    if any(level_of(value, feature.reference) is claim.level for value in looked_at):
        return None
    low, high = feature.reference
    shown = ", ".join(f"{value:g}" for value in looked_at[-3:])
    return f"{shown} is not {claim.level} ({low:g} to {high:g} is normal)"


def _is_recorded(written: str, feature: Feature, recorded: Sequence[float]) -> bool:
    """Whether a number is a recorded value, as shown or rounded further."""
    decimals = len(written.partition(".")[2])
    digits = len(written.replace(",", "").replace(".", "").lstrip("0"))
    number = _as_number(written)
    numbers = [number, 100 * number] if feature.unit == "%" and 0 < number <= 1 else [number]
    room = 0.5 * 10**-decimals if digits >= _MIN_ROUNDED_DIGITS else 0.0
    return any(
        abs(value - number) < 1e-6 + (room if number == numbers[0] else 0.0)
        for value in recorded
        for number in numbers
    )


def _as_number(written: str) -> float:
    return float(written.replace(",", ""))


def _age(case: PatientCase) -> float | None:
    # As the prompt shows it.
    known = case.age is not None and not math.isnan(case.age)
    return float(f"{case.age:.0f}") if known else None


def _sentence_at(text: str, place: int) -> str:
    start = max(text.rfind(mark, 0, place) for mark in ("\n", ". ", "! ", "? ", "; ")) + 1
    found = _SENTENCE.match(text, start)
    return found.group() if found else ""
