"""A cluster that does not answer is said before a run works for it."""

import socket
from pathlib import Path

import pytest

from ehr.errors import ResourceError
from training.config.loading import load_config
from training.config.run import RunConfig
from training.main_job import run_stages

TINY = Path(__file__).parents[3] / "configs" / "tiny.yaml"


@pytest.fixture
def config() -> RunConfig:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    return load_config(
        [TINY], [f"cluster.address=127.0.0.1:{port}", "cluster.connect_timeout_s=0.2"]
    )


def test_a_run_is_refused_before_its_first_stage(tmp_path: Path, config: RunConfig) -> None:
    with pytest.raises(ResourceError, match=r"no Ray cluster at .*cluster\.address"):
        run_stages(config, tmp_path, target="expert", redo=None)

    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_what_is_there_is_not_removed_for_it(tmp_path: Path, config: RunConfig) -> None:
    run_stages(config, tmp_path, target="cohort", redo=None)

    with pytest.raises(ResourceError, match="no Ray cluster at"):
        run_stages(config, tmp_path, target="expert", redo="cohort")

    assert (tmp_path / "cohort" / "summary.json").exists()


def test_a_stage_that_needs_no_cluster_asks_for_none(
    tmp_path: Path, config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    run_stages(config, tmp_path, target="cohort", redo=None)

    assert (tmp_path / "cohort" / "summary.json").exists()
    assert "cluster" not in capsys.readouterr().err
