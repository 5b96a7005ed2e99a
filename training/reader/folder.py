"""The folder of a reader: what it was begun with, and its training's checkpoint.

`reader.json` holds the settings that the model follows from; `checkpoint.pt` the weights, the
optimizer and the step, until the model is there. Each is there whole or not at all.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from ehr.cohorts.loaders import source_hash
from ehr.errors import RunFolderError
from ehr.whole_files import begin_folder, partial_folder, whole_file, write_json
from training.config.run import RunConfig
from training.reader.size import ReaderSize

_RECORD, _CHECKPOINT, _WEIGHTS = "reader.json", "checkpoint.pt", "model.safetensors"
_ANYWHERE = {"path", "num_patients"}
"""Settings of a cohort that say nothing of whom a reader reads about."""

Settings = dict[str, dict[str, Any]]
"""By section, as JSON has them."""


def reader_settings(config: RunConfig, size: ReaderSize) -> Settings:
    """Everything that the weights follow from.

    Raises:
        DataError: if a real cohort's files are missing or unreadable.
    """
    steps = config.prompt.kind == "question_decomposition"
    settings = {
        "reader": {field: getattr(size, field) for field in size.__slots__},
        "cohort": config.cohort.model_dump(mode="json", exclude=_ANYWHERE),
        "prompt": config.prompt.model_dump(mode="json"),
        "answers": {
            "max_new_tokens": config.grpo.max_new_tokens,
            "max_depth": config.search.max_depth if steps else None,
            "max_model_len": config.model.max_model_len,
        },
        "files": {"hash": source_hash(config.cohort)},
    }
    return json.loads(json.dumps(settings))


class ReaderFolder:
    """Where a reader is kept while it is trained, and afterwards.

    Args:
        path: of the folder; it may not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def is_begun(self) -> bool:
        """Whether tokenizer and settings are there."""
        return (self.path / _RECORD).is_file()

    @property
    def is_finished(self) -> bool:
        """Whether the model is there."""
        return (self.path / _WEIGHTS).is_file()

    def require(self, settings: Settings) -> None:
        """Refuses a folder that holds another reader.

        Raises:
            RunFolderError: if it was begun with other settings, or nobody knows with which.
        """
        way_out = "name another folder, or remove this one to train it anew"
        if not self.is_begun:
            if self.is_finished:
                raise RunFolderError(
                    f"{self.path} holds a model without {_RECORD}, which says what it was trained "
                    f"with: {way_out}"
                )
            return
        made = json.loads((self.path / _RECORD).read_text())
        others = [
            f"{section}.{key}: {made.get(section, {}).get(key)!r} there, {value!r} here"
            for section, keys in settings.items()
            for key, value in keys.items()
            if made.get(section, {}).get(key) != value
        ]
        if others:
            raise RunFolderError(
                f"the reader in {self.path} was begun with other settings ({'; '.join(others)}): "
                f"{way_out}"
            )

    def begin(self, settings: Settings) -> None:
        """Notes the settings, once the tokenizer is there."""
        write_json(self.path / _RECORD, settings, durable=True)

    def save_checkpoint(
        self, model: torch.nn.Module, optimizer: torch.optim.Adam, step: int
    ) -> None:
        """Keeps where the training is.

        Args:
            model: after the step.
            optimizer: after it.
            step: how many are done.
        """
        state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        with whole_file(self.path / _CHECKPOINT, durable=True) as partial:
            torch.save(state, partial)

    def load_checkpoint(self, model: torch.nn.Module, optimizer: torch.optim.Adam) -> int:
        """Puts model and optimizer where the training was; returns the steps that are done.

        Raises:
            RunFolderError: if the checkpoint cannot be read.
        """
        path = self.path / _CHECKPOINT
        if not path.is_file():
            return 0
        try:
            state = torch.load(path, weights_only=True)
        except Exception as error:  # of a damaged file it raises nearly everything
            raise RunFolderError(
                f"the checkpoint {path} cannot be read ({error}): remove it, and the training "
                "begins anew"
            ) from error
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return state["step"]

    def finish(self, model: Any) -> None:
        """Writes the model, its weights last, and removes the checkpoint."""
        partial = begin_folder(self.path / "model")
        model.save_pretrained(partial)
        for file in sorted(partial.iterdir(), key=lambda each: each.name == _WEIGHTS):
            with whole_file(self.path / file.name, durable=True) as target:
                shutil.copyfile(file, target)
        shutil.rmtree(partial_folder(self.path / "model"))
        (self.path / _CHECKPOINT).unlink(missing_ok=True)
