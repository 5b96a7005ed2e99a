"""The search under cancellation, concurrency and every order of patients: always the same tree."""

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.types import Completion, GenerateRequest
from tests.scripted import (
    GARBAGE,
    Script,
    ScriptedGenerator,
    SearchPlan,
    SearchRun,
    run_scripted,
    sensible,
)

few = settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
plans = st.builds(
    lambda format, **section: replace(SearchPlan().with_section(**section), format=format),
    format=st.sampled_from(["guided", "free"]),
    num_rollouts=st.integers(1, 4),
    num_candidates=st.integers(1, 3),
    max_depth=st.integers(1, 4),
    answers=st.sampled_from(["lazy", "eager"]),
)
scripts = st.sampled_from([sensible, *GARBAGE])


@dataclass
class CancelsItsCaller(ScriptedGenerator):
    """Cancels the search that asks, at the given request."""

    cancel_at: int = 0
    search: asyncio.Task[SearchRun] | None = None

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        if self.search and len(self.requests) == self.cancel_at:
            self.search.cancel()
        return await super().generate(request)


async def _cancelled(plan: SearchPlan, generator: CancelsItsCaller, path: Path) -> int:
    """Runs a search that may be cancelled; the number of tasks it leaves behind."""
    before = asyncio.all_tasks()
    generator.search = asyncio.create_task(run_scripted(plan, generator, path))
    await asyncio.wait([generator.search])
    return len(asyncio.all_tasks() - before)


async def _side_by_side(
    plans: Sequence[SearchPlan], generator: ScriptedGenerator, folder: Path, at_once: int
) -> dict[str, SearchRun]:
    """Searches patients in the given order, some at a time, with one model."""
    turn = asyncio.Semaphore(at_once)

    async def search(plan: SearchPlan) -> SearchRun:
        async with turn:
            return await run_scripted(plan, generator, folder / f"{plan.patient_id}.jsonl")

    runs = await asyncio.gather(*(search(plan) for plan in plans))
    return {run.result.patient_id: run for run in runs}


async def _cancelled_everywhere(plan: SearchPlan, folder: Path, num_requests: int) -> list[int]:
    """Tasks and requests left behind by searches that are cancelled at each of their requests."""
    left = []
    for at in range(num_requests):
        generator = CancelsItsCaller(cancel_at=at, latency_s=1e-4)
        left.append(await _cancelled(plan, generator, folder / f"{at}.jsonl"))
        left.append(generator.num_in_flight)
    return left


@pytest.mark.parametrize("answers", ["lazy", "eager"])
def test_a_cancellation_at_any_request_leaves_no_task_and_nothing_in_flight(
    tmp_path: Path, answers: str
) -> None:
    plan = SearchPlan().with_section(num_rollouts=2, max_depth=3, answers=answers)
    whole = asyncio.run(run_scripted(plan, ScriptedGenerator(), tmp_path / "whole.jsonl"))

    left = asyncio.run(_cancelled_everywhere(plan, tmp_path, whole.calls.requests))

    assert left == [0, 0] * whole.calls.requests


@few
@given(plans, scripts, st.integers(0, 25))
def test_a_search_cancelled_anywhere_leaves_nothing_in_flight_and_replays_to_the_same_tree(
    plan: SearchPlan, script: Script, cancel_at: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        generator = CancelsItsCaller(script=script, cancel_at=cancel_at)
        num_tasks_left = asyncio.run(_cancelled(plan, generator, path))
        num_logged = len(path.read_bytes().splitlines())
        resumed = asyncio.run(run_scripted(plan, ScriptedGenerator(script=script), path))
        whole = asyncio.run(
            run_scripted(plan, ScriptedGenerator(script=script), path.with_name("whole.jsonl"))
        )

    assert num_tasks_left == 0
    assert generator.num_in_flight == 0
    assert resumed.result == whole.result
    assert resumed.calls.replayed_requests == num_logged
    assert len(resumed.generator.requests) == whole.calls.requests - num_logged


@few
@given(plans, scripts, st.permutations(range(4)), st.integers(1, 4))
def test_a_tree_is_the_same_alone_and_beside_others_in_any_order_and_latency(
    plan: SearchPlan, script: Script, order: list[int], at_once: int
) -> None:
    patients = [replace(plan, patient_id=f"p{i}") for i in range(4)]
    slow = ScriptedGenerator(script=script, latency_s=0.001)
    with tempfile.TemporaryDirectory() as alone, tempfile.TemporaryDirectory() as together:
        one_by_one = asyncio.run(
            _side_by_side(patients, ScriptedGenerator(script=script), Path(alone), 1)
        )
        shuffled = [patients[i] for i in order]
        mixed = asyncio.run(_side_by_side(shuffled, slow, Path(together), at_once))

    assert slow.num_in_flight == 0
    for patient_id, run in one_by_one.items():
        assert mixed[patient_id].result == run.result
        assert mixed[patient_id].calls == run.calls
