"""Models that come with this package itself: the one exception to "no weights in the repository".

Each is a folder below `services/shipped`: small, made by this project's own command from generated
patients alone, with a card (`README.md`) that says how. Nothing is converted or kept in the cache.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ehr.errors import ModelError
from services.model_files import verify_file

_FOLDER = Path(__file__).resolve().parent / "shipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShippedModel:
    """A model whose files are package data."""

    sha256: Mapping[str, str]
    """SHA-256 of the files that answers depend on, by name; the weights come first."""
    licence: str
    description: str


SHIPPED = {
    "demo-reader": ShippedModel(
        sha256={
            "model.safetensors": "7f0eadfeccb248d5911fdd4b0d082c3bd2e523d131623df4b7d52f732935ee48",
            "config.json": "de11c161acae2938393a31cf911f43090ce708b9bbcaced782c49d52d8fec99a",
            "tokenizer.json": "a665a74346d5667b16863c5c6a92e42c1c2a7c9c2f97620b402b500cc6e26a1f",
            "chat_frame.json": "b2e5f0e9f136cb6db4d60b2340e9386d39039a60f36b0b22d0bc2b90a45dead4",
        },
        licence="Apache-2.0",
        description="a reader of a million parameters, trained on generated patients",
    )
}
"""By the name that `model.name` has."""


def shipped_folder(name: str) -> Path:
    """The folder of a shipped model, its files as they were shipped.

    Args:
        name: one of `SHIPPED`.

    Raises:
        ModelError: if a file is missing or another one.
    """
    folder = _FOLDER / name
    way_out = (
        "install the package again (pip install --force-reinstall --no-deps), or in a checkout "
        f"restore it (git checkout -- {folder})"
    )
    for file, expected in SHIPPED[name].sha256.items():
        try:
            verify_file(folder / file, expected, way_out)
        except OSError as error:
            raise ModelError(
                f"model {name!r} lacks {folder / file} ({error.strerror}): {way_out}"
            ) from error
    return folder
