"""What a run asks of a cluster, and ports."""

import json
import socket

import pytest

from ehr.errors import ResourceError
from services.cluster import Requirement, check_requirements, joined_environment, port_is_free
from services.environment import process_environment


def asked(cpus: float, gpus: float = 0.0, count: int = 1) -> Requirement:
    return Requirement(name="generator", count=count, cpus=cpus, gpus=gpus)


def test_what_fits_passes() -> None:
    check_requirements([asked(2.0, count=3), asked(0.5)], [{"CPU": 4.0}, {"CPU": 2.5}])


def test_too_many_are_refused_with_a_table_of_asked_and_available() -> None:
    with pytest.raises(ResourceError) as caught:
        check_requirements([asked(2.0, count=5)], [{"CPU": 8.0}])

    lines = [" ".join(line.split()) for line in str(caught.value).splitlines()]
    assert "generator 5 2 0 10 0" in lines
    assert "asked 10 0" in lines
    assert "available 8 0" in lines


def test_one_that_no_node_can_hold_is_named() -> None:
    with pytest.raises(ResourceError, match="no single node is large enough for generator"):
        check_requirements([asked(6.0)], [{"CPU": 4.0}, {"CPU": 4.0}])


def test_gpus_on_a_machine_without_any_are_refused() -> None:
    with pytest.raises(ResourceError, match="asks for more than the cluster has"):
        check_requirements([asked(1.0, gpus=1.0)], [{"CPU": 8.0}])


def test_variables_that_a_job_brings_are_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"runtime_env": {"env_vars": {"HF_HUB_OFFLINE": "0"}, "working_dir": "gcs://x"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))

    assert joined_environment(verbose=False)["env_vars"].keys() == (
        process_environment(verbose=False).keys() - {"HF_HUB_OFFLINE"}
    )
    assert "py_modules" not in joined_environment(verbose=False)


def test_who_is_no_job_brings_variables_and_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)

    environment = joined_environment(verbose=False)

    assert environment["env_vars"] == process_environment(verbose=False)
    assert len(environment["py_modules"]) == 4


def test_a_port_with_a_listener_is_not_free() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        assert not port_is_free("127.0.0.1", server.getsockname()[1])


def test_a_port_without_a_listener_is_free() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]

    assert port_is_free("127.0.0.1", port)
