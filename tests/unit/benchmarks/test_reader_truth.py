from dataclasses import replace

import pytest

from benchmarks.reader_truth import overlaps_with_truth
from ehr.cohorts.loaders import build_cohort
from ehr.config import CohortSection
from ehr.errors import ConfigurationError


def test_unusual_values_hold_some_of_the_truth_and_drawn_names_less():
    cohort = build_cohort(CohortSection(num_patients=400, num_visits=1))

    found = overlaps_with_truth(cohort, seed=0)

    at_random, as_lessons, farthest, constant = found.values()
    assert at_random < as_lessons < farthest < 1
    assert constant > at_random


def test_a_cohort_without_known_truth_is_refused():
    cohort = build_cohort(CohortSection(num_patients=20))
    unknown = replace(cohort, truth=None)

    with pytest.raises(ConfigurationError, match="synthetic"):
        overlaps_with_truth(unknown, seed=0)
