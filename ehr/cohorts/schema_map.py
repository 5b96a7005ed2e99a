"""Records of one cohort written in another cohort's features, by name and with units converted.

A model that reads the record can answer for another hospital's patients only through such a map.
Each feature of the model's cohort is looked up among the other cohort's names and aliases in the
catalogue, spelled alike; nothing is guessed from similar words. What the other cohort lacks is
missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ehr.catalogue import Feature
from ehr.catalogue.names import spelling
from ehr.catalogue.plausible import plausible_mask
from ehr.cohorts.cohort import PatientCase
from ehr.errors import DataError

_MOLAR_MASS = {
    "blood urea nitrogen": 28.013,  # its mg are of nitrogen: two atoms a molecule of urea
    "cholesterol": 386.65,
    "creatinine": 113.12,
    "glucose": 180.156,
    "total bilirubin": 584.66,
}
"""Grams a mole, by a spelling that both features have."""

_SAME_KIND = {
    ("g/dL", "g/L"): 10.0,
    ("ng/mL", "pg/mL"): 1000.0,
}
"""Factors between units of one kind; the other way round is divided by them."""

_MOLAR_SCALE = {
    ("mg/dL", "mmol/L"): 10.0,
    ("mg/dL", "umol/L"): 10_000.0,
}
"""Divided by the molar mass: the factor from a mass to an amount of substance."""

_NOTES: dict[frozenset[str], str] = {
    frozenset(("Hypersensitive cardiac troponinI", "Troponin I")): (
        "one substance, assays of different generations: small values are not comparable"
    ),
}
"""What is to be known of a pair besides its units, by its two names."""

_OTHER_QUANTITIES: dict[frozenset[str], str] = {
    frozenset(("PH value", "pH")): (
        "most values of the Tongji workbook's column are of urine: their median is 6.5"
    ),
}
"""Pairs that share a spelling and are not one quantity, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturePair:
    """One feature of a model's cohort and the feature of another cohort that stands for it."""

    feature: str
    """In the model's cohort."""
    unit: str
    other_feature: str
    other_unit: str
    factor: float
    """Other value times this is the model's value."""
    note: str = ""
    """What makes the two not quite the same."""

    @property
    def rule(self) -> str:
        """The pair as a line to check: `creatinine [umol/L] = 88.402 x Creatinine [mg/dL]`."""
        left, right = (
            f"{name} [{unit}]" if unit else name
            for name, unit in ((self.feature, self.unit), (self.other_feature, self.other_unit))
        )
        times = "" if self.factor == 1 else f"{self.factor:.5g} x "
        return f"{left} = {times}{right}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaMap:
    """How records of another cohort become records of a model's cohort."""

    features: tuple[Feature, ...]
    """Of the model's cohort, the columns of what `case` returns."""
    other_features: tuple[Feature, ...]
    """Columns of what `case` takes."""
    pairs: tuple[FeaturePair, ...]
    """In the order of `features`."""
    refused: tuple[str, ...] = ()
    """Pairs that share a name and are not one quantity, each with the reason."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Features of the model's cohort that the other one does not record."""
        found = {pair.feature for pair in self.pairs}
        return tuple(each.name for each in self.features if each.name not in found)

    @property
    def unused(self) -> tuple[str, ...]:
        """Features of the other cohort that the model's cohort does not have."""
        found = {pair.other_feature for pair in self.pairs}
        return tuple(each.name for each in self.other_features if each.name not in found)

    def case(self, case: PatientCase) -> PatientCase:
        """A patient of the other cohort in the features and units of the model's cohort.

        Visits, their days, age and sex stay; the id gets a prefix, because cohorts may share ids.
        Values outside the model's cohort's plausible range are missing, as its own reader has it.

        Raises:
            DataError: if the case has another number of features than the other cohort.
        """
        if case.values.ndim != 2 or case.values.shape[1] != len(self.other_features):
            raise DataError(
                f"patient {case.patient_id!r} must have {len(self.other_features)} features a "
                f"visit to be mapped, but the values have shape {case.values.shape}. Make the map "
                "from the features of the patient's own cohort."
            )
        columns = {feature.name: index for index, feature in enumerate(self.features)}
        others = {feature.name: index for index, feature in enumerate(self.other_features)}
        values = np.full((case.num_visits, len(self.features)), np.nan)
        for pair in self.pairs:
            taken = case.values[:, others[pair.other_feature]] * pair.factor
            values[:, columns[pair.feature]] = taken
        places = np.broadcast_to(np.arange(len(self.features)), values.shape)
        inside, _ = plausible_mask(values.ravel(), places.ravel(), self.features)
        return replace(
            case,
            patient_id=f"other cohort, {case.patient_id}",
            values=np.where(inside.reshape(values.shape), values, np.nan),
        )


def map_schema(features: Sequence[Feature], other_features: Sequence[Feature]) -> SchemaMap:
    """The map from another cohort's features to those of a model's cohort.

    Two features are one if a name or alias of the first is a name or alias of the second and both
    are numbers, or have the same levels.

    Args:
        features: of the cohort that the model was trained on.
        other_features: of the cohort that it is asked about.

    Raises:
        DataError: if one feature has two counterparts, or there is no conversion between the units
            of a pair.
    """
    pairs: list[FeaturePair] = []
    refused: list[str] = []
    taken: dict[str, str] = {}
    for feature in features:
        alike = [other for other in other_features if _is_same(feature, other)]
        again = [other.name for other in alike if other.name in taken]
        if len(alike) > 1 or again:
            raise DataError(
                f"feature {feature.name!r} must have one counterpart of its own, got "
                f"{[other.name for other in alike]}, of which {again} stand for "
                f"{[taken[name] for name in again]}. Remove the shared alias from the catalogue."
            )
        for other in alike:
            names = frozenset((feature.name, other.name))
            if names in _OTHER_QUANTITIES:
                refused.append(f"{feature.name}, {other.name}: {_OTHER_QUANTITIES[names]}")
                continue
            taken[other.name] = feature.name
            pairs.append(
                FeaturePair(
                    feature=feature.name,
                    unit=feature.unit,
                    other_feature=other.name,
                    other_unit=other.unit,
                    factor=_factor(feature, other),
                    note=_NOTES.get(names, ""),
                )
            )
    return SchemaMap(
        features=tuple(features),
        other_features=tuple(other_features),
        pairs=tuple(pairs),
        refused=tuple(refused),
    )


def _spellings(feature: Feature) -> frozenset[tuple[str, ...]]:
    return frozenset(spelling(name) for name in (feature.name, *feature.aliases))


def _is_same(feature: Feature, other: Feature) -> bool:
    is_alike = feature.kind is other.kind and feature.categories == other.categories
    return is_alike and bool(_spellings(feature) & _spellings(other))


def _factor(feature: Feature, other: Feature) -> float:
    """What a value of `other` is multiplied by to be one of `feature`."""
    if feature.unit == other.unit:
        return 1.0
    shared = _spellings(feature) & _spellings(other)
    masses = [mass for name, mass in _MOLAR_MASS.items() if spelling(name) in shared]
    scales = dict(_SAME_KIND)
    if len(masses) == 1:
        scales |= {units: scale / masses[0] for units, scale in _MOLAR_SCALE.items()}
    if (other.unit, feature.unit) in scales:
        return scales[other.unit, feature.unit]
    if (feature.unit, other.unit) in scales:
        return 1 / scales[feature.unit, other.unit]
    raise DataError(
        f"{other.name!r} in {other.unit!r} must be converted to {feature.name!r} in "
        f"{feature.unit!r}, but no conversion is known. Add it to ehr/cohorts/schema_map.py."
    )
