"""Outcome files of the PhysioNet/CinC Challenge 2012: who died, and whose files must be there.

A set's outcome file lists its stays. Files that are fewer are half of a download or of an
extraction, and would pass as a smaller cohort; so either list must have what the other has.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ehr.cohorts.physionet2012_files import (
    PUBLISHED,
    SETS,
    StayFile,
    challenge_folder,
    present_sets,
    set_source,
)
from ehr.errors import DataError

_ID_COLUMN, _OUTCOME_COLUMN = "RecordID", "In-hospital_death"


def read_outcomes(path: str | None, stays: Sequence[StayFile]) -> dict[str, int]:
    """1 = died in hospital, by record id, from the outcome file of every set in a folder.

    Args:
        path: the folder.
        stays: those of all its sets.

    Raises:
        DataError: if an outcome file is missing or another, a stay has no outcome in it, or it
            lists a stay of which there is no file.
    """
    folder = challenge_folder(path)
    outcomes: dict[str, int] = {}
    for name in present_sets(folder):
        of_set = _outcomes(folder / f"Outcomes-{name}.txt")
        _check_same_stays(folder, name, {s.record_id for s in stays if s.set_name == name}, of_set)
        outcomes.update(of_set)
    return outcomes


def num_listed_without_files(path: str | None) -> dict[str, int]:
    """Stays that an outcome file lists of a set which is not there, by set.

    Raises:
        DataError: if the folder or both sets are missing, or an outcome file is another.
    """
    folder = challenge_folder(path)
    present = present_sets(folder)
    files = {name: folder / f"Outcomes-{name}.txt" for name in SETS if name not in present}
    return {name: len(_outcomes(file)) for name, file in files.items() if file.exists()}


def _check_same_stays(folder: Path, name: str, found: set[str], listed: dict[str, int]) -> None:
    source, outcomes = set_source(folder, name), f"Outcomes-{name}.txt"
    if without := sorted(found - listed.keys()):
        raise DataError(
            f"every stay must have a row in the outcome file of its set, but {len(without)} of "
            f"{len(found)} have none in {outcomes}, such as {without[:5]}. Give the published "
            "files."
        )
    if missing := sorted(listed.keys() - found):
        archive = folder / f"set-{name}.tar.gz"
        way = (
            f"Extract {archive.name} to its end, or remove {str(source)!r}: then the archive is "
            "read"
            if source.is_dir() and archive.exists()
            else f"Download the set again from {PUBLISHED}"
        )
        raise DataError(
            f"{str(source)!r} must hold every stay that {outcomes} lists, but has {len(found)} of "
            f"the {len(listed)}, not {missing[:5]}. {way}."
        )


def _outcomes(path: Path) -> dict[str, int]:
    try:
        # The header as a row: pandas would rename the second of two columns with one name.
        table = pd.read_csv(
            path,
            header=None,
            dtype=str,
            keep_default_na=False,
            skipinitialspace=True,
            encoding="utf-8-sig",
        ).fillna("")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path.name} must lie beside its set, but cannot be read: {error}. Download it from "
            f"{PUBLISHED}."
        ) from error
    header = table.iloc[0].str.strip().tolist()
    if wrong := [name for name in (_ID_COLUMN, _OUTCOME_COLUMN) if header.count(name) != 1]:
        raise DataError(
            f"{str(path)!r} must have the columns {_ID_COLUMN!r} and {_OUTCOME_COLUMN!r}, each "
            f"once, but {wrong} is there {[header.count(name) for name in wrong]} times. Give the "
            "published file."
        )
    table = table.iloc[1:].set_axis(header, axis=1)
    labels, ids = table[_OUTCOME_COLUMN].str.strip(), table[_ID_COLUMN].str.strip()
    if wrong := sorted(set(labels) - {"0", "1"}):
        raise DataError(
            f"{_OUTCOME_COLUMN!r} of {str(path)!r} must be 0 or 1, but also is {wrong[:5]}. Give "
            "the published file."
        )
    if repeated := sorted(set(ids[ids.duplicated()])):
        raise DataError(
            f"{str(path)!r} must list every stay once, but lists {len(repeated)} twice, such as "
            f"{repeated[:5]}. Give the published file."
        )
    return dict(zip(ids, labels.astype(int).tolist(), strict=True))
