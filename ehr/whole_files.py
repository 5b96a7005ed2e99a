"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def in_home(path: str) -> Path:
    """A path with `~` and `~user` as a shell reads them; as it stands where there is no such user.

    A shell leaves them alone in quotes and behind `=`.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no home folder is known
        return Path(path)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to; the file takes its place when all is written.

    Readers see the old file or the whole new one. Where writing fails, on a full disk for
    instance, what was begun is removed.

    Args:
        path: of the file.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
