"""Fewer patients to learn from: nested choices of training patients, with validation in proportion.

A curve over training sizes compares methods on the same patients, and each size contains the
smaller ones: what changes from point to point is what was added, not who was drawn.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ehr.cohorts.cohort import Cohort
from ehr.errors import DataError

LEAST_OF_A_CLASS = 2
"""Training patients of each class: one for either half of the expert's pairs of members."""

_STREAM = 2012
"""Parts this draw's random numbers from others with the same seed."""


def with_fewer_patients(cohort: Cohort, num_train: int, seed: int) -> Cohort:
    """The cohort with `num_train` training patients; who is left out is in no split and no table.

    The choice keeps the share of positives, as far as two patients of each class allow, and a
    smaller choice with the same seed is part of a larger one. Validation patients are labelled
    patients too: they are cut to the same share, with at least one of each class, or a curve over
    training sizes would count only some of what a method has learnt from. Test patients stay.
    `dropped` counts those that were left out.

    Args:
        cohort: with its splits.
        num_train: training patients to keep.
        seed: of the choice.

    Raises:
        DataError: if the training split has fewer patients, or fewer than two of a class.
    """
    train, val = cohort.splits["train"], cohort.splits["val"]
    num_positives = sum(cohort.labels[patient] for patient in train)
    rarer = min(num_positives, len(train) - num_positives)
    least = 2 * LEAST_OF_A_CLASS
    if not least <= num_train <= len(train) or rarer < LEAST_OF_A_CLASS:
        raise DataError(
            f"cohort.train_patients must lie between {least} and the {len(train)} training "
            f"patients of cohort {cohort.name!r}, with at least {LEAST_OF_A_CLASS} of each class, "
            f"got {num_train} (the split has {num_positives} positives). Use null for all of "
            "them, or a larger cohort."
        )
    kept = {
        "train": _choose(cohort, train, num_train, LEAST_OF_A_CLASS, seed),
        "val": _choose(cohort, val, max(2, round(len(val) * num_train / len(train))), 1, seed),
    }
    splits = {split: kept.get(split, ids) for split, ids in cohort.splits.items()}
    staying = {patient for ids in splits.values() for patient in ids}
    truth = cohort.truth
    if truth is not None:
        truth = truth[truth["patient_id"].isin(list(staying))].reset_index(drop=True)
    left_out = {
        "training_patients_left_out_to_learn_from_fewer": len(train) - len(splits["train"]),
        "validation_patients_left_out_in_proportion": len(val) - len(splits["val"]),
    }
    return replace(
        cohort,
        cases={patient: case for patient, case in cohort.cases.items() if patient in staying},
        labels={patient: label for patient, label in cohort.labels.items() if patient in staying},
        splits=splits,
        dropped={**cohort.dropped, **left_out},
        truth=truth,
    )


def _choose(cohort: Cohort, ids: Sequence[str], num: int, least: int, seed: int) -> tuple[str, ...]:
    """`num` of the patients, at least `least` of each class that has so many; sorted."""
    num = min(num, len(ids))
    rng = np.random.default_rng([seed, _STREAM])
    order = [sorted(ids)[index] for index in rng.permutation(len(ids))]
    positives = [patient for patient in order if cohort.labels[patient] == 1]
    negatives = [patient for patient in order if cohort.labels[patient] == 0]
    # Rounded half up: with `num` this and the rest grow by one or stay, so that choices nest.
    share = int(num * len(positives) / len(ids) + 0.5) if ids else 0
    num_positives = min(max(share, least), num - least, len(positives))
    chosen = positives[:num_positives] + negatives[: num - num_positives]
    return tuple(sorted(chosen))
