"""Whether `evaluate.other_cohort` has other patients than those that a run learns from."""

from collections.abc import Mapping
from typing import Any

from ehr.cohorts.cohort import Cohort
from ehr.cohorts.loaders import build_cohort
from ehr.cohorts.same_patients import same_patients
from ehr.cohorts.schema_map import SchemaMap, map_schema
from ehr.errors import DataError
from training.config.run import RunConfig
from training.readable import finite_number, format_number


def read_other_cohort(config: RunConfig) -> Cohort | None:
    """The cohort of `evaluate.other_cohort`; None where there is none.

    Raises:
        DataError: if it cannot be read.
    """
    section = config.evaluate.other_cohort
    return None if section is None else build_cohort(section)


def require_another_cohort(cohort: Cohort, other: Cohort) -> SchemaMap:
    """The map between a run's cohort and another one that can be asked about.

    Whoever learns from a patient knows the outcome: training patients, and those of validation,
    must not be among the other cohort's test patients.

    Raises:
        DataError: if they are, or if the cohorts share no feature.
    """
    used = (*cohort.splits["train"], *cohort.splits["val"])
    test = other.splits["test"]
    if met := same_patients(cohort, used, other, test):
        raise DataError(
            f"evaluate.other_cohort must have other test patients than those that the models learn "
            f"from, but {len(met):,} of its {len(test):,} test patients, such as {met[:5]}, are "
            f"among the {len(used):,} training and validation patients of cohort "
            f"{cohort.name!r}. Give other patients' files, or set evaluate.other_cohort=null."
        )
    schema = map_schema(cohort.features, other.features)
    if not schema.pairs:
        raise DataError(
            f"evaluate.other_cohort must share features with cohort {cohort.name!r}, "
            f"but {other.name!r} has none of them. Use another cohort."
        )
    return schema


def own_patients_sentence(described: Mapping[str, Any]) -> str:
    """Says how many of another cohort's test patients are the run's own; empty if none are.

    Args:
        described: `cohort` of `other_cohort.json`; earlier versions did not count them.
    """
    num = finite_number(described.get("own_test_patients"))
    if not num:
        return ""
    return (
        f"{num:,.0f} of its {format_number(described.get('test_patients'), 0)} test patients are "
        "test patients of the run's own cohort: for them it is no other hospital."
    )
