"""Small files in the layout of the PhysioNet/CinC Challenge 2012, for tests."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

HEADER = "Time,Parameter,Value"
NUM_STAYS = 24
FIRST_ID = 132539


def stay_text(
    record_id: int, rows: Sequence[str] = ("01:00,HR,80",), **descriptors: float | str
) -> str:
    """One stay's file: header, six descriptors at 00:00, then the rows."""
    known = {"RecordID": record_id, "Age": 60, "Gender": 1, "Height": 170, "ICUType": 3}
    known |= {"Weight": 80} | descriptors
    lines = [HEADER, *(f"00:00,{name},{value}" for name, value in known.items()), *rows]
    return "\n".join(lines) + "\n"


def stays_of(num_stays: int = NUM_STAYS, first_id: int = FIRST_ID) -> dict[str, str]:
    """Text of each stay by its id; heart rates differ between them."""
    ids = range(first_id, first_id + num_stays)
    return {str(number): stay_text(number, [f"01:00,HR,{60 + number % 50}"]) for number in ids}


def outcomes_text(ids: Sequence[str], length_of_stay: int = 5) -> str:
    """An outcome file in which the second half of the ids died."""
    lines = ["RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"]
    half = len(ids) // 2
    lines += [f"{i},6,1,{length_of_stay},-1,{int(n >= half)}" for n, i in enumerate(ids)]
    return "\n".join(lines) + "\n"


def write_folder(folder: Path, stays: Mapping[str, str], name: str = "a") -> Path:
    """Writes an extracted set with its outcomes; comes back with the folder."""
    extracted = folder / f"set-{name}"
    extracted.mkdir(parents=True, exist_ok=True)
    for record_id, text in stays.items():
        (extracted / f"{record_id}.txt").write_bytes(text.encode())
    (folder / f"Outcomes-{name}.txt").write_text(outcomes_text(list(stays)))
    return folder


def write_archive(
    folder: Path,
    stays: Mapping[str, str],
    name: str = "a",
    again: Sequence[str] = (),
    stray: Sequence[str] = (),
) -> Path:
    """Writes a set as its archive, with its outcomes; comes back with the folder.

    Args:
        folder: of the archive.
        stays: text of each stay by its id.
        name: of the set.
        again: ids of stays that are written a second time.
        stray: names of files that are no stays.
    """
    files = [(f"{stay}.txt", stays[stay].encode()) for stay in (*stays, *again)]
    files += [(each, b"\0stray") for each in stray]
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / f"set-{name}.tar.gz", "w:gz") as archive:
        root = tarfile.TarInfo(f"set-{name}")
        root.type = tarfile.DIRTYPE
        archive.addfile(root)
        for file, content in files:
            member = tarfile.TarInfo(f"set-{name}/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (folder / f"Outcomes-{name}.txt").write_text(outcomes_text(list(stays)))
    return folder
