"""Which patients each member of an ensemble is trained on, and which it opines on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ehr.config import ExpertSection
from ehr.errors import DataError

FOLD_SEED = 0
"""Of folds that choose a setting shared by all members: ensembles on the same patients choose the
same, so that their agreement is about the members."""

_Input = TypeVar("_Input")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberPlan:
    """Which patients one member is trained on, and with which seed."""

    ensemble: int
    member: int
    """Index within the ensemble; members 2i and 2i + 1 hold complementary halves."""
    train_ids: tuple[str, ...]
    seed: int
    whole: bool = False
    """Trained on all training patients, for the risk of others: beside the half-samples."""

    def training_set(
        self, inputs: Mapping[str, _Input], labels: Mapping[str, int]
    ) -> tuple[list[_Input], list[int]]:
        """Inputs and outcomes of the member's own patients, in the order of the plan."""
        return (
            [inputs[patient] for patient in self.train_ids],
            [labels[patient] for patient in self.train_ids],
        )


def halves(
    ids: Sequence[str], labels: Mapping[str, int], section: ExpertSection
) -> list[MemberPlan]:
    """Training patients of every member of every ensemble.

    Each pair of members splits the patients into two halves with equal shares of positives; a
    single member (`members: 1`, the paper's reading) takes all, and nothing is then out of fold.

    Raises:
        DataError: if a class has too few training patients for every member to see it.
    """
    ids = sorted(ids)
    classes = [[patient for patient in ids if labels[patient] == label] for label in (0, 1)]
    needed = 1 if section.members == 1 else 2
    if min(map(len, classes)) < needed:
        raise DataError(
            f"Training {section.members} expert members needs at least {needed} training patients "
            f"of each class, got {len(classes[0])} negatives and {len(classes[1])} positives. Use "
            "a larger cohort or expert.members=1."
        )
    plans: list[MemberPlan] = []
    for ensemble in range(section.num_ensembles):
        for first in range(0, section.members, 2):
            parts = (
                [ids] if section.members == 1 else _split(classes, (section.seed, ensemble, first))
            )
            plans += [
                MemberPlan(
                    ensemble=ensemble,
                    member=first + offset,
                    train_ids=tuple(sorted(part)),
                    seed=_seed(section.seed, ensemble, first + offset),
                )
                for offset, part in enumerate(parts)
            ]
    return plans


def whole_plans(ids: Sequence[str], section: ExpertSection) -> list[MemberPlan]:
    """The members beside the first ensemble's half-samples that are trained on all patients."""
    count = 0 if section.members == 1 else section.whole_members
    return [
        MemberPlan(
            ensemble=0,
            member=section.members + number,
            train_ids=tuple(sorted(ids)),
            seed=_seed(section.seed, 0, section.members + number),
            whole=True,
        )
        for number in range(count)
    ]


def all_patients(plans: Sequence[MemberPlan]) -> list[str]:
    """Patients that at least one member is trained on, sorted."""
    return sorted({patient for plan in plans for patient in plan.train_ids})


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def _split(classes: Sequence[list[str]], seed_parts: tuple[int, ...]) -> list[list[str]]:
    rng = np.random.default_rng(np.random.SeedSequence(seed_parts))
    shuffled = [[ids[index] for index in rng.permutation(len(ids))] for ids in classes]
    # The odd patient out of one class goes to the other half than that of the other class.
    return [shuffled[0][half::2] + shuffled[1][1 - half :: 2] for half in (0, 1)]
