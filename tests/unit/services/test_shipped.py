"""The model that the package ships: what it is, and that no other file passes for it."""

import json
import re
import shutil
from pathlib import Path

import pytest

from ehr.errors import ModelError
from services import shipped
from services.config import ModelSection
from services.models import load_tokenizer, resolve_model
from services.shipped import SHIPPED, shipped_folder
from training.config.loading import load_config
from training.reader.folder import reader_settings
from training.reader.size import Naming, ReaderSize

CONFIGS = Path(__file__).parents[3] / "configs"
NAME = "demo-reader"
MOST_BYTES = 4_000_000


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shipped folder where a test may damage it."""
    folder = tmp_path / NAME
    shutil.copytree(shipped_folder(NAME), folder)
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path)
    return folder


def test_it_is_resolved_where_it_lies_without_cache_or_child_process(tmp_path: Path):
    model = resolve_model(ModelSection(name=NAME, cache_dir=str(tmp_path / "cache")))

    assert model.path == shipped_folder(NAME)
    assert model.sha256 == SHIPPED[NAME].sha256["model.safetensors"]
    assert "Apache-2.0" in model.description
    assert not (tmp_path / "cache").exists()
    tokens = load_tokenizer(model.path).encode(f"{model.chat.prefix}Heart Rate{model.chat.suffix}")
    assert len(tokens) < 12


@pytest.mark.parametrize("file", SHIPPED[NAME].sha256)
def test_a_file_with_another_hash_is_refused_with_the_way_out(copied: Path, file: str):
    data = bytearray((copied / file).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / file).write_bytes(data)

    with pytest.raises(ModelError, match=rf"{re.escape(file)} with SHA-256 .*found .*git checkout"):
        resolve_model(ModelSection(name=NAME))


def test_a_missing_file_is_named(copied: Path):
    (copied / "tokenizer.json").unlink()

    with pytest.raises(ModelError, match=r"lacks .*tokenizer\.json .*install the package again"):
        resolve_model(ModelSection(name=NAME))


def test_it_is_small_and_its_card_has_its_hash_and_its_command():
    folder = shipped_folder(NAME)
    card = (folder / "README.md").read_text()

    assert (folder / "model.safetensors").stat().st_size <= MOST_BYTES
    assert SHIPPED[NAME].sha256["model.safetensors"] in card
    assert "eag-rl reader configs/demo.yaml runs/demo_reader --patients 24000" in card


def test_the_demo_asks_what_it_was_taught():
    size = ReaderSize(patients=24000, naming=Naming.ABNORMAL)
    taught = json.loads((shipped_folder(NAME) / "reader.json").read_text())

    assert reader_settings(load_config([CONFIGS / "demo.yaml"]), size) == taught


def test_no_other_weights_are_in_the_packages():
    root = CONFIGS.parent
    found = {
        path.relative_to(root)
        for package in ("ehr", "services", "actors", "training")
        for path in (root / package).rglob("*")
        if path.suffix in {".safetensors", ".bin", ".pt", ".gguf"}
    }

    assert found == {Path("services/shipped/demo-reader/model.safetensors")}
