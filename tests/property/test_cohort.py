import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ehr.catalogue import Feature, FeatureKind
from ehr.cohorts.cohort import (
    Cohort,
    PatientCase,
    Sex,
    choose_patients,
    cohort_hash,
    load_cohort,
    make_splits,
    save_cohort,
)
from ehr.cohorts.few_patients import with_fewer_patients
from ehr.cohorts.synthetic import generate
from ehr.config import CohortSection, Task
from ehr.errors import DataError

FEATURES = (
    Feature(name="patient_id", unit="\u00b5g/L", plausible=(0.1, 2.0), aliases=("a b", "c")),
    Feature(
        name="level",
        kind=FeatureKind.CATEGORICAL,
        categories=((0.0, "none"), (1.0, "some")),
        reference=(0.0, 0.0),
    ),
)
NUMBERS = st.floats(allow_nan=True, allow_infinity=False, width=64)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)


@st.composite
def cases(draw, patient_id: str) -> PatientCase:
    rows = draw(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=4))
    gaps = draw(
        st.lists(
            st.floats(min_value=0, max_value=400, allow_nan=False),
            min_size=len(rows),
            max_size=len(rows),
        )
    )
    return PatientCase(
        patient_id=patient_id,
        sex=draw(st.sampled_from(Sex)),
        age=draw(st.none() | st.floats(min_value=0, max_value=120)),
        visit_labels=tuple(draw(TEXTS) for _ in rows),
        visit_days=tuple(float(day) for day in np.cumsum(gaps)),
        values=np.array(rows, dtype=np.float64),
    )


@st.composite
def cohorts(draw) -> Cohort:
    ids = draw(st.lists(TEXTS, min_size=1, max_size=5, unique=True))
    return Cohort(
        name=draw(TEXTS),
        task=draw(st.sampled_from(Task)),
        horizon_days=draw(st.integers(1, 365)),
        features=FEATURES,
        cases={patient: draw(cases(patient)) for patient in ids},
        labels={patient: draw(st.integers(0, 1)) for patient in ids},
        splits={"train": tuple(sorted(ids)), "val": (), "test": ()},
        has_dates=draw(st.booleans()),
        dropped=draw(st.dictionaries(TEXTS, st.integers(0, 9), max_size=2)),
    )


def described(case: PatientCase) -> tuple[object, ...]:
    return (case.patient_id, case.sex, case.age, case.visit_labels, case.visit_days)


@settings(max_examples=40)
@given(cohort=cohorts())
def test_saving_and_loading_gives_the_same_cohort(cohort):
    with tempfile.TemporaryDirectory() as folder:
        save_cohort(cohort, Path(folder))
        restored = load_cohort(Path(folder))

    assert [described(case) for case in restored.cases.values()] == [
        described(case) for case in cohort.cases.values()
    ]
    for patient, case in cohort.cases.items():
        np.testing.assert_array_equal(restored.cases[patient].values, case.values)
    assert (restored.name, restored.task, restored.horizon_days, restored.has_dates) == (
        cohort.name,
        cohort.task,
        cohort.horizon_days,
        cohort.has_dates,
    )
    assert (restored.features, restored.labels) == (cohort.features, cohort.labels)
    assert (restored.splits, restored.dropped) == (cohort.splits, cohort.dropped)
    assert cohort_hash(restored) == cohort_hash(cohort)


@settings(max_examples=60)
@given(
    outcomes=st.lists(st.integers(0, 1), min_size=10, max_size=80),
    share=st.floats(0.2, 0.6),
    seed=st.integers(0, 10_000),
    stratified=st.booleans(),
)
def test_splits_are_disjoint_sorted_and_complete(outcomes, share, seed, stratified):
    labels = {f"p{index:03d}": outcome for index, outcome in enumerate(outcomes)}

    try:
        splits = make_splits(
            labels,
            num_test=round(len(labels) * share),
            validation_fraction=0.25,
            seed=seed,
            stratified=stratified,
        )
    except DataError:
        assume(False)

    dealt = [patient for ids in splits.values() for patient in ids]
    assert sorted(dealt) == sorted(labels)
    assert all(list(ids) == sorted(ids) for ids in splits.values())
    assert len(splits["test"]) == round(len(labels) * share)


@settings(max_examples=60)
@given(
    cohort=cohorts(),
    num=st.integers(0, 8),
    balance=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_chosen_patients_are_unique_members_of_the_split(cohort, num, balance, seed):
    chosen = choose_patients(cohort, "train", num, balance, seed)

    assert len(chosen) == len(set(chosen)) == min(num, len(cohort.splits["train"]))
    assert set(chosen) <= set(cohort.splits["train"])
    assert choose_patients(cohort, "train", num, balance, seed) == chosen


@st.composite
def split_cohorts(draw) -> Cohort:
    """Two or more of each class to train on, at least one of each in the other splits."""
    splits: dict[str, tuple[str, ...]] = {}
    labels: dict[str, int] = {}
    for split, least in (("train", 2), ("val", 1), ("test", 1)):
        counts = [draw(st.integers(least, 30)) for _ in range(2)]
        ids = [f"{split}{index:02d}" for index in range(sum(counts))]
        outcomes = draw(st.permutations([0] * counts[0] + [1] * counts[1]))
        labels |= dict(zip(ids, outcomes, strict=True))
        splits[split] = tuple(ids)
    case = PatientCase(
        patient_id="",
        sex=Sex.UNKNOWN,
        age=None,
        visit_labels=("1 h",),
        visit_days=(0.0,),
        values=np.zeros((1, len(FEATURES))),
    )
    return Cohort(
        name="split",
        task=Task.MORTALITY,
        horizon_days=30,
        features=FEATURES,
        cases=dict.fromkeys(labels, case),
        labels=labels,
        splits=splits,
        has_dates=False,
    )


@settings(max_examples=60)
@given(cohort=split_cohorts(), sizes=st.lists(st.integers(4, 60), min_size=2), seed=st.integers(0))
def test_fewer_training_patients_are_nested_and_hold_both_classes(cohort, sizes, seed):
    train = cohort.splits["train"]
    sizes = sorted(min(size, len(train)) for size in sizes)

    chosen = [with_fewer_patients(cohort, size, seed) for size in sizes]

    share = sum(cohort.labels[patient] for patient in train) / len(train)
    for size, few in zip(sizes, chosen, strict=True):
        positives = sum(few.labels[patient] for patient in few.splits["train"])
        assert len(few.splits["train"]) == size
        assert 2 <= positives <= size - 2
        assert abs(positives - share * size) <= 2
        assert sum(few.labels[patient] for patient in few.splits["val"]) > 0
        assert few.splits["test"] == cohort.splits["test"]
    for smaller, larger in pairwise(chosen):
        for split in ("train", "val"):
            assert set(smaller.splits[split]) <= set(larger.splits[split])


@settings(max_examples=5)
@given(seed=st.integers(0, 1000), days=st.lists(st.integers(3, 800), min_size=2, max_size=3))
def test_whoever_is_readmitted_within_a_horizon_is_within_a_longer_one(
    seed: int, days: list[int]
) -> None:
    cohorts_by_horizon = [
        generate(
            CohortSection(seed=seed, num_patients=60, task=Task.READMISSION, horizon_days=horizon)
        )
        for horizon in sorted(days)
    ]

    positives = [
        {patient for patient, label in cohort.labels.items() if label}
        for cohort in cohorts_by_horizon
    ]
    assert all(shorter <= longer for shorter, longer in pairwise(positives))
    assert len({cohort_hash(replace_labels(each)) for each in cohorts_by_horizon}) == 1


def replace_labels(cohort: Cohort) -> Cohort:
    """The cohort without what a horizon may change."""
    labels = dict.fromkeys(cohort.labels, 0)
    return replace(cohort, labels=labels, splits={}, horizon_days=30)
