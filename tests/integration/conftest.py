"""Session fixtures of the integration tests: one Ray, one model, one real engine."""

import asyncio
import shutil
import socket
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from services.cluster import Cluster, connect, start_serve
from services.config import ClusterSection, GeneratorSection, ModelSection, ServeSection
from services.engine import VllmEngine, load_vllm
from services.environment import prepare_process
from services.models import LocalModel, resolve_model


@pytest.fixture(scope="session")
def http_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def local_ray(http_port: int) -> Iterator[Cluster]:
    """A Ray of this session's own, with Serve on a port of its own and no dashboard."""
    prepare_process()
    # Not pytest's folder: Ray's socket paths must stay under 107 characters.
    folder = tempfile.mkdtemp(prefix="eag-ray-", dir="/tmp")
    section = ClusterSection(num_cpus=16, dashboard=False, object_store_gib=0.5, temp_dir=folder)
    cluster = connect(section)
    start_serve(ServeSection(port=http_port), listen=True, shared=False)
    yield cluster
    cluster.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def smollm2() -> LocalModel:
    """The packaged model, converted on first use."""
    prepare_process()
    return resolve_model(ModelSection())


class EngineThread:
    """A real engine on an event loop of its own, so that every test's loop can use it."""

    def __init__(self, model: LocalModel, section: GeneratorSection) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.engine: VllmEngine = self.run(
            # named, so that a test's numbers do not depend on the machine's CPU
            load_vllm(model, ModelSection(max_model_len=2048, dtype="float32"), section)
        )

    def run(self, call: Coroutine[Any, Any, Any], timeout_s: float = 300) -> Any:
        """The result of a call of the engine."""
        future: Future[Any] = asyncio.run_coroutine_threadsafe(call, self._loop)
        return future.result(timeout_s)

    def stop(self) -> None:
        """End the engine and its loop."""
        self._loop.call_soon_threadsafe(self.engine.stop)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)


@pytest.fixture(scope="session")
def vllm_engine(smollm2: LocalModel) -> Iterator[EngineThread]:
    """One real vLLM engine for the session, at the base policy."""
    thread = EngineThread(smollm2, GeneratorSection(cache_gib=1.0, max_num_seqs=16))
    yield thread
    thread.stop()
