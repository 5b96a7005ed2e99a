import json

import pytest

from ehr.errors import RunFolderError
from ehr.whole_files import write_folder, write_text
from services.adapters import adapter_checksum
from training.learner.checkpoints import CheckpointFolder, PolicyFolder, VersionRecord
from training.run.metrics_file import MetricsFile


def record(version, adapter=b"weights", attempt=1):
    return VersionRecord(
        run_id="run",
        version=version,
        step=version,
        attempt=attempt,
        sha256=adapter_checksum(adapter),
        scaling=0.5,
        metrics={"loss": 0.1},
    )


def test_a_committed_policy_is_the_latest_and_comes_back_whole(tmp_path):
    policies = PolicyFolder(tmp_path)

    policies.commit(record(0), b"weights", "{}")
    policies.commit(record(1, b"more"), b"more", "{}")

    assert PolicyFolder(tmp_path).latest() == record(1, b"more")
    assert policies.adapter(1) == b"more"


def test_nothing_is_committed_before_the_folder_has_its_name(tmp_path):
    (tmp_path / ".v3.partial").mkdir()
    (tmp_path / ".v3.partial" / "record.json").write_text("{}")

    assert PolicyFolder(tmp_path).latest() is None


def test_repeating_a_commit_keeps_the_first(tmp_path):
    policies = PolicyFolder(tmp_path)
    policies.commit(record(1), b"weights", "{}")

    kept = policies.commit(record(1, b"other", attempt=2), b"other", "{}")

    assert kept == record(1)
    assert policies.adapter(1) == b"weights"


def test_an_adapter_that_changed_after_its_commit_is_noticed(tmp_path):
    policies = PolicyFolder(tmp_path)
    policies.commit(record(1), b"weights", "{}")
    (policies.adapter_folder(1) / "adapter_model.safetensors").write_bytes(b"damaged")

    with pytest.raises(RunFolderError, match="SHA-256"):
        policies.latest()


def test_versions_are_ordered_as_numbers(tmp_path):
    policies = PolicyFolder(tmp_path)

    for version in (2, 9, 10):
        policies.commit(record(version), b"weights", "{}")

    assert policies.latest() == record(10)


def test_only_the_newest_checkpoints_stay(tmp_path):
    checkpoints = CheckpointFolder(tmp_path)

    for step in (1, 2, 3):
        (checkpoints.begin(step) / "file").write_text(str(step))
        checkpoints.finish(step)

    assert checkpoints.steps() == [2, 3]
    assert (checkpoints.path(3) / "file").read_text() == "3"


def test_an_unfinished_checkpoint_does_not_count_and_is_begun_afresh(tmp_path):
    checkpoints = CheckpointFolder(tmp_path)
    (checkpoints.begin(1) / "old").write_text("")

    assert checkpoints.steps() == []
    assert list(checkpoints.begin(1).iterdir()) == []


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    write_folder(tmp_path / "adapter", lambda folder: (folder / "a").write_text("1"))
    write_folder(tmp_path / "adapter", lambda folder: (folder / "b").write_text("2"))

    assert [path.name for path in (tmp_path / "adapter").iterdir()] == ["b"]


def test_a_folder_whose_writing_fails_leaves_the_old_one(tmp_path):
    write_text(tmp_path / "x", "kept", durable=True)
    write_folder(tmp_path / "adapter", lambda folder: (folder / "a").write_text("1"))

    def fail(folder):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder(tmp_path / "adapter", fail)
    assert (tmp_path / "adapter" / "a").read_text() == "1"


def test_a_step_has_one_line_of_metrics_however_often_it_is_written(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")

    for step, loss in ((1, 3.0), (2, 2.0), (2, 1.5)):
        metrics.append({"step": step, "loss": loss})

    assert metrics.lines() == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.5}]


def test_metrics_are_json_without_nan(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")

    with pytest.raises(ValueError, match="JSON"):
        metrics.append({"step": 1, "loss": float("nan")})
    metrics.append({"step": 1, "loss": None})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": None}
