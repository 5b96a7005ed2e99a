"""Parts of the trajectories table: written patient by patient, merged one at a time."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from actors.search_folder import SearchFolder
from actors.search_result import PatientResult, SearchCounts
from actors.trajectories import COLUMNS, SearchedTrajectory, trajectories_table
from tests.unit.actors.test_search_totals import summary


def row(patient_id: str, length: int = 3, **changes: object) -> SearchedTrajectory:
    return replace(
        SearchedTrajectory(
            patient_id=patient_id,
            text="pH fell",
            token_ids=tuple(range(length)),
            prompt_token_ids=tuple(range(length)),
            model_written=(True,) * length,
            reward=-0.5,
            value_kind="reward",
            reward_cls=-0.6,
            reward_att=0.1,
            readable=True,
            correct=False,
            probability=0.4,
            features=("Heart Rate", "pH"),
            num_steps=2,
            visit_count=1,
            path="0/1",
            rank=1,
            kept=True,
        ),
        **changes,
    )


def write(folder: SearchFolder, *rows: SearchedTrajectory) -> None:
    patient_id = rows[0].patient_id
    folder.write(
        PatientResult(
            patient_id=patient_id,
            trajectories=rows,
            nodes=(),
            counts=SearchCounts(),
            root_value=-0.5,
        ),
        summary(patient_id),
    )


def test_the_merged_table_is_that_of_all_rows_together(tmp_path: Path) -> None:
    folder = SearchFolder(tmp_path)
    unreadable = row("b/1", probability=None, features=(), readable=False, kept=False)
    write(folder, unreadable)
    write(folder, row("a"), row("a", rank=2, kept=False))

    folder.merge(["a", "b/1"])

    merged = pd.read_parquet(tmp_path / "trajectories.parquet")
    whole = trajectories_table([row("a"), row("a", rank=2, kept=False), unreadable])
    whole.to_parquet(tmp_path / "whole.parquet", index=False)
    pd.testing.assert_frame_equal(merged, pd.read_parquet(tmp_path / "whole.parquet"))
    assert list(merged.columns) == list(COLUMNS)


def test_a_patient_is_finished_when_its_summary_and_its_part_are_there(tmp_path: Path) -> None:
    folder = SearchFolder(tmp_path)
    assert folder.finished("b/1") is None
    write(folder, row("b/1"))
    assert folder.finished("b/1") == summary("b/1")

    (tmp_path / "patients" / "b%2F1.parquet").unlink()

    assert folder.finished("b/1") is None


def test_a_summary_of_another_form_means_searching_again(tmp_path: Path) -> None:
    folder = SearchFolder(tmp_path)
    write(folder, row("a"))

    path = tmp_path / "patients" / "a.json"
    path.write_text(json.dumps({"patient_id": "a", "trajectories": [{"text": "old"}]}))

    assert folder.finished("a") is None


def test_merging_holds_one_part_in_memory_whatever_their_number(tmp_path: Path) -> None:
    folder = SearchFolder(tmp_path)
    patients = [f"p{i}" for i in range(24)]
    for patient in patients:
        write(folder, row(patient, length=10_000))
    seen: list[int] = []

    def watched() -> Iterator[str]:
        for patient in patients:
            seen.append(pa.total_allocated_bytes())
            yield patient

    folder.merge(watched())

    assert pq.ParquetFile(tmp_path / "trajectories.parquet").metadata.num_rows == 24
    # A part has 170 kB in memory. Arrow's threads free one late at times, so the least of the last
    # ones tells whether what earlier parts held is kept.
    assert min(seen[18:]) <= max(seen[:3]) + 400_000


def test_a_summary_does_not_grow_with_what_the_trajectories_say(tmp_path: Path) -> None:
    folder = SearchFolder(tmp_path)
    write(folder, row("a"))
    write(folder, row("b", length=50_000, text="pH fell " * 10_000))

    sizes = [(tmp_path / "patients" / f"{name}.json").stat().st_size for name in "ab"]

    assert sizes[0] == sizes[1]
