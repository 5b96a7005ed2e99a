"""Ray itself: started here or joined, checked for resources, and left without a trace."""

import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import serve

from ehr.errors import ResourceError
from ehr.whole_files import in_home
from services.cluster_address import CLIENT_SCHEME, host_and_port, require_cluster
from services.config import ClusterSection, ServeSection
from services.environment import process_environment
from services.policy_store import NAMESPACE

logger = logging.getLogger(__name__)

_LEAST_CPUS = 8
"""Logical CPUs of a Ray started here: more than a small machine has, because most actors wait for
each other, and Ray only counts what they book."""
_SERVE_CONTROLLER = "SERVE_CONTROLLER_ACTOR"
"""Ray's own name of the actor behind a running Serve."""
_START_ATTEMPTS = 3
"""Ray gives its own processes 15 s to come up, which a machine under load may need more than."""
_PORTS_TRIED = 50
_CLOSE_TIMEOUT_S = 30.0
"""How long applications may take to end before Ray is ended under them."""
_PACKAGES = ("ehr", "services", "actors", "training")
_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray for the entry point of a submitted job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """Something a run places on the cluster."""

    name: str
    count: int
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The Ray that this process is connected to."""

    dashboard_url: str | None
    """Address of the dashboard, if there is one."""
    started_here: bool
    """Whether this process started Ray, and ends it."""

    def close(self) -> None:
        """Disconnect; a Ray that was started here ends, with every process of it.

        Applications and stores on a shared cluster outlive this: stop a run's own by name first.
        """
        if self.started_here and ray.is_initialized():
            # `serve.shutdown` kills its controller under pending calls, about which Ray complains
            # on standard error; the controller ends with Ray anyway.
            # A signal to the whole process group has ended Ray before us, and then nobody answers:
            # hence the thread and its deadline.
            deleting = threading.Thread(target=_delete_applications, daemon=True)
            deleting.start()
            deleting.join(_CLOSE_TIMEOUT_S)
        ray.shutdown()


def _delete_applications() -> None:
    for application in serve.status().applications:
        serve.delete(application)


def is_submitted_job() -> bool:
    """Whether this process is the entry point of `ray job submit`."""
    return _JOB_VARIABLE in os.environ


def connect(
    section: ClusterSection,
    verbose: bool = False,
    tell: Callable[[str], None] = logger.info,
) -> Cluster:
    """Join the configured cluster, or start Ray on this machine.

    Args:
        section: where, and how large a Ray started here is.
        verbose: show Ray's and the workers' logs.
        tell: hears which cluster is joined, before anything waits for it.

    Raises:
        ResourceError: if the cluster cannot be reached, or Ray cannot start.
    """
    _quieten(verbose)
    address = _named_cluster(section)
    with _errors_about(address):
        if address is None:
            return _start(section, verbose)
        _wait_for("joining", address, section, tell)
        return _join(address, verbose)


def require_named_cluster(
    section: ClusterSection, tell: Callable[[str], None] = logger.info
) -> None:
    """Returns once the cluster that is to be joined answers; at once if Ray is to be started here.

    Args:
        section: where.
        tell: hears which cluster is looked for, before anything waits for it.

    Raises:
        ResourceError: if the cluster cannot be reached.
    """
    address = _named_cluster(section)
    if address is not None:
        with _errors_about(address):
            _wait_for("looking for", address, section, tell)


def _named_cluster(section: ClusterSection) -> str | None:
    """The cluster that is to be joined, as it is written; None = Ray is started here."""
    address = section.address or os.environ.get("RAY_ADDRESS")
    if address == "local" or (address is None and not is_submitted_job()):
        return None
    return address or "auto"


def _wait_for(
    doing: str, address: str, section: ClusterSection, tell: Callable[[str], None]
) -> None:
    where = _joined_address(address)
    tell(f"{doing} the Ray cluster at {where} (at most {section.connect_timeout_s:g} s)")
    require_cluster(where, section.connect_timeout_s)


@contextmanager
def _errors_about(address: str | None) -> Iterator[None]:
    """What Ray raises when a cluster is joined, or started (address None), as `ResourceError`."""
    try:
        yield
    except ResourceError:
        raise
    except Exception as error:  # Ray raises bare Exceptions when a node does not come up
        ray.shutdown()
        if address is not None:
            raise ResourceError(
                f"could not join the cluster at {address}: {error}; check that it is one of Ray "
                f"{ray.__version__}, that a node of it runs on this machine, and, where it asks "
                "for a token, that RAY_AUTH_MODE=token is set and `ray get-auth-token` prints the "
                "cluster's own"
            ) from error
        raise ResourceError(
            f"could not start Ray on this machine: {error}; check free memory and the space under "
            "/tmp and /dev/shm (cluster.temp_dir, cluster.object_store_gib)"
        ) from error


def start_serve(section: ServeSection, listen: bool, shared: bool) -> None:
    """Start Serve; one that runs already is kept as it is.

    Args:
        section: where to listen.
        listen: an HTTP port is needed.
        shared: others use this cluster. A Serve cannot open its port later, so there it is opened
            even for a run that needs none, if it is free.

    Raises:
        ResourceError: if the port is taken, or the Serve that runs has none.
    """
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    if _serve_runs():
        if listen and not serve.status().proxies:
            raise ResourceError(
                "Serve runs on this cluster without an HTTP port, and one cannot be added; when no "
                "other run needs it, end it with `serve shutdown` and start again"
            )
        return
    is_free = port_is_free(section.host, section.port)
    if not listen and not (shared and is_free):
        serve.start(proxy_location="Disabled", logging_config=quiet)
        return
    if not is_free:
        raise ResourceError(
            f"port {section.port} on {section.host} is in use; stop what listens there or choose "
            "another with serve.port=PORT"
        )
    options = {"host": section.host, "port": section.port}
    serve.start(proxy_location="HeadOnly", http_options=options, logging_config=quiet)


def serve_address() -> tuple[str, int]:
    """Host and port of the Serve that runs, whoever started it."""
    # Serve offers this to Python only here; its REST interface needs the dashboard.
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client is not None, "Serve runs"
    options = client.http_config
    return str(options.host), int(options.port)


def preflight(requirements: Sequence[Requirement]) -> None:
    """Compare what a run will ask for with what the cluster has.

    Raises:
        ResourceError: with a table, if anything is missing.
    """
    check_requirements(requirements, [node["Resources"] for node in ray.nodes() if node["Alive"]])


def check_requirements(
    requirements: Sequence[Requirement], nodes: Sequence[dict[str, float]]
) -> None:
    """Compare requirements with the resources of nodes; see `preflight`."""
    available = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
    asked = {
        "CPU": sum(each.count * each.cpus for each in requirements),
        "GPU": sum(each.count * each.gpus for each in requirements),
    }
    too_big = [
        each.name
        for each in requirements
        if not any(
            node.get("CPU", 0.0) >= each.cpus and node.get("GPU", 0.0) >= each.gpus
            for node in nodes
        )
    ]
    if not too_big and all(asked[kind] <= available[kind] + 1e-9 for kind in asked):
        return
    rows = [("", "count", "CPU each", "GPU each", "CPU", "GPU")]
    for each in requirements:
        rows.append(
            (
                each.name,
                str(each.count),
                f"{each.cpus:g}",
                f"{each.gpus:g}",
                f"{each.count * each.cpus:g}",
                f"{each.count * each.gpus:g}",
            )
        )
    rows.append(("asked", "", "", "", f"{asked['CPU']:g}", f"{asked['GPU']:g}"))
    rows.append(("available", "", "", "", f"{available['CPU']:g}", f"{available['GPU']:g}"))
    reason = f"; no single node is large enough for {', '.join(too_big)}" if too_big else ""
    raise ResourceError(
        f"the configuration asks for more than the cluster has{reason}:\n{_table(rows)}\n"
        "Lower the counts or the share of each (generator.*, search.*, learner.*, expert.*), add "
        "nodes, or, on one machine, raise cluster.num_cpus: logical CPUs may exceed real ones."
    )


def logical_cpus(section: ClusterSection) -> int:
    """CPUs of a Ray started on this machine, as Ray counts them."""
    return section.num_cpus or max(_LEAST_CPUS, os.cpu_count() or 1)


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _serve_runs() -> bool:
    try:
        ray.get_actor(_SERVE_CONTROLLER, namespace="serve")
    except ValueError:
        return False
    return True


def _start(section: ClusterSection, verbose: bool) -> Cluster:
    for attempt in range(1, _START_ATTEMPTS):
        try:
            return _start_once(section, verbose)
        except ResourceError:
            raise
        except Exception as error:
            logger.warning("Ray did not start attempt=%d error=%s", attempt, error)
            ray.shutdown()
    return _start_once(section, verbose)


def _start_once(section: ClusterSection, verbose: bool) -> Cluster:
    port = _next_free_port(section.dashboard_port) if section.dashboard else None
    # Inherited, not a runtime environment: with one, Ray runs a second interpreter before every
    # worker, and a worker takes twice as long to come up.
    with _environment(_worker_environment(verbose)):
        context = ray.init(
            address="local",
            num_cpus=logical_cpus(section),
            object_store_memory=int(section.object_store_gib * 2**30),
            include_dashboard=section.dashboard,
            dashboard_host="127.0.0.1",
            dashboard_port=port,
            namespace=NAMESPACE,
            logging_level=logging.INFO if verbose else logging.ERROR,
            log_to_driver=verbose,
            _temp_dir=None if section.temp_dir is None else str(in_home(section.temp_dir)),
        )
    return Cluster(dashboard_url=_dashboard_url(context), started_here=True)


def _joined_address(address: str) -> str:
    """Where `ray.init` would connect to: `auto` and this machine's name have a meaning to it."""
    # What it asks itself; nothing public answers without connecting.
    from ray._private.services import canonicalize_bootstrap_address

    if address.startswith(CLIENT_SCHEME):
        return address
    if address != "auto":
        host_and_port(address)  # says more of a wrong form than Ray
    found = canonicalize_bootstrap_address(address)
    if found is None:
        raise ResourceError(
            "cluster.address (or RAY_ADDRESS) is auto, and no Ray runs on this machine; start one "
            "with `ray start --head`, give its address, or leave the setting out"
        )
    return found


def _join(address: str, verbose: bool) -> Cluster:
    context = ray.init(
        address=address,
        namespace=NAMESPACE,
        runtime_env=joined_environment(verbose),
        logging_level=logging.INFO if verbose else logging.ERROR,
        log_to_driver=verbose,
    )
    return Cluster(dashboard_url=_dashboard_url(context), started_here=False)


def joined_environment(verbose: bool) -> dict[str, Any]:
    """Runtime environment of this run's workers on a cluster that somebody else started."""
    variables = process_environment(verbose)
    # Ray refuses a variable that the job's own environment sets, even to the same value.
    taken = _job_variables()
    kept = {name: value for name, value in variables.items() if name not in taken}
    if is_submitted_job():  # its working directory has the packages
        return {"env_vars": kept}
    root = _root()
    return {"env_vars": kept, "py_modules": [str(root / name) for name in _PACKAGES]}


def _job_variables() -> set[str]:
    """Variables that `ray job submit --runtime-env-json` gave the job this process is."""
    try:
        job = json.loads(os.environ.get(_JOB_VARIABLE, "{}"))
    except ValueError:
        return set()
    environment = job.get("runtime_env") or {}
    return set(environment.get("env_vars") or {})


def _worker_environment(verbose: bool) -> dict[str, str]:
    """Workers of a Ray started here read the packages from where this process has them."""
    search = [str(_root()), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**process_environment(verbose), "PYTHONPATH": os.pathsep.join(search)}


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables that processes started meanwhile inherit; this process's own come back."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _root() -> Path:
    return Path(__file__).resolve().parents[1]


def _quieten(verbose: bool) -> None:
    if not verbose:
        for name in ("ray", "ray.serve", "ray.data", "ray.train", "ray.tune"):
            logging.getLogger(name).setLevel(logging.ERROR)


def _next_free_port(first: int) -> int:
    for port in range(first, min(first + _PORTS_TRIED, 65536)):
        if port_is_free("127.0.0.1", port):
            return port
    raise ResourceError(
        f"no port between {first} and {first + _PORTS_TRIED - 1} is free for the dashboard; choose "
        "another start with cluster.dashboard_port, or cluster.dashboard=false"
    )


def _dashboard_url(context: object) -> str | None:
    url = getattr(context, "dashboard_url", None)
    return f"http://{url}" if url else None


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  "
        + row[0].ljust(widths[0])
        + "".join(cell.rjust(width + 2) for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )
