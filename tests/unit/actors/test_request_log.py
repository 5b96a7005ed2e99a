"""The request log: written before use, replayed, torn lines ignored."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.request_log import RequestLog, request_digest
from ehr.errors import SearchError
from services.types import BASE_POLICY, Completion, GenerateRequest, Sampling
from tests.scripted import ScriptedGenerator


def _request(text: str = "Is pH low?", **sampling: Any) -> GenerateRequest:
    return GenerateRequest(
        prompt_token_ids=tuple(map(ord, text)),
        sampling=Sampling(max_tokens=20, temperature=1.0, regex="100|", **sampling),
        least=BASE_POLICY,
        session="p1",
    )


def _ask(path: Path, generator: ScriptedGenerator, *keys: str) -> list[list[Completion]]:
    async def ask() -> list[list[Completion]]:
        with RequestLog(path, generator) as log:
            return [await log.generate(key, "score", _request(seed=len(key))) for key in keys]

    return asyncio.run(ask())


def test_a_replay_gives_the_same_completions_without_asking(tmp_path: Path) -> None:
    path, engine, silent = tmp_path / "p.jsonl", ScriptedGenerator(), ScriptedGenerator(fail_at=0)

    first = _ask(path, engine, "a", "bb")
    again = _ask(path, silent, "a", "bb")

    assert first == again
    assert silent.requests == []


def test_a_completion_is_on_disk_before_the_caller_has_it(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"

    async def ask() -> int:
        with RequestLog(path, ScriptedGenerator()) as log:
            await log.generate("a", "score", _request())
            return len(path.read_text().splitlines())

    assert asyncio.run(ask()) == 1


def test_a_digest_tells_prompts_and_sampling_apart_and_nothing_else() -> None:
    different = [
        _request(),
        _request("Is pH low"),
        _request(seed=1),
        _request(n=2),
        _request(stop=("a", "b")),
        _request(stop=("a,b",)),
        _request(allowed_token_ids=(1,)),
    ]

    assert len({request_digest(each) for each in different}) == len(different)
    assert request_digest(replace(_request(), session="p2")) == request_digest(_request())


def test_a_torn_last_line_is_ignored_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    first = _ask(path, ScriptedGenerator(), "a", "bb")
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])

    engine = ScriptedGenerator()
    again = _ask(path, engine, "a", "bb")

    assert again == first
    assert len(engine.requests) == 1
    assert path.read_bytes() == whole


def test_a_last_line_that_only_lacks_its_end_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    _ask(path, ScriptedGenerator(), "a")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])

    _ask(path, ScriptedGenerator(), "a")

    assert path.read_bytes() == whole


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    _ask(path, ScriptedGenerator(), "a", "bb")
    lines = path.read_text().splitlines()
    path.write_text("\n".join(["{broken", lines[1]]) + "\n")

    with pytest.raises(SearchError, match="line 1 of 2 is damaged"):
        RequestLog(path, ScriptedGenerator())


def test_the_log_of_another_search_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    _ask(path, ScriptedGenerator(), "a")

    async def ask() -> None:
        with RequestLog(path, ScriptedGenerator()) as log:
            await log.generate("a", "score", _request("Another prompt"))

    with pytest.raises(SearchError, match="comes from another search"):
        asyncio.run(ask())


def test_a_log_is_continued_under_another_routing(tmp_path: Path) -> None:
    path, silent = tmp_path / "p.jsonl", ScriptedGenerator(fail_at=0)
    first = _ask(path, ScriptedGenerator(), "a")

    async def ask() -> list[Completion]:
        with RequestLog(path, silent) as log:
            moved = replace(_request(seed=1), session="another")
            return await log.generate("a", "score", moved)

    assert asyncio.run(ask()) == first[0]
    assert silent.requests == []


def test_counts_are_those_of_all_attempts_together(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    _ask(path, ScriptedGenerator(), "a")

    async def ask() -> RequestLog:
        with RequestLog(path, ScriptedGenerator()) as log:
            await log.generate("a", "score", _request(seed=1))
            await log.generate("b", "answer", _request(n=2))
        return log

    counts = asyncio.run(ask()).counts

    assert (counts.requests, counts.replayed_requests) == (2, 1)
    assert counts.by_kind == {"score": 1, "answer": 1}
    assert (counts.prefill_tokens, counts.prefill_computed_tokens) == (20, 10)
    decoded = [
        len(completion["token_ids"])
        for line in path.read_text().splitlines()
        for completion in json.loads(line)["completions"]
    ]
    assert counts.decode_tokens == sum(decoded)
    assert counts.replayed_decode_tokens == decoded[0]
    assert len(decoded) == 3
