"""What a request costs beside the model: caller, Serve and replica, engines answering at once.

CPU seconds are those of whole processes (Ray's own threads in them included), divided by requests.
The floor is an empty method of an empty deployment, called in the same way.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import serve

from benchmarks.search.script import load_instant
from ehr.language.chat import ChatFrame
from services.applications import delete_application, deploy_application, wait_for_application
from services.clients import GeneratorClient
from services.config import GeneratorSection, ModelSection
from services.generator import start_generator, stop_generator
from services.models import LocalModel
from services.types import BASE_POLICY, GenerateRequest, Sampling

REPLICAS = (1, 2, 4, 8)
PROMPTS = (500, 1500, 2000)
CONCURRENCY = (1, 8, 32, 128)
SECONDS, QUICK_SECONDS = 4.0, 1.5
_SESSIONS = 64
_TIMEOUT_S = 120.0
_REPLICA = "ServeReplica:{}"
"""How Ray titles a replica's process."""


class Empty:
    """A deployment that does nothing."""

    async def call(self, value: object) -> object:
        """What it was given."""
        return value


@ray.remote(max_restarts=0, num_cpus=0.1)
class Caller:
    """A process that calls as a pool process does, and does nothing else."""

    async def drive(
        self, run_id: str, prompt_tokens: int, concurrency: int, seconds: float
    ) -> dict[str, float]:
        """Closed loop: so many requests in flight, each followed by the next.

        Args:
            run_id: whose generator; "" calls the empty deployment.
            prompt_tokens: length of the prompts.
            concurrency: requests in flight.
            seconds: how long.

        Returns:
            `requests`, `wall_s`, and `cpu_s` of this process.
        """
        call = _empty() if not run_id else _generate(run_id, prompt_tokens)
        await asyncio.gather(*[call(index) for index in range(min(concurrency, 16))])
        done = 0
        started, cpu = time.monotonic(), time.process_time()

        async def one(index: int) -> None:
            nonlocal done
            while time.monotonic() - started < seconds:
                await call(index)
                index += concurrency
                done += 1

        await asyncio.gather(*[one(index) for index in range(concurrency)])
        return {
            "requests": done,
            "wall_s": time.monotonic() - started,
            "cpu_s": time.process_time() - cpu,
        }


def _empty() -> Callable[[int], Awaitable[object]]:
    handle = serve.get_app_handle("empty")

    async def call(index: int) -> object:
        return await handle.call.remote(None)

    return call


def _generate(run_id: str, prompt_tokens: int) -> Callable[[int], Awaitable[object]]:
    client = GeneratorClient(run_id, _TIMEOUT_S)
    # Tokens of their own, as a search has them; ids of a vocabulary of 50,000.
    requests = [
        GenerateRequest(
            prompt_token_ids=tuple((7919 * i + 31 * session) % 49152 for i in range(prompt_tokens)),
            sampling=Sampling(max_tokens=64, temperature=0.2, seed=session, stop=("\n",)),
            least=BASE_POLICY,
            session=f"patient-{session}",
        )
        for session in range(_SESSIONS)
    ]

    async def call(index: int) -> object:
        return await client.generate(requests[index % _SESSIONS])

    return call


def measure_control(folder: Path, *, quick: bool) -> Iterator[dict[str, Any]]:
    """Rows of the result: the floor, then replicas and prompts.

    Args:
        folder: of the policy stores.
        quick: one and two replicas, one length of prompt.
    """
    seconds = QUICK_SECONDS if quick else SECONDS
    caller: Any = Caller.options(max_concurrency=2).remote()
    deploy_application(
        serve.deployment(name="Empty", max_ongoing_requests=256)(Empty).bind(), "empty", None
    )
    wait_for_application("empty", _TIMEOUT_S)
    yield _row("control_floor", caller, "", "empty", 0, 1, seconds, quick)
    delete_application("empty")
    rates: dict[int, float] = {}
    for num in REPLICAS[:2] if quick else REPLICAS:
        run_id = f"control{num}"
        (folder / run_id).mkdir(parents=True)
        section = GeneratorSection(num_replicas=num, cpus_per_replica=0.1)
        start_generator(
            run_id, folder / run_id, _model(folder), ModelSection(), section, load_instant
        )
        try:
            for prompt in (1500,) if quick or num != 1 else PROMPTS:
                application = f"generator-{run_id}"
                row = _row("control", caller, run_id, application, prompt, num, seconds, quick)
                if prompt == 1500:
                    rates[num] = row["requests_per_s"]
                    row["ratios"] = {
                        f"caller_cpu_ms_r{num}": row["caller_cpu_ms"],
                        f"replica_cpu_ms_r{num}": row["replica_cpu_ms"],
                        f"requests_per_s_r{num}": row["requests_per_s"],
                    }
                yield row
        finally:
            stop_generator(run_id)
    ray.kill(caller)


def _row(
    arm: str,
    caller: Any,
    run_id: str,
    application: str,
    prompt_tokens: int,
    num_replicas: int,
    seconds: float,
    quick: bool,
) -> dict[str, Any]:
    loops = []
    for concurrency in (8, 32) if quick else CONCURRENCY:
        before = _replica_cpu(application)
        loop: dict[str, float] = ray.get(
            caller.drive.remote(run_id, prompt_tokens, concurrency, seconds), timeout=_TIMEOUT_S
        )
        after = _replica_cpu(application)
        used = sum(after.values()) - sum(before.values())
        loops.append(
            {
                "concurrency": concurrency,
                "requests_per_s": loop["requests"] / loop["wall_s"],
                "caller_cpu_ms": 1000 * loop["cpu_s"] / loop["requests"],
                "replica_cpu_ms": 1000 * used / loop["requests"],
                "caller_busy": loop["cpu_s"] / loop["wall_s"],
            }
        )
    best = max(loops, key=lambda loop: loop["requests_per_s"])
    return {
        "arm": arm,
        "replicas": num_replicas,
        "prompt_tokens": prompt_tokens,
        **best,
        "requests_per_s_of_a_core": 1000 / best["caller_cpu_ms"],
        "loops": loops,
    }


def _replica_cpu(application: str) -> dict[int, float]:
    """CPU seconds so far of an application's replicas, by process."""
    title, found = _REPLICA.format(application), {}
    for process in psutil.process_iter(["cmdline"]):
        if any(title in part for part in process.info["cmdline"] or ()):
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    if not found:
        raise RuntimeError(f"expected processes titled {title!r}, found none: did Ray rename them?")
    return found


def _model(folder: Path) -> LocalModel:
    return LocalModel(
        path=folder,
        name="instant",
        source="benchmarks",
        sha256="0" * 64,
        description="answers at once",
        chat=ChatFrame(prefix="", suffix=""),
    )
