"""Whether a Ray cluster answers at an address: asked before joining, which would wait for ever."""

import os
import re
import socket
import time

import grpc

from ehr.errors import ResourceError

CLIENT_SCHEME = "ray://"
_FORM = re.compile(r"(?:ray://)?(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")
_RETRY_S = 0.5
_FIX = (
    "start one there with `ray start --head`, correct cluster.address or RAY_ADDRESS, or leave "
    "both out, and Ray is started on this machine"
)


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of `HOST:PORT` or `ray://HOST:PORT`.

    Raises:
        ResourceError: if it has another form.
    """
    found = _FORM.fullmatch(address)
    if found is None or not 0 < int(found["port"]) < 65536:
        raise ResourceError(
            "cluster.address (or RAY_ADDRESS) must be HOST:PORT as `ray start --head` prints it, "
            f"such as 10.0.0.5:6379, or ray://HOST:PORT, auto or local, got {address!r}; an "
            "http:// address is that of the dashboard, which jobs are submitted to"
        )
    return found["host"].strip("[]"), int(found["port"])


def require_cluster(address: str, timeout_s: float) -> None:
    """Returns once something at the address speaks Ray's protocol, gRPC.

    Args:
        address: `HOST:PORT` or `ray://HOST:PORT`.
        timeout_s: how long to wait for a cluster that is coming up.

    Raises:
        ResourceError: if nobody listens there in that time, or what listens is no Ray.
    """
    host, port = host_and_port(address)
    deadline = time.monotonic() + timeout_s
    _wait_for_listener(address, host, port, deadline, timeout_s)
    if os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):
        return  # without the certificates nothing more can be asked
    channel = grpc.insecure_channel(address.removeprefix(CLIENT_SCHEME))
    try:
        left = max(deadline - time.monotonic(), min(timeout_s, 2 * _RETRY_S))
        grpc.channel_ready_future(channel).result(timeout=left)
    except grpc.FutureTimeoutError:
        raise ResourceError(
            f"what listens at {address} is no Ray cluster, or has stopped answering: it did not "
            f"speak Ray's protocol within {timeout_s:g} s (cluster.connect_timeout_s); {_FIX}"
        ) from None
    finally:
        channel.close()


def _wait_for_listener(
    address: str, host: str, port: int, deadline: float, timeout_s: float
) -> None:
    while True:
        left = max(deadline - time.monotonic(), _RETRY_S)
        try:
            socket.create_connection((host, port), timeout=left).close()
            return
        except OSError as error:
            # A name that means nothing now will mean nothing in a second either.
            if isinstance(error, socket.gaierror) or time.monotonic() + _RETRY_S >= deadline:
                raise ResourceError(
                    f"no Ray cluster at {address}: {error.strerror or error} (waited at most "
                    f"{timeout_s:g} s, cluster.connect_timeout_s); {_FIX}"
                ) from None
        time.sleep(_RETRY_S)
