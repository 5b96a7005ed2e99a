"""What the sync benchmark makes of its seconds and rows."""

from pathlib import Path

import pytest

from benchmarks.sync.__main__ import (
    earlier_rows,
    keep,
    quantiles,
    ratios,
)


def test_the_99th_percentile_is_the_nearest_rank() -> None:
    assert quantiles("sync", [float(i) for i in range(1, 101)]) == {
        "sync_p50_s": 50.5,
        "sync_p99_s": 99.0,
    }
    assert quantiles("sync", [3.0, 1.0, 2.0])["sync_p99_s"] == 3.0


def test_a_row_takes_the_place_of_the_one_about_the_same(tmp_path: Path) -> None:
    file = tmp_path / "sync.json"
    rows: list[dict] = []

    keep(rows, {"part": "storm", "replicas": 3, "syncs": 1}, file)
    keep(rows, {"part": "storm", "replicas": 3, "syncs": 2}, file)

    (row,) = earlier_rows(file)
    assert row["syncs"] == 2


def test_ratios_need_both_rows() -> None:
    one = {"part": "pause", "mode": "merged", "replicas": 1, "pause_p50_s": 1.0}
    one |= {"adapter_bytes": 1, "model_bytes": 4}
    two = one | {"replicas": 2, "pause_p50_s": 3.0}

    assert ratios([one]) == {"adapter_bytes_vs_model_bytes": pytest.approx(0.25)}
    assert ratios([one, two])["pause_p50_two_replicas_vs_one"] == pytest.approx(3.0)
