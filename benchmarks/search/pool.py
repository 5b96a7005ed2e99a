"""The pool process of the search's benchmark: runs one arm against a deployed generator.

It is a Ray actor with one event loop, as a search actor is; every turn of an arm gets a new one, so
that its peak memory is its own.
"""

import os
import resource
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray

from benchmarks.search.callers import (
    Barrier,
    Meter,
    OneByOne,
    recorded,
    replay,
)
from benchmarks.search.patients import PatientSearches, Sizes
from services.clients import GeneratorClient
from services.models import LocalModel, load_tokenizer
from services.types import PolicyVersion

REQUEST_TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One run of an arm."""

    arm: str
    """`serial`, `lockstep`, `ours`, `engine` or `warm`."""
    run_id: str
    """Whose generator."""
    least: PolicyVersion
    sizes: Sizes
    model: LocalModel
    cache_tokens: int
    """KV cache of all its replicas."""
    folder: str
    """Where its request logs go."""
    record: str | None = None
    """File of the requests: `ours` writes them, `engine` sends them again."""
    sequences: int = 0
    """Sequences that `engine` keeps in flight."""


@ray.remote(max_restarts=0, num_cpus=0.1)
class PoolProcess:
    """One turn, then it is ended."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        record = Path(turn.record) if turn.record and turn.arm == "ours" else None
        self._meter = Meter(GeneratorClient(turn.run_id, REQUEST_TIMEOUT_S), record)
        # Before the clock starts: cohort and tokenizer are no part of a search.
        self._searches = None if turn.arm == "engine" else _searches(turn)

    async def pid(self) -> int:
        """Answers once the process is up."""
        return os.getpid()

    async def progress(self) -> str:
        """How far it is."""
        seen = self._meter.seen
        patients = 0 if self._searches is None else self._searches.done.patients
        return (
            f"{patients} of {self._turn.sizes.patients} patients, {seen.requests} requests, "
            f"{seen.decode_tokens} tokens written"
        )

    async def run(self) -> dict[str, Any]:
        """What the turn cost."""
        started, cpu = time.monotonic(), time.process_time()
        searches = self._searches
        rounds = await (self._replay() if searches is None else self._search(searches))
        wall = time.monotonic() - started
        self._meter.close()
        result = _figures(self._meter, wall, time.process_time() - cpu)
        if rounds:
            result["rounds"] = rounds
        if searches is not None:
            done = searches.done
            result |= {
                "patients": done.patients,
                "case_tokens": done.prompt_tokens,
                "counts": dict(sorted(done.counts.items())),
                "requests_by_kind": dict(sorted(done.by_kind.items())),
            }
        return result

    async def _search(self, searches: PatientSearches) -> int:
        turn = self._turn
        if turn.arm == "lockstep":
            barrier = Barrier(self._meter)
            await searches.run(barrier, turn.least, barrier.tree, turn.cache_tokens)
            return barrier.rounds
        caller = OneByOne(self._meter) if turn.arm == "serial" else self._meter
        await searches.run(caller, turn.least, cache_tokens=turn.cache_tokens)
        return 0

    async def _replay(self) -> int:
        assert self._turn.record is not None, "`engine` sends what `ours` recorded"
        requests = (
            replace(each, least=self._turn.least) for each in recorded(Path(self._turn.record))
        )
        await replay(requests, self._meter, self._turn.sequences)
        return 0


def _searches(turn: Turn) -> PatientSearches:
    return PatientSearches(
        turn.sizes,
        load_tokenizer(turn.model.path),
        turn.model.chat,
        Path(turn.folder),
        answers="eager" if turn.arm == "serial" else "lazy",
    )


def _figures(meter: Meter, wall_s: float, cpu_s: float) -> dict[str, Any]:
    seen = asdict(meter.seen)
    sequence_seconds = seen.pop("sequence_seconds")
    return {
        "wall_s": wall_s,
        "pool_cpu_s": cpu_s,
        **seen,
        "mean_sequences": sequence_seconds / wall_s,
        "pool_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
