"""`eag-rl reader` after a stop: it goes on; another reader's folder is refused."""

import dataclasses
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from ehr.errors import RunFolderError
from tests.unit.training.test_reader import CONFIG, SIZE
from training.reader import train
from training.reader.train import write_reader
from training.run.progress import Display

NUM_STEPS = SIZE.patients // SIZE.batch
KILLED_AT, CHECKPOINT_AT = 8, 5

KILLED = f"""
import os, signal, sys
from pathlib import Path
import torch
from tests.unit.training.test_reader import CONFIG, SIZE, SILENT
from training.reader import train

torch.set_num_threads(1)
train._CHECKPOINT_STEPS = {CHECKPOINT_AT}
losses, steps = train._losses, []

def killed(*arguments):
    steps.append(None)
    if len(steps) == {KILLED_AT}:
        os.kill(os.getpid(), signal.SIGKILL)
    return losses(*arguments)

train._losses = killed
train.write_reader(CONFIG, Path(sys.argv[1]), SIZE, SILENT)
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums are in one order, whatever other tests have set; the killed process has one too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    write_reader(CONFIG, folder, SIZE, Display.silent())
    return folder


def said(folder: Path, **sizes: int) -> str:
    """What the command says of a folder."""
    console = Console(record=True, file=io.StringIO(), soft_wrap=True)
    write_reader(CONFIG, folder, dataclasses.replace(SIZE, **sizes), Display(console))
    return console.export_text()


def test_a_killed_training_goes_on_and_ends_with_the_same_weights(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "reader"
    killed = subprocess.run([sys.executable, "-c", KILLED, folder], check=False)
    assert killed.returncode == -9
    assert not (folder / "model.safetensors").exists()
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == CHECKPOINT_AT
    losses, trained = train._losses, []
    monkeypatch.setattr(
        train, "_losses", lambda *arguments: trained.append(None) or losses(*arguments)
    )

    write_reader(CONFIG, folder, SIZE, Display.silent())

    assert len(trained) == NUM_STEPS - CHECKPOINT_AT
    again, expected = (load_file(each / "model.safetensors") for each in (folder, whole))
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())
    assert {file.name for file in folder.iterdir()} == {file.name for file in whole.iterdir()}


def test_a_finished_reader_is_left_as_it_is(whole: Path):
    before = {file.name: file.stat().st_mtime_ns for file in whole.iterdir()}

    assert "is finished; nothing to do" in said(whole)

    assert {file.name: file.stat().st_mtime_ns for file in whole.iterdir()} == before


def test_a_folder_that_was_begun_with_other_settings_is_refused(whole: Path):
    with pytest.raises(RunFolderError, match=r"reader\.seed: 0 there, 1 here.*another folder"):
        said(whole, seed=1)


def test_a_model_of_which_nobody_knows_the_settings_is_refused(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"somebody's")

    with pytest.raises(RunFolderError, match=r"holds a model without reader\.json"):
        said(tmp_path)


def test_a_damaged_checkpoint_is_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(train, "_losses", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        said(tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(b"half")

    with pytest.raises(RunFolderError, match=r"checkpoint\.pt cannot be read.*remove it"):
        said(tmp_path)


def test_its_progress_is_shown(tmp_path: Path):
    assert "reader: started" in said(tmp_path)
