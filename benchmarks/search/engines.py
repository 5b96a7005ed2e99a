"""Deployed engines of the search's benchmark, and turns of its arms against them."""

import asyncio
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError

from benchmarks.search.patients import Sizes
from benchmarks.search.pool import PoolProcess, Turn
from services.clients import GeneratorClient
from services.config import GeneratorSection, ModelSection
from services.engine import Engine, VllmEngine, load_vllm
from services.generator import start_generator, stop_generator
from services.models import LocalModel, resolve_model
from services.policy_store import PolicyRecord
from services.types import PolicyVersion

_PROGRESS_S = 20.0
_PUBLISH_TIMEOUT_S = 300.0


class UncachedEngine(VllmEngine):
    """vLLM without its prefix cache."""

    def _engine_arguments(self) -> dict[str, Any]:
        return super()._engine_arguments() | {"enable_prefix_caching": False}


async def load_uncached(
    model: LocalModel, model_section: ModelSection, section: GeneratorSection
) -> Engine:
    """Loads vLLM without its prefix cache where a replica would load it with one."""
    engine = UncachedEngine(model, model_section, section)
    await engine.start()
    return engine


@dataclass(kw_only=True)
class Deployed:
    """A generator that runs, and the versions of the base model it has served."""

    run_id: str
    model: LocalModel
    folder: Path
    limit_s: float
    """How long a turn may take."""
    _version: int = field(default=0, init=False)

    def turn(
        self, arm: str, sizes: Sizes, *, keep_cache: bool = False, **more: Any
    ) -> dict[str, Any]:
        """Runs an arm in a process of its own.

        Args:
            arm: which.
            sizes: of its search.
            keep_cache: start with what the turn before left in the prefix cache, not an empty one.
            more: further fields of `Turn`.

        Raises:
            TimeoutError: if it takes longer than the limit.
        """
        if not keep_cache:
            self._version += 1
        least = PolicyVersion(lineage="base", version=self._version)
        # The base model under a new version: a replica that loads a policy forgets its cache.
        record = PolicyRecord(version=least, adapter_path=None, checksum="", scaling=0.0)
        cache_tokens = asyncio.run(_publish(self.run_id, record))
        folder = self.folder / f"{arm}-{least.version}"
        turn = Turn(
            arm=arm,
            run_id=self.run_id,
            least=least,
            sizes=sizes,
            cache_tokens=cache_tokens,
            model=self.model,
            folder=str(folder),
            **more,
        )
        pool: Any = PoolProcess.options(max_concurrency=4).remote(turn)
        try:
            ray.get(pool.pid.remote(), timeout=120)
            result = _watched(pool, arm, self.limit_s)
        finally:
            ray.kill(pool)
        shutil.rmtree(folder, ignore_errors=True)
        return result


async def _publish(run_id: str, record: PolicyRecord) -> int:
    """The KV cache of all replicas in tokens, once they serve the policy."""
    client = GeneratorClient(run_id, _PUBLISH_TIMEOUT_S)
    await client.publish(record)
    return sum(each.cache_tokens for each in await client.stats())


def _watched(pool: Any, arm: str, limit_s: float) -> dict[str, Any]:
    started = time.monotonic()
    running = pool.run.remote()
    while True:
        try:
            return ray.get(running, timeout=_PROGRESS_S)
        except GetTimeoutError:
            waited = time.monotonic() - started
            text = ray.get(pool.progress.remote(), timeout=60)
            print(f"  {arm}: {text}, {waited:.0f} s", flush=True)
            if waited > limit_s:
                raise TimeoutError(f"{arm} did not end within {limit_s:.0f} s") from None


@contextmanager
def deployed(
    folder: Path,
    sizes: Sizes,
    *,
    replicas: int = 1,
    cache_gib: float,
    prefix_cache: bool = True,
    limit_s: float,
) -> Iterator[Deployed]:
    """A generator of SmolLM2 replicas, warmed: patterns compiled, kernels run once."""
    name = f"{'cached' if prefix_cache else 'uncached'}-{replicas}"
    run = folder / name
    run.mkdir(parents=True)
    model_section = ModelSection(max_model_len=sizes.max_model_len)
    model = resolve_model(model_section)
    section = GeneratorSection(num_replicas=replicas, cpus_per_replica=0.5, cache_gib=cache_gib)
    start_generator(
        name, run, model, model_section, section, load_vllm if prefix_cache else load_uncached
    )
    try:
        engines = Deployed(run_id=name, model=model, folder=run, limit_s=limit_s)
        warm = {"num_rollouts": 1, "first_patient": sizes.patients, "trees_in_flight": 4}
        engines.turn("warm", replace(sizes, patients=2 * replicas, **warm))
        yield engines
    finally:
        stop_generator(name)
