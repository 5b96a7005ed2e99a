"""What a feature is, and how the catalogue writes one down."""

from dataclasses import dataclass
from enum import StrEnum


class FeatureKind(StrEnum):
    """How a feature is written and modelled."""

    NUMERIC = "numeric"
    """A number with a unit."""
    CATEGORICAL = "categorical"
    """A code with a word for each level."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One clinical feature."""

    name: str
    """Canonical name, as prompts write it."""
    kind: FeatureKind = FeatureKind.NUMERIC
    unit: str = ""
    plausible: tuple[float, float] | None = None
    """Values outside are dropped and counted."""
    reference: tuple[float, float] | None = None
    """Reference range for adults."""
    categories: tuple[tuple[float, str], ...] = ()
    """Code and word of each level, ascending."""
    aliases: tuple[str, ...] = ()
    """Other spellings of the whole name."""


def numeric(
    name: str,
    unit: str,
    plausible: tuple[float, float] | None,
    reference: tuple[float, float] | None,
    *aliases: str,
) -> Feature:
    """A number with its unit, plausible range and reference range."""
    return Feature(name=name, unit=unit, plausible=plausible, reference=reference, aliases=aliases)


def categorical(name: str, words: tuple[str, ...], first_code: int, *aliases: str) -> Feature:
    """Levels with consecutive codes from `first_code` on."""
    return Feature(
        name=name,
        kind=FeatureKind.CATEGORICAL,
        categories=tuple((float(first_code + i), word) for i, word in enumerate(words)),
        aliases=aliases,
    )


def lab(name: str, unit: str, low: float | None, high: float | None, *aliases: str) -> Feature:
    """A number with its unit and reference range, every recorded value kept."""
    # No plausible range: Table 3 and the published baselines keep every value that is not negative,
    # and the expert view clips; what looks impossible (WBC 1726) is shown as recorded.
    reference = None if low is None or high is None else (low, high)
    return Feature(name=name, unit=unit, reference=reference, aliases=aliases)
