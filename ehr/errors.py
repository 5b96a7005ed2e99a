"""Every error this project raises on purpose.

Each class is also the standard error it resembles, so that callers may catch either. A message
says what was expected, what came and what to do next.
"""

import errno
from collections.abc import Mapping

__all__ = [
    "ConfigurationError",
    "DataError",
    "EagRlError",
    "ModelError",
    "ResourceError",
    "RunFolderError",
    "SearchError",
    "ServiceError",
    "StalePolicyError",
    "TrainingError",
]


class EagRlError(Exception):
    """Root of all errors raised on purpose."""

    exit_status = 1


class ConfigurationError(EagRlError, ValueError):
    """A configuration key or value is wrong."""

    exit_status = 2


class DataError(EagRlError, ValueError):
    """Input data is missing, unreadable or inconsistent."""

    exit_status = 2


class ModelError(EagRlError, ValueError):
    """A language model cannot be found, or is not the file it claims to be."""

    exit_status = 2


class ResourceError(EagRlError, RuntimeError):
    """The cluster, the machine or a port cannot give what the configuration asks for."""

    exit_status = 2


class RunFolderError(EagRlError, RuntimeError):
    """A run folder was written by another configuration, or is in use."""

    exit_status = 2


class StalePolicyError(EagRlError, RuntimeError):
    """A generator or the policy store cannot serve the policy version a request demands."""


class ServiceError(EagRlError, RuntimeError):
    """A service did not answer, or answered with a failure, within its budget."""


class SearchError(EagRlError, RuntimeError):
    """The search cannot go on, for instance because too many usefulness scores are invalid."""


class TrainingError(EagRlError, RuntimeError):
    """A training step cannot be taken: no data, or a reward or gradient that is not finite."""


_RESUME = "then give the same command again: what is finished is kept"

_FULL = f"free space there, or choose another place with --run-dir; {_RESUME}"
_FORBIDDEN = (
    f"let this user read and write there, or choose another place with --run-dir; {_RESUME}"
)
_ADVICE: Mapping[int, str] = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EROFS: _FORBIDDEN,
    errno.ENOENT: f"put it back, or set TMPDIR if a temporary folder is what lacks; {_RESUME}",
    errno.EMFILE: f"allow more open files (ulimit -n); {_RESUME}",
    errno.ENFILE: f"close other programs: the machine has too many files open; {_RESUME}",
    errno.ENOMEM: f"free memory; {_RESUME}",
    errno.ENAMETOOLONG: "choose a shorter path with --run-dir",
    errno.ENOTDIR: "a part of this path is a file; move it, or choose another with --run-dir",
    errno.EISDIR: "a folder stands where a file belongs; move it, or choose another with --run-dir",
}
"""What to do about what the operating system refused, by error number."""


def os_error_text(error: OSError, place: object = None) -> str:
    """What the operating system refused, where, and what to do next, in one line.

    Args:
        error: as it came.
        place: named for a full disk, whose error names no file.
    """
    advice = _ADVICE.get(error.errno or 0, f"mend that; {_RESUME}")
    path = place if error.filename is None and advice == _FULL else error.filename
    # Arrow puts its source files behind the reason
    reason = (error.strerror or str(error) or type(error).__name__).split(". Detail:")[0]
    where = "" if path is None else f" at {str(path)!r}"
    return f"a file or connection failed{where}: {' '.join(reason.split())}; {advice}"


def reason_text(error: BaseException) -> str:
    """An unexpected error inside a message: what the system refused and the fix, or its repr."""
    return os_error_text(error) if isinstance(error, OSError) else repr(error)
