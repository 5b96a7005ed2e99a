import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ehr.catalogue import BENCHMARK_17
from ehr.cohorts.loaders import build_cohort
from ehr.config import CohortSection
from tests.physionet2012_files import FIRST_ID, stay_text, stays_of, write_folder

RANGES = {feature.name: feature.plausible or (-np.inf, np.inf) for feature in BENCHMARK_17}
FEATURE_OF = {
    "HR": "Heart Rate",
    "SysABP": "Systolic blood pressure",
    "NISysABP": "Systolic blood pressure",
    "Temp": "Temperature",
}
ROWS = st.lists(
    st.tuples(
        st.integers(0, 49 * 60),
        st.sampled_from(sorted(FEATURE_OF)),
        st.sampled_from([-17.8, -1.0, 0.0, 15.0, 36.6, 37.0, 44.0, 80.0, 120.0, 299.0, 310.0]),
    ),
    max_size=30,
)


def bins_by_hand(rows: list[tuple[int, str, float]]) -> dict[tuple[int, str], float]:
    """Last value of each bin and feature, one row after the other."""
    latest: dict[tuple[int, str], tuple[int, bool, float]] = {}
    for minute, parameter, value in rows:
        feature = FEATURE_OF[parameter]
        low, high = RANGES[feature]
        if minute > 48 * 60 or value == -1 or not low <= value <= high:
            continue
        cell = (min(minute // 720, 3), feature)
        found = (minute, parameter == "SysABP", value)
        if cell not in latest or found[:2] >= latest[cell][:2]:
            latest[cell] = found
    return {cell: found[2] for cell, found in latest.items()}


@settings(max_examples=60)
@given(rows=ROWS)
def test_bins_hold_what_one_row_after_the_other_gives(rows):
    texts = [f"{minute // 60:02d}:{minute % 60:02d},{name},{value}" for minute, name, value in rows]
    stays = stays_of() | {str(FIRST_ID): stay_text(FIRST_ID, texts, Height=-1, Weight=-1)}
    with tempfile.TemporaryDirectory() as folder:
        section = CohortSection(
            source="physionet2012",
            path=str(write_folder(Path(folder), stays)),
            features="benchmark",
        )
        cohort = build_cohort(section)

    values = cohort.cases[str(FIRST_ID)].values
    found = {
        (int(visit), cohort.features[column].name): float(values[visit, column])
        for visit, column in zip(*np.nonzero(~np.isnan(values)), strict=True)
    }
    assert found == bins_by_hand(rows)
