"""Names as language models write them, against `data/feature_names.tsv`.

The file was written by hand from clinical knowledge: it says what a name means, not what the
matcher answers, so no command rewrites it.
"""

import csv
from pathlib import Path

import pytest

from ehr.catalogue import AGE_AND_SEX, BENCHMARK_17, TJH_LABS
from ehr.catalogue.names import FeatureMatcher

NONE = "(none)"
FEATURES = {"benchmark": BENCHMARK_17, "tjh": TJH_LABS}
MATCHERS = {cohort: FeatureMatcher(features) for cohort, features in FEATURES.items()}

with (Path(__file__).parent / "data" / "feature_names.tsv").open(encoding="utf-8") as file:
    ROWS = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.mark.parametrize(
    ("cohort", "written", "name"), [tuple(row.values()) for row in ROWS], ids=lambda text: text
)
def test_a_written_name_means_what_a_clinician_says(cohort, written, name):
    assert (MATCHERS[cohort].match(written) or NONE) == name


@pytest.mark.parametrize("cohort", FEATURES)
def test_the_table_writes_every_feature_in_several_ways_and_names_that_mean_none(cohort):
    named = [row["name"] for row in ROWS if row["cohort"] == cohort]

    expected = {feature.name for feature in FEATURES[cohort]} | {AGE_AND_SEX, NONE}

    assert set(named) == expected
    assert all(named.count(name) >= 2 for name in expected)
