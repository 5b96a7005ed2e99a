"""Starting, awaiting and ending Serve applications by name: a run touches only its own."""

import time

from ray import serve
from ray.serve import Application
from ray.serve.api import RunTarget
from ray.serve.schema import ApplicationStatus

from ehr.errors import ServiceError

_POLL_S = 0.2
_DELETE_TIMEOUT_S = 60.0


def generator_application(run_id: str) -> str:
    """Name of a run's generator application."""
    return f"generator-{run_id}"


def expert_application(run_id: str) -> str:
    """Name of a run's expert application."""
    return f"expert-{run_id}"


def http_application(run_id: str) -> str:
    """Name of a run's HTTP application."""
    return f"http-{run_id}"


def deploy_application(application: Application, name: str, route_prefix: str | None) -> None:
    """Hand an application to Serve without waiting until it runs."""
    serve.run_many(
        [RunTarget(target=application, name=name, route_prefix=route_prefix)],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def wait_for_application(name: str, timeout_s: float) -> None:
    """Return when an application runs.

    Raises:
        ServiceError: if it fails, or does not run in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        found = serve.status().applications.get(name)
        if found is not None and found.status == ApplicationStatus.RUNNING:
            return
        if found is not None and found.status == ApplicationStatus.DEPLOY_FAILED:
            raise ServiceError(
                f"application {name!r} could not start: {_reason(found)}; the replica's own log "
                "lies in Ray's session folder under logs/serve"
            )
        if time.monotonic() > deadline:
            state = "unknown to Serve" if found is None else f"{found.status}: {_reason(found)}"
            raise ServiceError(
                f"application {name!r} did not run within {timeout_s:.0f} s ({state}); raise "
                "generator.startup_timeout_s, or see `ray status` for resources it waits for"
            )
        time.sleep(_POLL_S)


def request_deletion(*names: str) -> None:
    """Ask Serve to end those of the applications that it has; does not wait."""
    running = serve.status().applications
    for name in names:
        if name in running:
            serve.delete(name, _blocking=False)


def delete_application(name: str) -> None:
    """End an application, if there is one, and wait until its replicas are gone.

    Raises:
        ServiceError: if it does not end in time.
    """
    request_deletion(name)
    deadline = time.monotonic() + _DELETE_TIMEOUT_S
    while name in serve.status().applications:
        if time.monotonic() > deadline:
            raise ServiceError(
                f"application {name!r} did not end within {_DELETE_TIMEOUT_S:.0f} s; end it with "
                "`serve shutdown` if nothing else runs on this cluster"
            )
        time.sleep(_POLL_S)


def _reason(status: object) -> str:
    message = str(getattr(status, "message", ""))
    deployments = getattr(status, "deployments", {})
    parts = [message, *(each.message for each in deployments.values())]
    return " ".join(part.strip() for part in parts if part)[-600:] or "no reason given"
