"""Addresses where no Ray cluster answers: said at once, instead of waited for."""

import re
import socket
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import closing, contextmanager

import grpc
import pytest

from ehr.errors import ResourceError
from services.cluster import connect, require_named_cluster
from services.cluster_address import host_and_port, require_cluster
from services.config import ClusterSection


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@contextmanager
def web_server() -> Iterator[int]:
    """Answers whatever comes as an HTTP server answers what it does not understand."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with closing(connection):
                    connection.recv(1024)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)


@contextmanager
def grpc_server(*handlers: grpc.GenericRpcHandler) -> Iterator[int]:
    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=list(handlers))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None)


def test_an_address_where_nobody_listens_is_named_with_the_fix(unused_port: int) -> None:
    told: list[str] = []
    section = ClusterSection(address=f"127.0.0.1:{unused_port}", connect_timeout_s=0.2)

    with pytest.raises(ResourceError, match=rf":{unused_port}: Connection refused.*ray start"):
        connect(section, tell=told.append)

    # Ray puts this machine's own address in the place of the loopback one
    assert [re.sub(r"at .*:", "at HOST:", text) for text in told] == [
        f"joining the Ray cluster at HOST:{unused_port} (at most 0.2 s)"
    ]


def test_a_ray_that_is_started_here_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    told: list[str] = []

    require_named_cluster(ClusterSection(), told.append)
    require_named_cluster(ClusterSection(address="local"), told.append)

    assert told == []


def test_a_cluster_that_the_environment_names_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, unused_port: int
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{unused_port}")

    with pytest.raises(ResourceError, match="no Ray cluster at"):
        require_named_cluster(ClusterSection(connect_timeout_s=0.2))


def test_a_server_that_is_no_ray_is_not_waited_for() -> None:
    with web_server() as port, pytest.raises(ResourceError, match="is no Ray cluster"):
        require_cluster(f"127.0.0.1:{port}", 0.2)


def test_a_server_that_says_nothing_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ResourceError, match="has stopped answering"):
            require_cluster(f"127.0.0.1:{port}", 0.2)


class Answering(grpc.GenericRpcHandler):
    """A server whose only call is the one that Ray's own server has."""

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler | None:
        if handler_call_details.method != "/ray.rpc.NodeInfoGcsService/CheckAlive":
            return None
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")


def test_only_a_server_with_rays_own_call_passes() -> None:
    with grpc_server(Answering()) as port:
        require_cluster(f"127.0.0.1:{port}", 5)
    with grpc_server() as port:
        require_cluster(f"ray://127.0.0.1:{port}", 5)
        with pytest.raises(ResourceError, match="is no Ray cluster"):
            require_cluster(f"127.0.0.1:{port}", 5)


def test_a_host_that_does_not_exist_is_not_asked_again() -> None:
    with pytest.raises(ResourceError, match=r"no Ray cluster at nowhere\.invalid:6379"):
        require_cluster("nowhere.invalid:6379", 60)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8265", "127.0.0.1", "head:", "head:0", "head:65536", "", "a b:1"]
)
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(ResourceError, match="must be HOST:PORT"):
        require_cluster(address, 60)


def test_the_parts_of_an_address() -> None:
    assert host_and_port("ray://[::1]:10001") == ("::1", 10001)
    assert host_and_port("head-node.local:6379") == ("head-node.local", 6379)
