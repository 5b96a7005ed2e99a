"""Finding the language model, and refusing what is none."""

import dataclasses
import hashlib
import json
import subprocess
import threading
from datetime import datetime
from pathlib import Path

import pytest

from ehr.errors import ModelError
from ehr.language.chat import ChatFrame
from services import models
from services.config import ModelSection
from services.model_files import verify_file
from services.models import FastTokenizer, resolve_model

TOKENIZER = {
    "version": "1.0",
    "added_tokens": [
        {
            "id": 0,
            "content": "<|end|>",
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
    ],
    "pre_tokenizer": {"type": "WhitespaceSplit"},
    "model": {
        "type": "WordLevel",
        "vocab": {"<|end|>": 0, "?": 1, "fever": 2, "cough": 3},
        "unk_token": "?",
    },
}


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands for the child process; returns the tasks that it was given."""
    tasks: list[str] = []

    def in_child(task: str, source: Path, target: Path) -> None:
        tasks.append(task)
        (target / models.CHAT_FILE).write_text(json.dumps({"prefix": "<u>", "suffix": "<a>"}))

    monkeypatch.setattr(models, "_in_child", in_child)
    return tasks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "a-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def section(name: str | Path, tmp_path: Path) -> ModelSection:
    return ModelSection(name=str(name), cache_dir=str(tmp_path / "cache"))


def test_a_folder_is_used_where_it_lies(folder: Path, tmp_path: Path, rendered: list[str]) -> None:
    model = resolve_model(section(folder, tmp_path))

    assert model.path == folder
    assert model.chat == ChatFrame(prefix="<u>", suffix="<a>")
    assert rendered == ["render"]


def test_the_chat_template_is_rendered_once(
    folder: Path, tmp_path: Path, rendered: list[str]
) -> None:
    first = resolve_model(section(folder, tmp_path))
    second = resolve_model(section(folder, tmp_path))

    assert first == second
    assert rendered == ["render"]


def test_other_weights_are_another_model(folder: Path, tmp_path: Path, rendered: list[str]) -> None:
    before = resolve_model(section(folder, tmp_path))
    (folder / "model.safetensors").write_bytes(b"weighty")
    after = resolve_model(section(folder, tmp_path))

    assert before.sha256 != after.sha256


def test_a_frame_that_shows_the_day_is_rendered_again_on_another(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[dict[str, str]] = []
    clocks = iter([{"%Y": "1999"}, {"%Y": datetime.now().strftime("%Y")}])

    def in_child(task: str, source: Path, target: Path) -> None:
        rendered.append(clock := next(clocks))
        chat = {"prefix": f"Year {clock['%Y']}: ", "suffix": "<a>", "clock": clock}
        (target / models.CHAT_FILE).write_text(json.dumps(chat))

    monkeypatch.setattr(models, "_in_child", in_child)

    first = resolve_model(section(folder, tmp_path))
    assert resolve_model(section(folder, tmp_path)) == first

    assert len(rendered) == 2
    assert first.chat.prefix == f"Year {rendered[1]['%Y']}: "


def test_the_chat_frame_is_part_of_what_keys_stages(
    folder: Path, tmp_path: Path, rendered: list[str]
) -> None:
    model = resolve_model(section(folder, tmp_path))
    dated = dataclasses.replace(model, chat=ChatFrame(prefix="Monday <u>", suffix="<a>"))

    assert model.content == {"files": model.sha256[:16], "chat frame": "<u>{message}<a>"}
    assert dated.content == {**model.content, "chat frame": "Monday <u>{message}<a>"}


def test_a_refusal_of_the_child_process_is_said_as_it_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = subprocess.CompletedProcess([], models.REFUSED, stdout="no such turn", stderr="warned")
    monkeypatch.setattr(models.subprocess, "run", lambda *_, **__: said)

    with pytest.raises(ModelError, match=r"a-model: no such turn$"):
        resolve_model(section(folder, tmp_path))


def test_two_processes_build_a_cache_entry_once(tmp_path: Path) -> None:
    target = tmp_path / "cache" / "entry"
    built: list[Path] = []

    def build(partial: Path) -> None:
        built.append(partial)
        (partial / "model.json").write_text("{}")

    threads = [threading.Thread(target=models._build_once, args=(target, build)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(built) == 1
    assert [path.name for path in target.iterdir()] == ["model.json"]


def test_a_build_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "cache" / "entry"

    def build(partial: Path) -> None:
        (partial / "half").write_text("")
        raise ModelError("no")

    with pytest.raises(ModelError):
        models._build_once(target, build)

    assert [path.name for path in target.parent.iterdir()] == [".entry.lock"]


def test_a_model_file_with_another_hash_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"abc")

    with pytest.raises(ModelError, match=r"expected model.gguf with SHA-256 00.*found ba7816bf"):
        verify_file(file, "00" * 32)


def test_a_packaged_file_with_another_hash_is_refused_before_it_is_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rendered: list[str]
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"abc")
    monkeypatch.setattr(models, "_packaged_file", lambda name, packaged: file)

    with pytest.raises(ModelError, match="SHA-256"):
        resolve_model(section("smollm2-135m", tmp_path))

    assert rendered == []


def test_a_conversion_that_changed_in_the_cache_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rendered: list[str]
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"abc")
    packaged = models.PACKAGED["smollm2-135m"]
    monkeypatch.setattr(models, "_packaged_file", lambda name, packaged: file)
    sha256 = hashlib.sha256(b"abc").hexdigest()
    monkeypatch.setitem(models.PACKAGED, "small", dataclasses.replace(packaged, sha256=sha256))
    model = resolve_model(section("small", tmp_path))
    assert model.content["files"] == f"{sha256[:16]} conversion {models._CONVERSION}"
    assert resolve_model(section("small", tmp_path)) == model

    (model.path / models.CHAT_FILE).write_text("{}")

    with pytest.raises(ModelError, match="its files have changed; remove that folder"):
        resolve_model(section("small", tmp_path))


def test_a_missing_distribution_is_named_with_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = models.PackagedModel(
        distribution="eag-rl-no-such-distribution",
        suffix=".gguf",
        sha256="0" * 64,
        install="pip install it",
        quantisation="none",
        licence="none",
        description="none",
    )
    monkeypatch.setitem(models.PACKAGED, "missing", packaged)

    with pytest.raises(ModelError, match="pip install it"):
        resolve_model(section("missing", tmp_path))


@pytest.mark.parametrize("name", ["smollm2", "/no/such/folder", "./model", "what is this", ""])
def test_a_name_that_means_nothing_is_refused_with_the_known_ones(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="smollm2-135m"):
        resolve_model(section(name, tmp_path))


def test_a_hub_model_that_is_not_here_is_refused_while_the_hub_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    with pytest.raises(ModelError, match="HF_HUB_OFFLINE=0"):
        resolve_model(section("organisation/no-such-model", tmp_path))


def test_a_folder_that_is_not_there_is_named_with_the_place_where_it_was_sought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ModelError, match=f"no such folder .*{tmp_path}.*eag-rl reader"):
        resolve_model(section("runs/reader", tmp_path))


def test_a_folder_without_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()

    with pytest.raises(ModelError, match=r"lacks \*.safetensors"):
        resolve_model(section(folder, tmp_path))


def test_a_tokenizer_file_that_cannot_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0", "post_processor": {"type": "New"}}')

    with pytest.raises(ModelError, match=r"tokenizer\.json to be a tokenizer"):
        resolve_model(section(folder, tmp_path))


def test_tokens_of_a_text_are_its_own_and_nothing_around_it(folder: Path) -> None:
    tokenizer = FastTokenizer(folder)

    assert tokenizer.encode("fever <|end|> cough") == [2, 0, 3]
    assert tokenizer.decode([2, 0]) == "fever <|end|>"
