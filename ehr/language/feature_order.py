"""Other orders of a prompt's feature lines: does an answer hang on where a feature stands (EXP#2)?

Only test prompts have one. Models are trained on the cohort's order, so that a policy which reads
places instead of names loses by it.
"""

import hashlib
import json
import random
from dataclasses import dataclass

from ehr.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureOrder:
    """An order of each patient's features, with an exact share of them elsewhere than before."""

    share: float
    """p of EXP#2 in [0, 1]: of F features, `num_moved(F)` stand at another place."""
    seed: int
    """With the patient's id it decides which features move, and where to."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise DataError(
                f"expected a share of features between 0 and 1, such as 0.25, got {self.share!r}"
            )

    def num_moved(self, num_features: int) -> int:
        """How many features stand elsewhere: p F as Python rounds it, halves to the even number.

        One feature cannot move alone: where p F rounds to 1, two exchange places. A single feature
        has no other place.
        """
        rounded = round(self.share * num_features)
        if rounded == 1:
            rounded = 2
        return rounded if num_features > 1 else 0

    def of(self, patient_id: str, num_features: int) -> list[int]:
        """The patient's columns in the order of the prompt.

        The moved ones are drawn evenly, and so is their arrangement among those that leave none
        where it was. Equal arguments give an equal order, on every machine.

        Args:
            patient_id: whose prompt it is: orders differ between patients.
            num_features: of the cohort.
        """
        # Not Python's hash(), which differs between processes.
        text = json.dumps([self.seed, patient_id])
        generator = random.Random(hashlib.sha256(text.encode()).digest())
        places = sorted(generator.sample(range(num_features), self.num_moved(num_features)))
        moved = list(places)
        # About one arrangement in e leaves none at its place, so this ends soon.
        while any(place == column for place, column in zip(places, moved, strict=True)):
            generator.shuffle(moved)
        order = list(range(num_features))
        for place, column in zip(places, moved, strict=True):
            order[place] = column
        return order
