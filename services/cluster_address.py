"""Whether a Ray cluster answers at an address: asked before joining, which would wait for ever."""

import os
import socket
import time

import grpc

from ehr.errors import ResourceError
from services.config import ADDRESS_FORM, CLUSTER_ADDRESS

CLIENT_SCHEME = "ray://"
_QUESTION = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""The call by which Ray's own `ray.init` and its health checks ask whether a cluster is there."""
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
    found = CLUSTER_ADDRESS.fullmatch(address)
    if found is None or not 0 < int(found["port"]) < 65536:
        raise ResourceError(
            f"cluster.address (or RAY_ADDRESS) must be {ADDRESS_FORM}; got {address!r}"
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
    left = max(deadline - time.monotonic(), min(timeout_s, 2 * _RETRY_S))
    with grpc.insecure_channel(address.removeprefix(CLIENT_SCHEME)) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=left)
            if not address.startswith(CLIENT_SCHEME):
                channel.unary_unary(_QUESTION)(b"", timeout=left)
        except grpc.FutureTimeoutError:
            raise ResourceError(_no_ray(address, timeout_s)) from None
        except grpc.RpcError as error:
            # Whoever asks for a token refuses the question: it is Ray's own that is shown then.
            if error.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise ResourceError(_no_ray(address, timeout_s)) from None


def _no_ray(address: str, timeout_s: float) -> str:
    return (
        f"what listens at {address} is no Ray cluster, or has stopped answering: it did not speak "
        f"Ray's protocol within {timeout_s:g} s (cluster.connect_timeout_s); {_FIX}"
    )


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
