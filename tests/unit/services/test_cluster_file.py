"""The cluster launcher's file."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def launcher() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_accepts_the_cluster_file(launcher: dict[str, Any]) -> None:
    prepared = prepare_config(launcher)

    validate_config(prepared)


def test_a_misspelt_field_would_be_noticed(launcher: dict[str, Any]) -> None:
    misspelt = {**launcher, "setup_comands": []}

    with pytest.raises(Exception, match="setup_comands"):
        validate_config(prepare_config(misspelt))


def test_the_dashboard_is_not_open_to_the_network(launcher: dict[str, Any]) -> None:
    starts = [str(each) for each in launcher["head_start_ray_commands"]]

    assert any("--dashboard-host=127.0.0.1" in each for each in starts)


def test_runs_and_data_are_not_copied_to_the_cluster(launcher: dict[str, Any]) -> None:
    assert {"**/runs", "**/data"} <= set(launcher["rsync_exclude"])
