"""The run folder: where everything a run knows is kept, and which stages are done.

A stage is keyed by the configuration it reads and by what its inputs were. Its record
(`RUN/STAGE/stage.json`) says whether that work is running or done, so that the same command
resumes, a second one does nothing, and another configuration is refused instead of mixed in.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ehr.errors import RunFolderError
from ehr.whole_files import write_json
from services.precision import Precision
from training.config.run import MAX_NAME_BYTES, RECORDED, RunConfig
from training.run.versions import commit, versions

SCHEMA_VERSION = 1
"""Version of the run folder's layout; a folder of another version is refused."""

TIME_NOTED_S = 10.0
"""How often the time of a running stage is written down."""

_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]")


class RunFolder:
    """One run's folder on disk.

    Created readable by its owner only: it holds patients' data.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @property
    def run_id(self) -> str:
        """Short name that is unique to this folder: names Serve applications, actors and routes.

        Of the folder's own name only what Serve, Ray and their files take.
        """
        digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:6]
        return f"{_UNUSUAL.sub('-', self.path.name)[:MAX_NAME_BYTES]}-{digest}"

    def create(self) -> None:
        """Makes the folder, mode 0700.

        Raises:
            RunFolderError: if the path is a file, cannot be made, or has another layout version.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not any(self.path.iterdir()):  # made by somebody else, still empty
                self.path.chmod(0o700)
        except OSError as error:
            raise RunFolderError(
                f"cannot make the run folder {self.path}: {error.strerror}; choose another with "
                "--run-dir"
            ) from None
        known = self.path / "config.json"
        if known.exists():
            version = _read_record(known).get("schema_version")
            if version != SCHEMA_VERSION:
                raise RunFolderError(
                    f"{self.path} has layout version {version!r}, this release writes "
                    f"{SCHEMA_VERSION}; choose another folder with --run-dir"
                )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for this process; a second process is told who has it."""
        with (self.path / ".lock").open("a+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.seek(0)
                raise RunFolderError(
                    f"{self.path} is in use by process {stream.read().strip() or 'unknown'}; wait "
                    "for it, or choose another folder with --run-dir"
                ) from None
            stream.truncate(0)
            stream.write(str(os.getpid()))
            stream.flush()
            yield

    def write_config(self, config: RunConfig, model: dict[str, Any] | None) -> None:
        """Writes config.json: the resolved configuration and what it ran with.

        Args:
            config: what the folder's stages are made with; see `Pipeline.described`.
            model: the language model, or None where no stage has needed it; what an earlier run
                of the folder knew stays.
        """
        created = datetime.now(UTC).isoformat(timespec="seconds")
        earlier = self._config_record() or {}
        write_json(
            self.path / "config.json",
            {
                "schema_version": SCHEMA_VERSION,
                "name": config.run.name,
                "created": earlier.get("created", created),
                "commit": commit(),
                "versions": versions(),
                "seeds": {
                    name: section["seed"]
                    for name, section in config.model_dump().items()
                    if "seed" in section
                },
                "model": model or earlier.get("model"),
                "config": config.model_dump(mode="json"),
            },
        )

    def read_config(self, *stages: str) -> RunConfig:
        """The configuration that the folder's stages were made with.

        Args:
            stages: the settings that the first of these which has begun was made with are taken
                from its own record, the others from config.json.

        Raises:
            RunFolderError: if there is none, or it is of another release.
        """
        path = self.path / "config.json"
        record = self._config_record()
        if record is None:
            raise RunFolderError(
                f"expected a run folder, {self.path} has no config.json; name the folder of a run, "
                "such as runs/demo"
            )
        try:
            tree = record["config"]
            for stage in stages:
                if self.stage(stage).read() is not None:
                    self.stage(stage).put_settings(tree)
                    break
            return RunConfig.model_validate(tree, context=RECORDED)
        except (KeyError, TypeError, ValidationError) as error:
            raise RunFolderError(
                f"{path} is not a configuration of this release ({error}); read the folder with "
                "the release that wrote it"
            ) from None

    def recorded_config(self) -> dict[str, Any]:
        """The tree of settings in config.json as it stands there; empty where there is none."""
        return (self._config_record() or {}).get("config", {})

    def _config_record(self) -> dict[str, Any] | None:
        path = self.path / "config.json"
        if not path.exists():
            return None
        record = {"model": None, **_read_record(path)}
        wrong = _wrong_fields(record, {"config": dict, "model": dict | None})
        if not wrong:
            wrong = _wrong_fields(record["config"], dict.fromkeys(record["config"], dict))
        if wrong:
            raise RunFolderError(
                f"{path} is no record of a run (look at {wrong}); restore it, or choose another "
                "folder with --run-dir"
            )
        return record

    def recorded_precision(self) -> Precision | None:
        """The parameter type that `model.dtype=auto` came to when the run began.

        None where nothing was recorded, or it was not `auto`.
        """
        record = self._config_record() or {}
        model = record.get("model") or {}
        asked = record.get("config", {}).get("model", {}).get("dtype")
        if asked != "auto" or model.get("dtype") not in ("bfloat16", "float32"):
            return None
        reason = model.get("dtype_reason", "an earlier version chose it")
        return Precision(parameter_type=model["dtype"], reason=reason)

    def stage(self, name: str) -> "StageRecord":
        """The record of a stage, whether it has run or not."""
        return StageRecord(self.path / name)


class StageRecord:
    """What `RUN/STAGE/stage.json` says about a stage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "stage.json"

    def read(self) -> dict[str, Any] | None:
        """The record, or None where the stage never began."""
        if not self._path.exists():
            return None
        record = {"attempts": 0, "seconds": 0.0, **_read_record(self._path)}
        wrong = _wrong_fields(
            record, {"state": str, "key": dict, "attempts": int, "seconds": float}
        )
        if not wrong:
            wrong = _wrong_fields({"settings": {}, **record["key"]}, {"settings": dict})
        if wrong:
            raise RunFolderError(
                f"{self._path} is no record of a stage (look at {wrong}); restore it, or remove "
                f"{self.folder} to begin again"
            )
        return record

    @property
    def done(self) -> bool:
        """Whether the stage has finished."""
        record = self.read()
        return record is not None and record["state"] == "done"

    def differences(self, key: dict[str, Any]) -> list[str]:
        """What differs between the recorded key and `key`: "section.field: old -> new"."""
        record = self.read()
        if record is None:
            return []
        old, new = _flatten(record["key"]), _flatten(key)
        return [
            f"{name}: {old.get(name, 'absent')!r} -> {new.get(name, 'absent')!r}"
            for name in sorted(old.keys() | new.keys())
            if old.get(name, "absent") != new.get(name, "absent")
        ]

    def put_settings(self, tree: dict[str, Any]) -> None:
        """Puts the settings that the stage was made with into a tree of sections, in place."""
        settings = (self.read() or {}).get("key", {}).get("settings", {})
        for name, value in settings.items():
            section, _, field = name.partition(".")
            if field and section in RunConfig.model_fields:
                fields = tree.setdefault(section, {})
                old = fields.get(field)
                both = isinstance(old, dict) and isinstance(value, dict)
                fields[field] = {**old, **value} if both else value

    def begin(self, key: dict[str, Any]) -> None:
        """Marks the stage as running under `key`; seconds of earlier attempts are kept."""
        earlier = self.read() or {}
        write_json(
            self._path,
            {
                "stage": self.folder.name,
                "state": "running",
                "key": key,
                "attempts": earlier.get("attempts", 0) + 1,
                "seconds": earlier.get("seconds", 0.0),
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "commit": commit(),
            },
        )

    @contextmanager
    def timed(self, every_s: float = TIME_NOTED_S) -> Iterator[None]:
        """Adds the time of the block to the stage's seconds, however it ends.

        It is written down while the block runs: of one that is killed, less than `every_s` is lost.
        """
        record = self.read()
        assert record is not None, "a stage is timed after it began"
        started, ended = time.monotonic(), threading.Event()

        def note() -> None:
            seconds = round(record["seconds"] + time.monotonic() - started, 2)
            with suppress(OSError):  # of a full disk the stage itself has to tell
                write_json(self._path, {**record, "seconds": seconds})

        def note_regularly() -> None:
            while not ended.wait(every_s):
                note()

        thread = threading.Thread(target=note_regularly, name="stage-time", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            note()

    def finish(self, seconds: float, output: str) -> None:
        """Marks the stage as done.

        Args:
            seconds: that no `timed` block has noted.
            output: the hash that the stages after it are keyed by.
        """
        record = self.read()
        assert record is not None, "a stage finishes after it began"
        write_json(
            self._path,
            {
                **record,
                "state": "done",
                "seconds": round(record["seconds"] + seconds, 2),
                "output": output,
                "finished_unix_s": round(time.time(), 1),
            },
        )

    def remove(self) -> None:
        """Deletes the stage's folder; interrupted, it leaves none that looks finished."""
        self._path.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict):
            raise ValueError("it is no JSON object")
        return record
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{path} is unreadable ({error}); restore it, or remove {path.parent} to begin again"
        ) from None


def _wrong_fields(record: dict[str, Any], kinds: Mapping[str, Any]) -> list[str]:
    """Fields that are not there or hold another kind of value; an int is a float, a bool no int."""
    return [
        name
        for name, kind in kinds.items()
        if name not in record
        or isinstance(record[name], bool)
        or not isinstance(record[name], int | float if kind is float else kind)
    ]


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
