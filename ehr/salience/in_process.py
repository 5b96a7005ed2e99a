"""An expert of a cohort that is in memory: trained and asked in this process, without Ray.

Minutes for thousands of patients; the expert stage spreads the same work over workers.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ehr.cohorts.cohort import Cohort
from ehr.config import ExpertSection
from ehr.expert.ensemble import Opinion, expert_opinions
from ehr.expert.selection import fit_ensembles
from ehr.salience.methods import salience_ensembles

__all__ = ["ExpertSection", "Opinion", "fit_opinions"]


def fit_opinions(cohort: Cohort, section: ExpertSection | None = None) -> dict[str, Opinion]:
    """Risk, scores of all features and salient features of every patient of the splits.

    A training patient's come from the members that were not trained on it. There is one ensemble,
    the first of the section.

    Args:
        cohort: its training patients are learned from, its validation patients choose the epoch
            where the section says so.
        section: members, training and salience method; the defaults are the expert stage's.

    Raises:
        DataError: if the cohort cannot be cross-fitted.
    """
    section = (section or ExpertSection()).model_copy(update={"num_ensembles": 1})
    with one_thread():
        (ensemble,) = fit_ensembles(cohort, section)
        scaler = ensemble.scaler
        inputs = {patient: scaler.transform(case) for patient, case in cohort.cases.items()}
        (scorer,) = salience_ensembles(section.salience, [ensemble], inputs, cohort.labels, section)
        asked = [patient for patients in cohort.splits.values() for patient in patients]
        opinions = expert_opinions(ensemble, [cohort.cases[each] for each in asked], scorer)
    return dict(zip(asked, opinions, strict=True))


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes as in a worker: sums depend on the number of threads, and it has one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
