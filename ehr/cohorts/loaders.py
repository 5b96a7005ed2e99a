"""Which loader reads which source, and the checks that every cohort passes."""

from collections.abc import Callable

from ehr.catalogue import Feature
from ehr.cohorts import physionet2012, synthetic, tjh
from ehr.cohorts.cohort import (
    Cohort,
    PatientCase,
    Sex,
    check_splits,
    load_cohort,
    make_splits,
)
from ehr.cohorts.few_patients import with_fewer_patients
from ehr.cohorts.same_patients import require_each_once
from ehr.config import CohortSection, Task

__all__ = [
    "Cohort",
    "CohortSection",
    "Feature",
    "PatientCase",
    "Sex",
    "Task",
    "build_cohort",
    "check_splits",
    "load_cohort",
    "make_splits",
    "release_sources",
    "require_each_once",
    "source_hash",
]

_LOADERS: dict[str, Callable[[CohortSection], Cohort]] = {
    "synthetic": synthetic.generate,
    "tjh": tjh.load,
    "physionet2012": physionet2012.load,
}

_HASHES: dict[str, Callable[[CohortSection], str]] = {
    "tjh": tjh.source_hash,
    "physionet2012": physionet2012.source_hash,
}


def source_hash(section: CohortSection) -> str | None:
    """Hash of what a cohort is read from, besides the settings; None = it is generated.

    It is of the content that the loader reads: names, places and stray files change nothing.

    Raises:
        DataError: if a file is missing, unreadable or another.
    """
    hash_of = _HASHES.get(section.source)
    return None if hash_of is None else hash_of(section)


def release_sources() -> None:
    """Lets go of files that `source_hash` has read, where no cohort will be built of them."""
    physionet2012.release()


def build_cohort(section: CohortSection) -> Cohort:
    """The cohort a configuration describes, with both classes in each of its disjoint splits.

    Raises:
        DataError: if the source is missing, unreadable or another file, a record is there under two
            ids, a split has one class, or there are too few training patients to choose
            `cohort.train_patients` from.
    """
    cohort = _LOADERS[section.source](section)
    require_each_once(cohort)
    check_splits(cohort)
    if section.train_patients is not None:
        cohort = with_fewer_patients(cohort, section.train_patients, section.train_patients_seed)
        check_splits(cohort)
    return cohort
