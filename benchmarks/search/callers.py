"""Between a search and its generator: what counts calls, and what holds them back for an arm."""

import asyncio
import pickle
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from ehr.language.guided_format import USEFULNESS_REGEX
from services.types import Completion, GenerateRequest, Generator

SCORE_TOKENS = 40
"""What a score may be in the serial arm, which lets the model write a sentence about it."""
_NUMBER = re.compile(r"\d+")


@dataclass(slots=True)
class Metered:
    """What reached the generator, by the engine's own figures."""

    requests: int = 0
    prefill_tokens: int = 0
    computed_prefill_tokens: int = 0
    decode_tokens: int = 0
    sequence_seconds: float = 0.0
    """Seconds that sequences were in flight, added up: over wall-clock time, their mean number."""
    peak_sequences: int = 0


class Meter:
    """Asks a generator and counts; the last station before it.

    Args:
        generator: what is asked.
        record: where requests are kept in the order they were sent, if they are.
    """

    def __init__(self, generator: Generator, record: Path | None = None) -> None:
        self._generator = generator
        self._record: IO[bytes] | None = None if record is None else record.open("wb")
        self._sequences = 0
        self.seen = Metered()

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """The generator's own answer."""
        seen, num = self.seen, request.sampling.n
        if self._record is not None:
            pickle.dump(request, self._record)
        self._sequences += num
        seen.peak_sequences = max(seen.peak_sequences, self._sequences)
        started = time.monotonic()
        try:
            completions = await self._generator.generate(request)
        finally:
            self._sequences -= num
        seen.sequence_seconds += num * (time.monotonic() - started)
        first = completions[0]
        seen.requests += 1
        seen.prefill_tokens += first.num_prompt_tokens
        seen.computed_prefill_tokens += first.num_prompt_tokens - first.num_cached_tokens
        seen.decode_tokens += sum(len(each.token_ids) for each in completions)
        return completions

    def close(self) -> None:
        """Ends the record."""
        if self._record is not None:
            self._record.close()


def recorded(path: Path) -> Iterator[GenerateRequest]:
    """The requests of a record, in order."""
    with path.open("rb") as file:
        while True:
            try:
                yield pickle.load(file)  # a meter of this benchmark wrote it
            except EOFError:
                return


class OneByOne:
    """The serial arm: one request at a time, a sample each, and scores of up to 40 tokens.

    A score is then the first number in what the model wrote, 50 without one; which number that is
    steers the tree, not what it costs.
    """

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._turn = asyncio.Lock()

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """The samples of a request, asked for one after the other."""
        sampling = replace(request.sampling, n=1)
        is_score = sampling.regex == USEFULNESS_REGEX
        if is_score:
            sampling = replace(sampling, regex=None, stop=(), max_tokens=SCORE_TOKENS)
        completions: list[Completion] = []
        for index in range(request.sampling.n):
            seed = None if sampling.seed is None else (sampling.seed + index) % 2**31
            one = replace(request, sampling=replace(sampling, seed=seed))
            async with self._turn:
                completions += await self._generator.generate(one)
        return [_as_score(each) for each in completions] if is_score else completions


def _as_score(completion: Completion) -> Completion:
    found = _NUMBER.search(completion.text)
    score = int(found.group()) if found else 50
    return replace(completion, text=str(min(max(score, 1), 100)), finish_reason="stop")


class Barrier:
    """The lockstep arm: requests wait until every growing tree waits, and are answered together."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._growing: set[str] = set()
        self._waiting: list[tuple[GenerateRequest, asyncio.Future[list[Completion]]]] = []
        self._round: asyncio.Task[None] | None = None
        self.rounds = 0
        """Batches sent."""

    @contextmanager
    def tree(self, patient_id: str) -> Iterator[None]:
        """Held while a patient's tree grows: the others wait for its requests."""
        self._growing.add(patient_id)
        try:
            yield
        finally:
            self._growing.discard(patient_id)
            self._look()

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """The generator's answer, once those of the whole batch are there."""
        answer: asyncio.Future[list[Completion]] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, answer))
        self._look()
        return await answer

    def _look(self) -> None:
        if self._round is None and self._waiting and self._all_wait():
            asyncio.get_running_loop().call_soon(self._settle, len(self._waiting))

    def _settle(self, num_waiting: int) -> None:
        """Sends the batch unless somebody joined: scores of siblings are asked for together."""
        if self._round is not None or not self._waiting or not self._all_wait():
            return
        if len(self._waiting) != num_waiting:
            asyncio.get_running_loop().call_soon(self._settle, len(self._waiting))
            return
        self._round = asyncio.create_task(self._send())

    def _all_wait(self) -> bool:
        return self._growing <= {request.session for request, _ in self._waiting}

    async def _send(self) -> None:
        batch, self._waiting = self._waiting, []
        self.rounds += 1
        answers = await asyncio.gather(
            *[self._generator.generate(request) for request, _ in batch], return_exceptions=True
        )
        self._round = None
        for (_, waiting), answer in zip(batch, answers, strict=True):
            if waiting.done():
                continue  # its tree was given up
            if isinstance(answer, BaseException):
                waiting.set_exception(answer)
            else:
                waiting.set_result(answer)


async def replay(requests: Iterator[GenerateRequest], generator: Generator, limit: int) -> None:
    """Sends requests in order, each as soon as fewer than `limit` sequences are in flight."""
    in_flight = 0
    ended = asyncio.Event()

    async def one(request: GenerateRequest) -> None:
        nonlocal in_flight
        try:
            await generator.generate(request)
        finally:
            in_flight -= request.sampling.n
            ended.set()

    async with asyncio.TaskGroup() as group:
        for request in requests:
            while in_flight and in_flight + request.sampling.n > limit:
                ended.clear()
                await ended.wait()
            in_flight += request.sampling.n
            group.create_task(one(request))
