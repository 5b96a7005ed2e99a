"""Whom the model of `eag-rl reader` reads about: never a patient of the experiment."""

from dataclasses import replace

import numpy as np

from ehr.cohorts.cohort import Cohort, PatientCase
from ehr.cohorts.few_patients import with_fewer_patients
from ehr.cohorts.loaders import build_cohort
from ehr.cohorts.synthetic import generate
from ehr.config import CohortSection
from ehr.errors import ConfigurationError
from ehr.language.trajectory import NUM_IMPORTANT_FEATURES

OTHER_PATIENTS = 1_000_000
"""Added to `cohort.seed`: the generated patients are others."""


def other_patients(section: CohortSection, num_generated: int) -> Cohort:
    """Patients of the experiment's kind with their outcomes, none of whom it knows.

    Args:
        section: of the experiment.
        num_generated: how many, of a synthetic cohort; a real one has those who are left out.

    Raises:
        ConfigurationError: if a real cohort leaves nobody out.
        DataError: if the cohort cannot be read.
    """
    if section.source == "synthetic":
        other = {"num_patients": num_generated, "seed": section.seed + OTHER_PATIENTS}
        return generate(section.model_copy(update={**other, "train_patients": None}))
    if section.train_patients is None:
        raise ConfigurationError(
            "a reader of real records is trained on the patients that the experiment leaves out: "
            "expected cohort.train_patients, got null. Set it to the number of training patients "
            "that the experiment itself may use"
        )
    everybody = build_cohort(section.model_copy(update={"train_patients": None}))
    known = with_fewer_patients(everybody, section.train_patients, section.train_patients_seed)
    others = {
        patient: case for patient, case in everybody.cases.items() if patient not in known.cases
    }
    if not others:
        raise ConfigurationError(
            "a reader of real records is trained on the patients that the experiment leaves out: "
            f"expected fewer than the {len(everybody.splits['train'])} training patients of cohort "
            f"{everybody.name!r} as cohort.train_patients, got all {section.train_patients} of "
            "them. Lower it"
        )
    return replace(
        everybody, cases=others, labels={patient: everybody.labels[patient] for patient in others}
    )


def generated_alike(cohort: Cohort, section: CohortSection, num_patients: int) -> Cohort:
    """Generated stays in the layout of a real cohort: its visits and those features both have.

    Args:
        cohort: the real one.
        section: whose task and seed are taken.
        num_patients: to generate.

    Raises:
        ConfigurationError: if the generator has fewer of the cohort's features than a lesson names.
    """
    longest = max(cohort.cases.values(), key=lambda case: case.num_visits)
    generated = generate(
        CohortSection(
            task=section.task,
            seed=section.seed + OTHER_PATIENTS,
            num_patients=num_patients,
            num_visits=longest.num_visits,
        )
    )
    column = {feature.name: i for i, feature in enumerate(generated.features)}
    shared = [column.get(feature.name) for feature in cohort.features]
    num_shared = sum(found is not None for found in shared)
    if num_shared < NUM_IMPORTANT_FEATURES:
        raise ConfigurationError(
            f"the generator has {num_shared} of the {len(shared)} features of cohort "
            f"{cohort.name!r}: its stays would be empty records; use --resampled instead of "
            "--generated"
        )

    def alike(case: PatientCase) -> PatientCase:
        values = np.full((case.num_visits, len(shared)), np.nan)
        for i, found in enumerate(shared):
            if found is not None:
                values[:, i] = case.values[:, found]
        return replace(
            case,
            visit_labels=longest.visit_labels[: case.num_visits],
            visit_days=longest.visit_days[: case.num_visits],
            values=values,
        )

    return replace(
        generated,
        features=cohort.features,
        cases={patient: alike(case) for patient, case in generated.cases.items()},
        has_dates=cohort.has_dates,
        truth=None,
    )


def resampled(cohort: Cohort, num_patients: int, seed: int) -> Cohort:
    """Patients put together from a cohort's: each feature's values are those of some other patient.

    One patient gives the outcome, the visits, the age and the sex; every feature, on its own, comes
    from a patient with the same outcome, its last values at the last visits. So few patients make
    many records whose values say about the outcome what they did before, one by one.

    Args:
        cohort: those to put together from; each outcome is somebody's.
        num_patients: to make.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    ids = list(cohort.cases)
    of_outcome = {label: [p for p in ids if cohort.labels[p] == label] for label in (0, 1)}
    cases: dict[str, PatientCase] = {}
    labels: dict[str, int] = {}
    for number in range(1, num_patients + 1):
        patient = ids[rng.integers(len(ids))]
        alike = of_outcome[cohort.labels[patient]]
        case = cohort.cases[patient]
        values = np.full_like(case.values, np.nan)
        for column, drawn in enumerate(rng.integers(len(alike), size=values.shape[1])):
            given = cohort.cases[alike[drawn]].values[-case.num_visits :, column]
            values[case.num_visits - len(given) :, column] = given
        name = f"R{number}"
        cases[name] = replace(case, patient_id=name, values=values)
        labels[name] = cohort.labels[patient]
    return replace(cohort, cases=cases, labels=labels, splits={}, truth=None)
