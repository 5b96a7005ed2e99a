"""Files of the PhysioNet/CinC Challenge 2012: one text a stay, in archives or in folders."""

import gzip
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath

import pandas as pd

from ehr.config import CohortSection
from ehr.errors import DataError

SETS = ("a", "b")
"""Sets with published outcomes when the data was laid out; one of them suffices."""

_HEADER = b"Time,Parameter,Value"
_ID_COLUMN, _OUTCOME_COLUMN = "RecordID", "In-hospital_death"
_PUBLISHED = "https://physionet.org/content/challenge-2012/1.0.0/"


@dataclass(frozen=True, slots=True, kw_only=True)
class StayFile:
    """The rows of one stay, not parsed yet."""

    record_id: str
    origin: str
    """Path of the file, that of its archive before it."""
    rows: bytes
    """Lines "time,parameter,value", each ended by a line feed, without the header."""

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self.rows.count(b"\n")


def read_stays(path: str | None) -> list[StayFile]:
    """The stays of every set in a folder, sorted by id.

    A set is read from its folder `set-a/` where there is one, else from `set-a.tar.gz`, which is
    streamed and never written out.

    Raises:
        DataError: if the folder or both sets are missing, an archive cannot be read, a file is not
            a stay's, or a stay occurs twice.
    """
    folder = _folder(path)
    stays = [_stay(*file) for name in _present(folder) for file in _files(folder, name)]
    stays.sort(key=lambda stay: stay.record_id)
    for first, second in pairwise(stays):
        if first.record_id == second.record_id:
            raise DataError(
                f"every stay must occur once, but {first.record_id!r} is in {first.origin!r} and "
                f"in {second.origin!r}. Remove one of them."
            )
    return stays


def source_files(section: CohortSection) -> list[Path]:
    """Archives or folders of the sets that are there, and their outcome files.

    Raises:
        DataError: if the folder or both sets are missing.
    """
    folder = _folder(section.path)
    found: list[Path] = []
    for name in _present(folder):
        extracted = folder / f"set-{name}"
        found.append(extracted if extracted.is_dir() else folder / f"set-{name}.tar.gz")
        found += folder.glob(f"Outcomes-{name}.txt")  # reading says it if there is none
    return found


def read_outcomes(path: str | None, record_ids: Sequence[str]) -> dict[str, int]:
    """1 = died in hospital, by record id, from the outcome file of every set in a folder.

    Args:
        path: the folder.
        record_ids: stays that must have an outcome; there may be outcomes of others.

    Raises:
        DataError: if an outcome file is missing or another, or a stay has no outcome in it.
    """
    folder = _folder(path)
    outcomes: dict[str, int] = {}
    for name in _present(folder):
        outcomes.update(_outcomes(folder / f"Outcomes-{name}.txt"))
    if without := [record for record in record_ids if record not in outcomes]:
        raise DataError(
            f"every stay must have a row in the outcome file of its set, but {len(without)} of "
            f"{len(record_ids)} have none, such as {without[:5]}. Give the published files."
        )
    return outcomes


def _folder(path: str | None) -> Path:
    expected = (
        "cohort.path must name the folder that holds set-a.tar.gz (or set-a/) with Outcomes-a.txt, "
        "the same for b, or both"
    )
    if path is None:
        raise DataError(f"{expected}, but is not set. Add cohort.path=FOLDER to the command.")
    folder = Path(path).expanduser()
    try:
        is_folder, reason = folder.is_dir(), "there is no such folder"
    except OSError as error:
        is_folder, reason = False, error.strerror
    if not is_folder:
        raise DataError(
            f"{expected}, but came as {str(folder)!r}: {reason}. Check the path (relative ones "
            f"start at {str(Path.cwd())!r}) and its permissions."
        )
    if not _present(folder):
        raise DataError(
            f"{expected}, but {str(folder)!r} holds neither set. Download them from {_PUBLISHED}."
        )
    return folder


def _present(folder: Path) -> list[str]:
    return [
        name
        for name in SETS
        if (folder / f"set-{name}").is_dir() or (folder / f"set-{name}.tar.gz").is_file()
    ]


def _files(folder: Path, name: str) -> Iterator[tuple[str, str, bytes]]:
    """Name, origin and content of each text file of a set."""
    extracted, archive = folder / f"set-{name}", folder / f"set-{name}.tar.gz"
    found = _extracted(extracted) if extracted.is_dir() else _archived(archive)
    is_empty = True
    for file in found:
        is_empty = False
        yield file
    if is_empty:
        source = extracted if extracted.is_dir() else archive
        raise DataError(
            f"{str(source)!r} must hold one .txt file a stay, but holds none. Download it again "
            f"from {_PUBLISHED}, or remove it to read the other set alone."
        )


def _extracted(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    for path in sorted(folder.glob("*.txt")):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{str(path)!r} must be a stay's file, but cannot be read: {error}. Check its "
                "permissions."
            ) from error
        yield path.stem, str(path), content


def _archived(archive: Path) -> Iterator[tuple[str, str, bytes]]:
    try:
        # Not tarfile's own "r|gz", which takes an archive that was cut off for a shorter one.
        with gzip.open(archive) as plain, tarfile.open(fileobj=plain, mode="r|") as members:
            for member in members:
                inside = PurePosixPath(member.name)
                if not member.isfile() or inside.suffix != ".txt":
                    continue
                content = members.extractfile(member)
                assert content is not None
                yield inside.stem, f"{archive}/{inside}", content.read()
            # Reading to the end checks the archive's checksum.
            while plain.read(1 << 20):
                continue
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(
            f"{str(archive)!r} must be an archive of stays, but cannot be read: "
            f"{type(error).__name__}: {error}. Download it again from {_PUBLISHED}."
        ) from error


def _stay(name: str, origin: str, content: bytes) -> StayFile:
    header, _, rows = content.replace(b"\r\n", b"\n").partition(b"\n")
    if header != _HEADER:
        raise DataError(
            f"{origin!r} must start with the line {_HEADER.decode()!r}, but starts with "
            f"{header[:40].decode(errors='replace')!r}. Give the published files."
        )
    if rows and not rows.endswith(b"\n"):
        rows += b"\n"
    num_lines, num_commas = rows.count(b"\n"), rows.count(b",")
    if num_commas != 2 * num_lines:
        raise DataError(
            f"every line of {origin!r} must have three fields, {_HEADER.decode()!r}, but "
            f"{num_lines} lines have {num_commas} commas. Give the published files."
        )
    return StayFile(record_id=name, origin=origin, rows=rows)


def _outcomes(path: Path) -> dict[str, int]:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path.name} must lie beside its set, but cannot be read: {error}. Download it from "
            f"{_PUBLISHED}."
        ) from error
    if missing := [name for name in (_ID_COLUMN, _OUTCOME_COLUMN) if name not in table.columns]:
        raise DataError(
            f"{str(path)!r} must have the columns {_ID_COLUMN!r} and {_OUTCOME_COLUMN!r}, but "
            f"lacks {missing}. Give the published file."
        )
    if wrong := sorted(set(table[_OUTCOME_COLUMN].str.strip()) - {"0", "1"}):
        raise DataError(
            f"{_OUTCOME_COLUMN!r} of {str(path)!r} must be 0 or 1, but also is {wrong[:5]}. Give "
            "the published file."
        )
    ids = table[_ID_COLUMN].str.strip()
    return dict(zip(ids, table[_OUTCOME_COLUMN].astype(int).tolist(), strict=True))
