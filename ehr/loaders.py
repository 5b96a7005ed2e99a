"""Which loader reads which source, and the checks that every cohort passes."""

from collections.abc import Callable
from pathlib import Path

from ehr import physionet2012, physionet2012_files, synthetic, tjh
from ehr.cohort import Cohort, check_splits
from ehr.config import CohortSection
from ehr.few_patients import with_fewer_patients

_LOADERS: dict[str, Callable[[CohortSection], Cohort]] = {
    "synthetic": synthetic.generate,
    "tjh": tjh.load,
    "physionet2012": physionet2012.load,
}

_FILES: dict[str, Callable[[CohortSection], list[Path]]] = {
    "synthetic": lambda section: [],
    "tjh": tjh.source_files,
    "physionet2012": physionet2012_files.source_files,
}


def source_files(section: CohortSection) -> list[Path]:
    """The files that a cohort is read from: what its content depends on besides the settings.

    Raises:
        DataError: if one is missing or unreadable.
    """
    return _FILES[section.source](section)


def build_cohort(section: CohortSection) -> Cohort:
    """The cohort a configuration describes, with both classes in each of its disjoint splits.

    Raises:
        DataError: if the source is missing, unreadable or another file, a split has one class, or
            there are too few training patients to choose `cohort.train_patients` from.
    """
    cohort = _LOADERS[section.source](section)
    check_splits(cohort)
    if section.train_patients is not None:
        cohort = with_fewer_patients(cohort, section.train_patients, section.train_patients_seed)
        check_splits(cohort)
    return cohort
