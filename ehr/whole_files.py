"""Files and folders that are there whole or not at all: the one way to write them.

What is written appears under its name in one step, so a reader finds the old content or the new,
never a part. `durable=True` also waits until the disk has it: for what a restarted machine must
find, such as checkpoints and which policy is served.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def in_home(path: str) -> Path:
    """A path with `~` and `~user` as a shell reads them; as it stands where there is no such user.

    A shell leaves them alone in quotes and behind `=`.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no home folder is known
        return Path(path)


@contextmanager
def whole_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A path to write to; the file takes its place when all is written.

    Where writing fails, on a full disk for instance, what was begun is removed.

    Args:
        path: of the file; its folder is made.
        durable: whether the disk has it when this returns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two processes may write one file, a worker that was given up and its successor for instance.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        if durable:
            _sync(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Writes UTF-8 as a whole file."""
    with whole_file(path, durable=durable) as partial:
        # lone surrogates, of JSON escapes or of arguments that were no UTF-8, exist in no encoding
        partial.write_text(text, encoding="utf-8", errors="replace")


def write_json(path: Path, value: Any, *, durable: bool = False) -> None:
    """Writes JSON as a whole file.

    Raises:
        ValueError: if a number in it is not finite.
    """
    text = json.dumps(value, indent=2, allow_nan=False, default=str) + "\n"
    write_text(path, text, durable=durable)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes bytes as a whole file."""
    with whole_file(path) as partial:
        partial.write_bytes(data)


def write_folder(target: Path, write: Callable[[Path], object]) -> None:
    """Writes a folder that appears at `target` whole or not at all; the disk has it then.

    Args:
        target: replaced if it exists.
        write: fills the folder it is given.
    """
    write(begin_folder(target))
    finish_folder(target)


def begin_folder(target: Path) -> Path:
    """An empty folder, `partial_folder(target)`, to be filled and then finished."""
    partial = partial_folder(target)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def partial_folder(target: Path) -> Path:
    """Where a folder is filled before it appears; several processes may fill one."""
    return target.with_name(f".{target.name}.partial")


def finish_folder(target: Path) -> None:
    """Puts the folder that was filled in its place, when the disk has it."""
    partial = partial_folder(target)
    for path in [partial, *partial.rglob("*")]:
        _sync(path)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, or of all files below a folder with their relative names."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
