"""The patients of Stage 2, and the order in which they are drawn."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ehr.cohorts.cohort import Cohort
from ehr.errors import DataError
from ehr.rewards import RewardContext
from training.config.grpo import GrpoSection
from training.config.run import RunConfig
from training.evaluation.selection import require_validation


def require_patients(cohort: Cohort, config: RunConfig) -> None:
    """Refuses a cohort that Stage 2 cannot be run on, before hours go into what comes before it.

    Raises:
        DataError: if a step draws more training patients than there are, or the validation
            patients are too few to choose a step by.
    """
    # torch, which a look at a finished run does without

    train, val = (
        [cohort.labels[patient] for patient in cohort.splits[split]] for split in ("train", "val")
    )
    require_enough_patients(train, config.grpo)
    require_validation(val, config.grpo)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoPatient:
    """A training patient of Stage-2."""

    prompt_token_ids: tuple[int, ...]
    context: RewardContext
    """Label and C_exp; they reach the reward and nothing else."""
    in_stage1: bool
    """Stage-1 trained on this patient: others come first."""

    @property
    def patient_id(self) -> str:
        """The patient."""
        return self.context.patient_id


def require_enough_patients(labels: Sequence[int], section: GrpoSection) -> None:
    """Refuses training patients of whom no batch can be drawn.

    Args:
        labels: outcome of each training patient.
        section: how many a step draws, and whether it balances them.

    Raises:
        DataError: if there are too few for one batch, or of one class with `grpo.balance`.
    """
    num = section.patients_per_step
    if section.balance:
        found, needed = [sum(labels), len(labels) - sum(labels)], [(num + 1) // 2] * 2
    else:
        found, needed = [len(labels)], [num]
    if any(have < want for have, want in zip(found, needed, strict=True)):
        raise DataError(
            f"Stage-2 draws {num} patients a step ({needed} "
            f"{'positives and negatives' if section.balance else 'of any class'}), the "
            f"training patients give {found}; lower grpo.patients_per_step, or set "
            "grpo.balance=false"
        )


class PatientStream:
    """The patients of every step, a function of the seed and the step alone."""

    def __init__(self, patients: Sequence[GrpoPatient], section: GrpoSection) -> None:
        """A stream over `patients`.

        Raises:
            DataError: if there are too few for one batch, or of one class with `grpo.balance`.
        """
        require_enough_patients([p.context.label for p in patients], section)
        self._section = section
        self._kinds = (
            [[p for p in patients if p.context.label == label] for label in (1, 0)]
            if section.balance
            else [list(patients)]
        )

    def draw(self, step: int, refill: int = 0) -> list[GrpoPatient]:
        """The patients of a step (from 1), or of its n-th refill."""
        section = self._section
        batches = 1 + (section.max_refills if section.dynamic_sampling else 0)
        number = (step - 1) * batches + refill
        shares = self._shares(number)
        chosen: list[GrpoPatient] = []
        for index, kind in enumerate(self._kinds):
            start = sum(self._shares(earlier)[index] for earlier in range(number))
            stream = itertools.islice(self._endless(kind), start, None)
            drawn: dict[str, GrpoPatient] = {}
            while len(drawn) < shares[index]:  # a pass may end inside a batch: no one twice in it
                patient = next(stream)
                drawn.setdefault(patient.patient_id, patient)
            chosen += drawn.values()
        return chosen

    def _shares(self, number: int) -> list[int]:
        num = self._section.patients_per_step
        if len(self._kinds) == 1:
            return [num]
        positives = (num + number % 2) // 2  # an odd one out is positive every other time
        return [positives, num - positives]

    def _endless(self, patients: list[GrpoPatient]) -> Iterator[GrpoPatient]:
        for lap in itertools.count():
            shuffled = sorted(patients, key=lambda patient: patient.patient_id)
            random.Random(f"{self._section.seed} patients {lap}").shuffle(shuffled)
            yield from sorted(shuffled, key=lambda patient: patient.in_stage1)
