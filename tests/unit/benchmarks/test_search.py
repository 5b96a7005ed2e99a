"""The search's benchmark: what its arms ask, when, and what is made of the figures."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from actors.formats import search_format
from benchmarks.search.callers import (
    Barrier,
    Meter,
    OneByOne,
    recorded,
    replay,
)
from benchmarks.search.patients import PatientSearches, Sizes
from benchmarks.search.results import Results, arm_row, ratios
from benchmarks.search.scale import GpuReplica, scale_row
from benchmarks.search.script import ScriptedModel
from ehr.language.chat import ChatFrame
from ehr.language.guided_format import USEFULNESS_REGEX
from services.types import BASE_POLICY, Completion, GenerateRequest, Sampling

FRAME = ChatFrame(prefix="[USER]", suffix="[ASSISTANT]")
SIZES = Sizes(
    patients=2,
    prompt_tokens=20_000,
    num_rollouts=2,
    num_candidates=2,
    max_depth=3,
    question_tokens=200,
    answer_tokens=400,
    final_tokens=300,
    trees_in_flight=2,
)


class CharTokenizer:
    def encode(self, text: str) -> list[int]:
        return list(map(ord, text))

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(map(chr, token_ids))


class Held:
    """Answers a batch when it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[GenerateRequest] = []
        self.gate = asyncio.Event()

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        self.asked.append(request)
        await self.gate.wait()
        return [completion("1") for _ in range(request.sampling.n)]


def request(session: str = "a", **sampling: object) -> GenerateRequest:
    settings = Sampling(max_tokens=8, temperature=0.5, seed=3)
    return GenerateRequest(
        prompt_token_ids=(1, 2, 3),
        sampling=replace(settings, **sampling),
        least=BASE_POLICY,
        session=session,
    )


def completion(text: str) -> Completion:
    return Completion(
        token_ids=tuple(range(5)),
        text=text,
        logprobs=(-0.5,) * 5,
        finish_reason="length",
        policy_version=BASE_POLICY,
        policy_checksum="",
        num_prompt_tokens=100,
        num_cached_tokens=90,
    )


class Says:
    def __init__(self, text: str) -> None:
        self.text = text
        self.asked: list[GenerateRequest] = []

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        self.asked.append(request)
        return [completion(self.text) for _ in range(request.sampling.n)]


async def idle() -> None:
    """Lets everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_batch_waits_for_every_growing_tree_and_takes_siblings_along() -> None:
    engine = Held()
    barrier = Barrier(engine)

    with barrier.tree("a"), barrier.tree("b"):
        first = [asyncio.create_task(barrier.generate(request("a"))) for _ in range(3)]
        await idle()
        before = len(engine.asked)
        second = [asyncio.create_task(barrier.generate(request("b"))) for _ in range(2)]
        await idle()
        engine.gate.set()
        await asyncio.gather(*first, *second)

    assert before == 0
    assert [each.session for each in engine.asked] == ["a", "a", "a", "b", "b"]
    assert barrier.rounds == 1


async def test_a_tree_that_is_finished_is_not_waited_for() -> None:
    engine = Held()
    engine.gate.set()
    barrier = Barrier(engine)

    with barrier.tree("a"):
        with barrier.tree("b"):
            waiting = asyncio.create_task(barrier.generate(request("a")))
            await idle()
            while_b_grew = len(engine.asked)
        await waiting

    assert (while_b_grew, len(engine.asked)) == (0, 1)


async def test_an_engine_s_error_reaches_the_tree_that_asked() -> None:
    class Fails:
        async def generate(self, request: GenerateRequest) -> list[Completion]:
            raise ConnectionError("gone")

    barrier = Barrier(Fails())

    with barrier.tree("a"), pytest.raises(ConnectionError, match="gone"):
        await barrier.generate(request("a"))


async def test_lockstep_makes_the_calls_that_ours_makes(tmp_path: Path) -> None:
    tokenizer = CharTokenizer()
    free, held = Meter(ScriptedModel()), Meter(ScriptedModel())
    ours = PatientSearches(SIZES, tokenizer, FRAME, tmp_path / "ours")
    lockstep = PatientSearches(SIZES, tokenizer, FRAME, tmp_path / "lockstep")
    barrier = Barrier(held)

    await ours.run(free, BASE_POLICY)
    await lockstep.run(barrier, BASE_POLICY, barrier.tree)

    assert lockstep.done == ours.done
    assert held.seen.requests == free.seen.requests > barrier.rounds
    assert ours.done.patients == 2


async def test_the_serial_arm_asks_for_one_sample_at_a_time_and_takes_a_number_as_score() -> None:
    engine = Says("I would say 250 of 100")
    serial = OneByOne(engine)

    samples = await serial.generate(request(n=3, regex="x"))
    score = await serial.generate(request(regex=USEFULNESS_REGEX, max_tokens=4))

    assert len(samples) == 3
    assert [each.sampling.seed for each in engine.asked] == [3, 4, 5, 3]
    assert {each.sampling.n for each in engine.asked} == {1}
    assert (engine.asked[-1].sampling.max_tokens, engine.asked[-1].sampling.regex) == (40, None)
    assert (score[0].text, score[0].finish_reason) == ("100", "stop")


async def test_the_meter_counts_a_prompt_once_and_keeps_requests(tmp_path: Path) -> None:
    meter = Meter(Says("x"), tmp_path / "record")

    await meter.generate(request(n=3))
    await meter.generate(request("b"))
    meter.close()

    seen = meter.seen
    assert (seen.requests, seen.prefill_tokens, seen.computed_prefill_tokens) == (2, 200, 20)
    assert (seen.decode_tokens, seen.peak_sequences) == (20, 3)
    assert list(recorded(tmp_path / "record")) == [request(n=3), request("b")]


async def test_a_replay_keeps_as_many_sequences_in_flight_as_it_may() -> None:
    engine = Held()

    running = asyncio.create_task(replay(iter([request(n=3)] * 4), engine, 7))
    await idle()
    at_first = len(engine.asked)
    engine.gate.set()
    await running

    assert (at_first, len(engine.asked)) == (2, 4)


def turn(wall_s: float, tokens: int = 1000, **more: object) -> dict:
    return {
        "wall_s": wall_s,
        "pool_cpu_s": 1.0,
        "requests": 600,
        "prefill_tokens": 10_000,
        "computed_prefill_tokens": 500,
        "decode_tokens": tokens,
        "mean_sequences": 10.0,
        "peak_sequences": 20,
        "pool_peak_mib": 300.0,
        "patients": 3,
        "counts": {"resample_requests": 30, "retry_requests": 60},
        **more,
    }


def test_ratios_compare_arms_of_the_same_size_turn_by_turn() -> None:
    serial = replace(SIZES, patients=1, trees_in_flight=1)
    small = replace(SIZES, num_rollouts=1)

    found = ratios(
        [
            arm_row("ours", SIZES, [turn(10.0), turn(20.0), turn(10.0)]),
            arm_row("lockstep", SIZES, [turn(15.0), turn(26.0), turn(12.0)]),
            arm_row("lockstep", small, [turn(99.0)]),
            arm_row("engine", SIZES, [turn(8.0)]),
            arm_row("serial", serial, [turn(50.0, patients=1, computed_prefill_tokens=9_000)]),
        ]
    )

    assert found["wall_vs_lockstep"] == 1.3
    assert found["fraction_of_engine_rate"] == pytest.approx(100 / 125)
    assert found["computed_prefill_serial_over_ours"] == pytest.approx(9_000 / (500 / 3))
    assert found["requests_per_patient"] == pytest.approx(200 - 30)


def test_rows_of_other_arms_stay_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "search.json"
    Results(path).add(arm_row("ours", SIZES, [turn(10.0)]))

    Results(path).add(arm_row("lockstep", SIZES, [turn(20.0)]))
    Results(path).add(arm_row("ours", SIZES, [turn(5.0)]))

    written = json.loads(path.read_text())
    assert [row["arm"] for row in written["rows"]] == ["lockstep", "ours"]
    assert written["ratios"]["wall_vs_lockstep"] == 4.0
    assert all(row["commit"] for row in written["rows"])


async def test_the_scripted_model_writes_what_the_guided_format_reads() -> None:
    layout = search_format("guided", CharTokenizer(), SIZES.section())
    ask = layout.proposal(2)

    replies = await ScriptedModel().generate(request(regex=ask.regex, n=8))

    openings = [layout.read_proposal(each, 2) for each in replies]
    assert all(each.tagged and each.question.text for each in openings)
    assert len({each.question.text for each in openings}) > 4


def test_a_replica_is_modelled_by_what_it_reads_and_computes() -> None:
    # 64 sequences: 15.2 GB of weights and 7.34 GB of cache at 2.01 TB/s and 2 ms, 29.3 tokens;
    # prefill of 47 tokens, 2 x 7.6e9 FLOP each, at 396 TFLOP/s.
    step_s = (15.2e9 + 64 * 2000 * 57_344) / 2.01e12 + 0.002

    rate = GpuReplica().requests_per_s(64)

    assert 1 / rate == pytest.approx(5800 / 198 * step_s / 64 + 15.2e9 * 9300 / 198 / 395.6e12)


def test_pool_processes_follow_from_the_cpu_of_caller_and_core() -> None:
    core = {"arm": "core", "core_cpu_ms_per_request": 1.0}
    control = {"arm": "control", "prompt_tokens": 1500, "replicas": 2, "caller_cpu_ms": 3.0}
    others = [{**control, "caller_cpu_ms": 99.0, name: 4} for name in ("prompt_tokens", "replicas")]
    single = {**control, "caller_cpu_ms": 99.0, "replicas": 1}

    row = scale_row([core, single, *others, control])

    assert scale_row([control]) is None
    assert row is not None
    assert row["pool_requests_per_s"] == 250
    rate = GpuReplica().requests_per_s(64)
    assert row["by_sequences"]["64"]["pool_processes"]["8"] == -(-8 * rate // 250)
