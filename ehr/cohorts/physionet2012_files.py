"""Files of the PhysioNet/CinC Challenge 2012: one text a stay, in archives or in folders."""

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ehr.errors import DataError
from ehr.whole_files import in_home

SETS = ("a", "b")
"""Sets with published outcomes when the data was laid out; one of them suffices."""

PUBLISHED = "https://physionet.org/content/challenge-2012/1.0.0/"
"""Where the files come from, for errors."""

_HEADER = b"Time,Parameter,Value"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class StayFile:
    """The rows of one stay, not parsed yet."""

    record_id: str
    """By the name of the file."""
    set_name: str
    """One of `SETS`."""
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
    never written out. Files that are no `.txt`, hidden ones, and texts that neither have a number
    as their name nor begin as a stay's are none of a set's.

    Raises:
        DataError: if the folder or both sets are missing, an archive cannot be read or ends early,
            a file is not a stay's, or a stay occurs twice.
    """
    folder = challenge_folder(path)
    stays = [_stay(name, *file) for name in present_sets(folder) for file in _files(folder, name)]
    stays.sort(key=lambda stay: stay.record_id)
    for first, second in pairwise(stays):
        if first.record_id == second.record_id:
            raise DataError(
                f"every stay must occur once, but {first.record_id!r} is in {first.origin!r} and "
                f"in {second.origin!r}. Remove one of them."
            )
    return stays


def stamps(path: str | None) -> tuple[tuple[str, int, int], ...]:
    """Path, time of change and size of every file that a cohort is read from.

    As long as they are the same, so is what the files hold.

    Raises:
        DataError: if the folder or both sets are missing.
    """
    folder = challenge_folder(path)
    files = [folder / f"Outcomes-{name}.txt" for name in SETS]
    for name in present_sets(folder):
        source = set_source(folder, name)
        files += _stay_paths(source) if source.is_dir() else [source]
    found = ((str(file), file.stat()) for file in files if file.exists())
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in found)


def set_source(folder: Path, name: str) -> Path:
    """The folder that a set is read from, or its archive."""
    extracted = folder / f"set-{name}"
    return extracted if extracted.is_dir() else folder / f"set-{name}.tar.gz"


def challenge_folder(path: str | None) -> Path:
    """The folder of the sets.

    Raises:
        DataError: if there is none, or no set in it.
    """
    expected = (
        "cohort.path must name the folder that holds set-a.tar.gz (or set-a/) with Outcomes-a.txt, "
        "the same for b, or both"
    )
    if path is None:
        raise DataError(f"{expected}, but is not set. Add cohort.path=FOLDER to the command.")
    folder = in_home(path)
    try:
        is_folder, reason = folder.is_dir(), "there is no such folder"
    except OSError as error:
        is_folder, reason = False, error.strerror
    if not is_folder:
        raise DataError(
            f"{expected}, but came as {str(folder)!r}: {reason}. Check the path (relative ones "
            f"start at {str(Path.cwd())!r}) and its permissions."
        )
    if not present_sets(folder):
        raise DataError(
            f"{expected}, but {str(folder)!r} holds neither set. Download them from {PUBLISHED}."
        )
    return folder


def present_sets(folder: Path) -> list[str]:
    """Names of the sets that are there, as folders or as archives."""
    return [
        name
        for name in SETS
        if (folder / f"set-{name}").is_dir() or (folder / f"set-{name}.tar.gz").is_file()
    ]


def _files(folder: Path, set_name: str) -> Iterator[tuple[str, str, bytes]]:
    """Name, origin and content of each text file of a set."""
    source = set_source(folder, set_name)
    is_empty = True
    for file in _extracted(source) if source.is_dir() else _archived(source):
        name, _, content = file
        if not name.isdecimal() and not content.removeprefix(_BYTE_ORDER_MARK).startswith(_HEADER):
            continue  # such as README.txt
        is_empty = False
        yield file
    if is_empty:
        raise DataError(
            f"{str(source)!r} must hold one .txt file a stay, but holds none. Download it again "
            f"from {PUBLISHED}, or remove it to read what else is there."
        )


def _is_stay(name: str) -> bool:
    # Hidden ones are what file managers and archivers leave: ._132539.txt beside 132539.txt.
    return name.endswith(".txt") and not name.startswith(".")


def _stay_paths(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_stay(path.name))


def _extracted(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    try:
        for path in _stay_paths(folder):
            yield path.stem, str(path), path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{str(folder)!r} must hold the stays' files, but one cannot be read: {error}. Check "
            "its permissions."
        ) from error


def _archived(archive: Path) -> Iterator[tuple[str, str, bytes]]:
    try:
        plain = gzip.decompress(archive.read_bytes())  # to its end, with the checksum there
        with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as members:
            for member in members:
                name = member.name.rpartition("/")[2]
                if member.isfile() and _is_stay(name):
                    content = plain[member.offset_data : member.offset_data + member.size]
                    yield name.removesuffix(".txt"), f"{archive}/{member.name}", content
            end = members.offset
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(
            f"{str(archive)!r} must be an archive of stays, but cannot be read: "
            f"{type(error).__name__}: {error}. Download it again from {PUBLISHED}."
        ) from error
    # tarfile stops without a word where an archive ends early, and at a header it cannot read.
    if len(plain) < end + tarfile.BLOCKSIZE or plain[end:].strip(b"\0"):
        raise DataError(
            f"{str(archive)!r} must end with empty blocks, as every whole archive does, but what "
            f"comes behind its first {end:,} bytes is "
            f"{'no such block' if len(plain) > end else 'nothing'}: it was cut off, or damaged. "
            f"Download it again from {PUBLISHED}."
        )


def _stay(set_name: str, name: str, origin: str, content: bytes) -> StayFile:
    text = content.removeprefix(_BYTE_ORDER_MARK).replace(b"\r\n", b"\n")
    header, _, rows = text.partition(b"\n")
    if header != _HEADER:
        raise DataError(
            f"{origin!r} must start with the line {_HEADER.decode()!r}, but starts with "
            f"{header[:40].decode(errors='replace')!r}. Give the published files."
        )
    if rows and not rows.endswith(b"\n"):
        rows += b"\n"
    stay = StayFile(record_id=name, set_name=set_name, origin=origin, rows=rows)
    if rows.count(b",") != 2 * stay.num_rows:
        refuse_uneven_lines([stay])
    return stay


def refuse_uneven_lines(stays: Iterable[StayFile]) -> None:
    """Nothing, if every line has three fields.

    Counted for each file, a line with a field too many can hide behind one with a field too few.

    Raises:
        DataError: naming the first other line.
    """
    for stay in stays:
        for number, line in enumerate(stay.rows.split(b"\n")[:-1], start=2):
            if line.count(b",") != 2:
                raise DataError(
                    f"every line of {stay.origin!r} must have three fields, {_HEADER.decode()!r}, "
                    f"but line {number} is {line[:40].decode(errors='replace')!r}. Give the "
                    "published files."
                )
