"""What a learner leaves on disk: policies and checkpoints, each there whole or not at all.

Layout under a stage's folder:

    policies/v3/adapter/         peft format
    policies/v3/record.json      VersionRecord; the folder's appearance is the commit
    checkpoint/step_3/           the learner after step 3, what a restarted group loads
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ehr.errors import RunFolderError
from ehr.whole_files import (
    begin_folder,
    finish_folder,
    partial_folder,
    write_folder,
)

ADAPTER_FILE = "adapter_model.safetensors"
"""peft's name for the weights of an adapter."""
ADAPTER_CONFIG_FILE = "adapter_config.json"
"""peft's name for its configuration."""

_KEPT_CHECKPOINTS = 2
"""The committed one, and the one that may be written before the next commit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRecord:
    """One committed policy."""

    run_id: str
    version: int
    """0 = Stage-1's policy; step n makes version n."""
    step: int
    attempt: int
    """Which start of the learner group made it."""
    sha256: str
    """Of the adapter's weight file."""
    scaling: float
    """lora_alpha / rank."""
    metrics: dict[str, Any]
    """The step's metrics as far as they were known at the commit."""


class PolicyFolder:
    """The committed policies of a run, numbered from 0 without gaps."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def latest(self) -> VersionRecord | None:
        """The newest committed policy, None before the first commit.

        Raises:
            RunFolderError: if its adapter is not the one that was committed.
        """
        versions = _numbered(self._folder, "v")
        if not versions:
            return None
        path = self._folder / f"v{versions[-1]}" / "record.json"
        record = VersionRecord(**json.loads(path.read_text()))
        if hashlib.sha256(self.adapter(record.version)).hexdigest() != record.sha256:
            raise RunFolderError(
                f"expected the adapter of {str(path.parent)!r} to have SHA-256 {record.sha256}; it "
                "changed after its commit; remove that folder to go on from the version before"
            )
        return record

    def adapter_folder(self, version: int) -> Path:
        """A committed adapter in peft's format."""
        return self._folder / f"v{version}" / "adapter"

    def adapter(self, version: int) -> bytes:
        """Content of a committed adapter's weight file."""
        return (self.adapter_folder(version) / ADAPTER_FILE).read_bytes()

    def commit(self, record: VersionRecord, adapter: bytes, adapter_config: str) -> VersionRecord:
        """Make a policy permanent; repeating a commit changes nothing.

        Returns:
            The committed record: the given one, or the one that was there.
        """
        latest = self.latest()
        if latest is not None and latest.version >= record.version:
            return latest

        def write(folder: Path) -> None:
            (folder / "adapter").mkdir()
            (folder / "adapter" / ADAPTER_FILE).write_bytes(adapter)
            (folder / "adapter" / ADAPTER_CONFIG_FILE).write_text(adapter_config)
            (folder / "record.json").write_text(json.dumps(asdict(record), indent=2) + "\n")

        write_folder(self._folder / f"v{record.version}", write)
        return record


class CheckpointFolder:
    """Checkpoints of a learner group by the number of steps they contain."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        return _numbered(self._folder, "step_")

    def path(self, step: int) -> Path:
        """Where the checkpoint after `step` is, or will be."""
        return self._folder / f"step_{step}"

    def save(self, step: int, rank: int, write: Callable[[Path], None]) -> None:
        """Writes the checkpoint of `step`; every rank calls it.

        Args:
            step: of the learner.
            rank: who calls.
            write: fills the folder together with the other ranks, and waits for them.
        """
        if rank == 0:
            self.begin(step)
        write(self.partial(step))
        if rank == 0:
            self.finish(step)

    def begin(self, step: int) -> Path:
        """An empty folder to write the checkpoint of `step` into; one rank calls it."""
        return begin_folder(self.path(step))

    def partial(self, step: int) -> Path:
        """The folder that `begin` made, for the other ranks."""
        return partial_folder(self.path(step))

    def finish(self, step: int) -> None:
        """Make the checkpoint of `step` complete and drop old ones; one rank calls it."""
        finish_folder(self.path(step))
        for old in self.steps()[:-_KEPT_CHECKPOINTS]:
            shutil.rmtree(self.path(old))


def _numbered(folder: Path, prefix: str) -> list[int]:
    names = [path.name.removeprefix(prefix) for path in folder.glob(f"{prefix}*")]
    return sorted(int(name) for name in names if name.isdigit())
