"""How much of the truth a reader knows from its lessons: `benchmarks.reader_truth CONFIG`.

A reader's lessons name features without any knowledge of outcomes or salience. With
`--naming abnormal` they name unusual values sooner, and unusual values carry much of the risk of a
generated patient. So an answer that only repeats its lessons overlaps with the true features. This
prints by how much, beside the best set of names for everybody: what training adds is what lies
above these.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ehr.catalogue import AGE_AND_SEX
from ehr.cohorts.cohort import Cohort
from ehr.cohorts.loaders import build_cohort
from ehr.cohorts.truth import true_sets
from ehr.errors import ConfigurationError
from ehr.language.trajectory import NUM_IMPORTANT_FEATURES
from ehr.salience.agreement import jaccard
from training.config.loading import load_config
from training.experiments.answers import constant_set
from training.reader.lessons import (
    Naming,
    deviations,
    drawn_names,
    recorded,
)


def overlaps_with_truth(cohort: Cohort, seed: int) -> dict[str, float]:
    """Mean Jaccard of names with the true features, over the test patients.

    Args:
        cohort: a generated one.
        seed: of the names that lessons draw.

    Returns:
        By rule: names drawn at random, names as `Naming.ABNORMAL` draws them, the five values
        farthest from the mean, and the best single set for everybody.

    Raises:
        ConfigurationError: if the cohort is not generated: its truth is not known.
    """
    if cohort.truth is None:
        raise ConfigurationError(
            f"only a generated cohort has true features, got {cohort.name!r}; give a configuration "
            "with cohort.source=synthetic"
        )
    patients = cohort.splits["test"]
    truth = dict(zip(patients, true_sets(cohort, patients, NUM_IMPORTANT_FEATURES), strict=True))
    unusual = deviations(cohort)

    def lesson(naming: Naming) -> Callable[[str], list[str]]:
        generator = random.Random(seed)

        def names(patient: str) -> list[str]:
            known = [*recorded(cohort.cases[patient], cohort), "Age"]
            scores = unusual[patient] if naming is Naming.ABNORMAL else None
            return drawn_names(known, scores, generator)[:NUM_IMPORTANT_FEATURES]

        return names

    def farthest(patient: str) -> list[str]:
        values = unusual[patient]
        return sorted(values, key=values.__getitem__, reverse=True)[:NUM_IMPORTANT_FEATURES]

    def mean_overlap(names_of: Callable[[str], list[str]]) -> float:
        named = {patient: _canonical(names_of(patient)) for patient in patients}
        return float(np.mean([jaccard(named[each], truth[each]) for each in patients]))

    return {
        "drawn at random": mean_overlap(lesson(Naming.ANY)),
        "drawn as lessons with --naming abnormal": mean_overlap(lesson(Naming.ABNORMAL)),
        "the five values farthest from the mean": mean_overlap(farthest),
        "the best set for everybody": constant_set(
            list(truth.values()), NUM_IMPORTANT_FEATURES
        ).overlap,
    }


def _canonical(names: list[str]) -> frozenset[str]:
    return frozenset(AGE_AND_SEX if name == "Age" else name for name in names)


def main() -> None:
    """Prints a line a rule."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parser.add_argument("--seed", type=int, default=0, help="of the names that lessons draw")
    parser.add_argument("--json", type=Path, help="write the same here")
    arguments = parser.parse_args()
    config = load_config([arguments.config], arguments.overrides)
    found = overlaps_with_truth(build_cohort(config.cohort), arguments.seed)
    for rule, overlap in found.items():
        print(f"{overlap:.3f}  {rule}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
