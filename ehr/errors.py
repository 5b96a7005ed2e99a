"""Every error this project raises on purpose.

Each class is also the standard error it resembles, so that callers may catch either. A message
says what was expected, what came and what to do next.
"""


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
