"""A cohort: patients as a prompt may see them, their labels, and the splits.

Labels live beside the cases, never inside: what builds a prompt receives a `PatientCase` only.
"""

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ehr.catalogue import AGE_AND_SEX, CATALOGUE_VERSION, Feature, FeatureKind
from ehr.cohorts.schema import (
    VALUE_PREFIX,
    check_table,
    patients_schema,
    truth_schema,
    visits_schema,
)
from ehr.config import Task
from ehr.errors import DataError
from ehr.whole_files import whole_file

SPLITS = ("train", "val", "test")
"""The splits of every cohort."""

FORMAT_VERSION = 1
"""Of a saved cohort; grows when its files change shape."""


class Sex(StrEnum):
    """Sex as recorded."""

    FEMALE = "female"
    MALE = "male"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatientCase:
    """One patient as the record shows it, without any outcome."""

    patient_id: str
    sex: Sex
    age: float | None
    """Years at the first visit."""
    visit_labels: tuple[str, ...]
    """What a prompt calls each visit: an ISO date, or hours since admission such as "12 h"."""
    visit_days: tuple[float, ...]
    """Days since the first visit, ascending."""
    values: np.ndarray
    """Raw values, float64 [visits, features]; NaN = missing; categories as their codes."""
    num_earlier_visits: int = 0
    """Visits before the first one here that were left out so that a prompt fits."""

    @property
    def num_visits(self) -> int:
        """Number of visits."""
        return len(self.visit_days)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cohort:
    """Patients, labels and splits of one task."""

    name: str
    task: Task
    horizon_days: int
    features: tuple[Feature, ...]
    """Columns of every case's `values`, in prompt order."""
    cases: dict[str, PatientCase]
    labels: dict[str, int]
    """1 = the event of the task happened."""
    splits: dict[str, tuple[str, ...]]
    """Patient ids of train, val and test, disjoint and sorted."""
    has_dates: bool
    """Whether visit labels are dates; otherwise they are hours since admission."""
    dropped: dict[str, int] = field(default_factory=dict)
    """What was dropped and how much of it, by reason."""
    truth: pd.DataFrame | None = None
    """Synthetic cohort only: patient_id, risk, contributions and salient features that are true."""


def make_splits(
    labels: Mapping[str, int],
    *,
    num_test: int,
    validation_fraction: float,
    seed: int,
    stratified: bool,
) -> dict[str, tuple[str, ...]]:
    """Sorted ids of train, val and test, drawn as the paper's benchmark draws them.

    Args:
        labels: label of every patient to deal out; ids are sorted before the draw.
        num_test: patients of the test split.
        validation_fraction: share of the others that goes to val, always stratified.
        seed: of both draws.
        stratified: whether the test split keeps the share of positives.

    Raises:
        DataError: if there are too few patients of a class to draw from.
    """
    # Every actor imports this module, only the cohort stage draws splits: scikit-learn's import
    # would take most of an actor's start.
    from sklearn.model_selection import train_test_split

    ids = sorted(labels)
    outcome = [labels[patient] for patient in ids]
    try:
        rest, test = train_test_split(
            ids, test_size=num_test, random_state=seed, stratify=outcome if stratified else None
        )
        train, val = train_test_split(
            rest,
            test_size=validation_fraction,
            random_state=seed,
            stratify=[labels[patient] for patient in rest],
        )
    except ValueError as error:
        positives = sum(outcome)
        raise DataError(
            f"{len(ids)} patients ({positives} positive, {len(ids) - positives} negative) cannot "
            f"be split into train, val and test ({num_test}): {error}. Use more patients or other "
            "fractions (cohort.num_patients, cohort.test_fraction, cohort.validation_fraction)."
        ) from error
    return {"train": tuple(sorted(train)), "val": tuple(sorted(val)), "test": tuple(sorted(test))}


def check_splits(cohort: Cohort) -> None:
    """Nothing, if every split holds both classes and no patient is in two splits.

    Raises:
        DataError: naming the split, what it holds and what to do.
    """
    seen: set[str] = set()
    for split, ids in cohort.splits.items():
        if repeated := sorted(seen.intersection(ids)):
            raise DataError(f"patients {repeated[:5]} are in two splits of {cohort.name}")
        seen.update(ids)
        positives = sum(cohort.labels[patient] for patient in ids)
        if positives in (0, len(ids)):
            raise DataError(
                f"the {split} split of cohort {cohort.name!r} must hold both classes, but of its "
                f"{len(ids)} patients {positives} are positive. Use more patients "
                "(cohort.num_patients), another cohort.seed, another cohort.positive_fraction, or "
                "cohort.stratified=true."
            )


def summary(cohort: Cohort) -> dict[str, Any]:
    """What `cohort/summary.json` holds: patients, visits and positives of each split, and drops."""
    return {
        "name": cohort.name,
        "task": str(cohort.task),
        "horizon_days": cohort.horizon_days,
        "catalogue_version": CATALOGUE_VERSION,
        "cohort_sha256": cohort_hash(cohort),
        "splits": {
            split: {
                "patients": len(ids),
                "visits": sum(cohort.cases[patient].num_visits for patient in ids),
                "positives": sum(cohort.labels[patient] for patient in ids),
            }
            for split, ids in cohort.splits.items()
        },
        "features": len(cohort.features),
        "dropped": dict(cohort.dropped),
    }


def cohort_hash(cohort: Cohort) -> str:
    """SHA-256 over everything a later stage can depend on; the truth table is not part of it."""
    digest = hashlib.sha256(json.dumps(_describe(cohort), sort_keys=True).encode())
    for patient in sorted(cohort.cases):
        case = cohort.cases[patient]
        background = [patient, str(case.sex), case.age, case.visit_labels, case.visit_days]
        digest.update(json.dumps([*background, cohort.labels[patient]]).encode())
        digest.update(_canonical(case.values).tobytes())
    return digest.hexdigest()


def record_hash(case: PatientCase) -> int:
    """The first 63 bits of a SHA-256 over one patient's record: name, background, times, values.

    Labels of visits are not part of it: they only say the times again.
    """
    background = [case.patient_id, str(case.sex)]
    age = np.nan if case.age is None else case.age
    digest = hashlib.sha256(json.dumps(background).encode())
    for numbers in (age, case.visit_days, case.values):
        digest.update(_canonical(np.asarray(numbers)).tobytes())
    return int.from_bytes(digest.digest()[:8]) >> 1


def choose_patients(
    cohort: Cohort,
    split: str,
    num: int | None,
    balance: bool,
    seed: int,
    exclude: Collection[str] = (),
) -> list[str]:
    """Up to `num` patients of a split in a seeded order, the same for the same arguments.

    Args:
        cohort: where they come from.
        split: train, val or test.
        num: how many; None = all.
        balance: positives and negatives take turns, so that every even prefix is half positive,
            until one class runs out; the other then fills up.
        seed: of the order.
        exclude: patients to leave out.

    Raises:
        DataError: if there is no such split.
    """
    if split not in cohort.splits:
        raise DataError(f"no split {split!r} in cohort {cohort.name!r}: use {list(cohort.splits)}")
    left_out = set(exclude)
    ids = [patient for patient in sorted(cohort.splits[split]) if patient not in left_out]
    order = np.random.default_rng(seed).permutation(len(ids))
    shuffled = [ids[index] for index in order]
    if balance:
        turns = {0: 0, 1: 0}
        keys: dict[str, tuple[int, int]] = {}
        for patient in shuffled:
            label = cohort.labels[patient]
            keys[patient] = (turns[label], 1 - label)
            turns[label] += 1
        shuffled.sort(key=keys.__getitem__)
    return shuffled[:num]


def save_cohort(cohort: Cohort, folder: Path) -> None:
    """Writes `cohort.json`, `patients.parquet`, `visits.parquet` and, if known, `truth.parquet`."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [feature.name for feature in cohort.features]
    cases = list(cohort.cases.values())
    patients = pd.DataFrame(
        {
            "patient_id": pd.Series([case.patient_id for case in cases], dtype="str"),
            "sex": pd.Series([str(case.sex) for case in cases], dtype="str"),
            "age": pd.Series([case.age for case in cases], dtype="float64"),
            "label": pd.Series([cohort.labels[case.patient_id] for case in cases], dtype="int64"),
        }
    )
    values = np.concatenate([case.values for case in cases])
    visits = pd.DataFrame(
        {
            "patient_id": pd.Series(
                [case.patient_id for case in cases for _ in case.visit_days], dtype="str"
            ),
            "visit_label": pd.Series(
                [label for case in cases for label in case.visit_labels], dtype="str"
            ),
            "visit_day": pd.Series(
                [day for case in cases for day in case.visit_days], dtype="float64"
            ),
        }
    )
    columns = pd.DataFrame(values, columns=[VALUE_PREFIX + name for name in names])
    visits = pd.concat([visits, columns], axis=1)
    check_table(patients, patients_schema())
    check_table(visits, visits_schema(names))
    tables = {"patients": patients, "visits": visits}
    if cohort.truth is not None:
        check_table(cohort.truth, truth_schema([*names, AGE_AND_SEX]))
        tables["truth"] = cohort.truth
    for name, table in tables.items():
        with whole_file(folder / f"{name}.parquet") as partial:
            table.to_parquet(partial, index=False)
    with whole_file(folder / "cohort.json") as partial:
        partial.write_text(json.dumps(_describe(cohort), indent=1) + "\n")


def load_cohort(folder: Path) -> Cohort:
    """The cohort that `save_cohort` wrote into a folder, equal to it in every value.

    Raises:
        DataError: if a file is missing, unreadable or not of this project's schema.
    """
    advice = (
        f"Remove {folder.resolve()} and give the same command again: the cohort is built anew, and "
        "what was made from it stays if it comes out the same."
    )
    try:
        description = json.loads((folder / "cohort.json").read_text())
        patients = pd.read_parquet(folder / "patients.parquet")
        visits = pd.read_parquet(folder / "visits.parquet")
        truth_path = folder / "truth.parquet"
        truth = pd.read_parquet(truth_path) if truth_path.exists() else None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder} must hold a cohort (cohort.json, patients.parquet, visits.parquet), but: "
            f"{error}. {advice}"
        ) from error
    version = description.get("format_version") if isinstance(description, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{folder / 'cohort.json'} must have format_version {FORMAT_VERSION}, but has "
            f"{version!r}. {advice}"
        )
    try:
        features = tuple(_feature(entry) for entry in description["features"])
        check_table(patients, patients_schema())
        check_table(visits, visits_schema([feature.name for feature in features]))
        if truth is not None:
            names = [feature.name for feature in features]
            check_table(truth, truth_schema([*names, AGE_AND_SEX]))
        cases = _cases(patients, visits, features)
        splits = {split: tuple(ids) for split, ids in description["splits"].items()}
        if strangers := [each for ids in splits.values() for each in ids if each not in cases]:
            raise DataError(f"its splits have patients without a record, {strangers[:5]}")
        return Cohort(
            name=description["name"],
            task=Task(description["task"]),
            horizon_days=description["horizon_days"],
            features=features,
            cases=cases,
            labels=dict(zip(cases, patients["label"].tolist(), strict=True)),
            splits=splits,
            has_dates=description["has_dates"],
            dropped=description["dropped"],
            truth=truth,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder} must hold a cohort as this release writes it, but: "
            f"{error if isinstance(error, DataError) else repr(error)}. {advice}"
        ) from error


def _cases(
    patients: pd.DataFrame, visits: pd.DataFrame, features: Sequence[Feature]
) -> dict[str, PatientCase]:
    """The cases of the tables on disk."""
    rows = visits.groupby("patient_id", sort=False).indices
    if without := [each for each in patients["patient_id"] if each not in rows]:
        raise DataError(f"visits.parquet has no visit of {without[:5]}")
    if unknown := sorted(set(patients["sex"]) - (sexes := {str(sex) for sex in Sex})):
        raise DataError(f"sex must be one of {sorted(sexes)}, but also is {unknown[:5]}")
    all_values = visits[[VALUE_PREFIX + feature.name for feature in features]].to_numpy(np.float64)
    all_labels, all_days = visits["visit_label"].tolist(), visits["visit_day"].tolist()
    cases: dict[str, PatientCase] = {}
    background = (patients[column].tolist() for column in ("patient_id", "sex", "age"))
    for patient, sex, age in zip(*background, strict=True):
        at = rows[patient]
        cases[patient] = PatientCase(
            patient_id=patient,
            sex=Sex(sex),
            age=None if math.isnan(age) else age,
            visit_labels=tuple(all_labels[index] for index in at),
            visit_days=tuple(all_days[index] for index in at),
            values=all_values[at],
        )
    return cases


def _canonical(values: np.ndarray) -> np.ndarray:
    # One bit pattern for "missing": NaN has many, and a parquet file keeps only one.
    return np.where(np.isnan(values), np.nan, values).astype("<f8")


def _describe(cohort: Cohort) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "name": cohort.name,
        "task": str(cohort.task),
        "horizon_days": cohort.horizon_days,
        "has_dates": cohort.has_dates,
        "features": [asdict(feature) for feature in cohort.features],
        "splits": {split: list(ids) for split, ids in cohort.splits.items()},
        "dropped": dict(cohort.dropped),
    }


def _feature(entry: dict[str, Any]) -> Feature:
    return Feature(
        name=entry["name"],
        kind=FeatureKind(entry["kind"]),
        unit=entry["unit"],
        plausible=None if entry["plausible"] is None else tuple(entry["plausible"]),
        reference=None if entry["reference"] is None else tuple(entry["reference"]),
        categories=tuple((code, word) for code, word in entry["categories"]),
        aliases=tuple(entry["aliases"]),
    )
