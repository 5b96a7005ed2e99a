"""Ray as a run starts it on one machine."""

import os

import ray

from services.cluster import Cluster
from services.environment import process_environment


def variables_and_folder() -> tuple[dict[str, str], str]:
    import services

    return dict(os.environ), services.__path__[0]


def test_workers_of_a_ray_started_here_inherit_what_they_need(local_ray: Cluster) -> None:
    task = ray.remote(num_cpus=0)(variables_and_folder)

    variables, folder = ray.get(task.remote(), timeout=120)

    wanted = process_environment(verbose=False)
    assert {name: variables.get(name) for name in wanted} == wanted
    assert folder == variables_and_folder()[1]
    # A runtime environment would start a second interpreter for every worker.
    assert ray.get_runtime_context().runtime_env == {}


def test_this_process_keeps_its_own_search_path(local_ray: Cluster) -> None:
    searched = os.environ.get("PYTHONPATH", "").split(os.pathsep)

    assert variables_and_folder()[1].rpartition("/")[0] not in searched
