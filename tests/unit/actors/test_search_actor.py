"""The gate of a search actor: shut, it lets the requests under way end and begins none."""

import asyncio
from dataclasses import dataclass, field

from actors.search_actor import RequestGate
from services.types import BASE_POLICY, Completion, GenerateRequest, Sampling
from tests.scripted import ScriptedGenerator

REQUEST = GenerateRequest(
    prompt_token_ids=(1, 2),
    sampling=Sampling(max_tokens=4, temperature=0.0),
    least=BASE_POLICY,
    session="p",
)


@dataclass
class Held(ScriptedGenerator):
    """Answers when it is told to."""

    released: asyncio.Event = field(default_factory=asyncio.Event)

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        await self.released.wait()
        return await super().generate(request)


async def test_a_shut_gate_waits_for_answers_under_way_and_begins_no_request() -> None:
    engine, used = Held(), []
    gate = RequestGate(engine)

    async def ask() -> None:
        used.append(await gate.generate(REQUEST))

    under_way = [asyncio.create_task(ask()) for _ in range(2)]
    await asyncio.sleep(0)
    shutting = asyncio.create_task(gate.shut())
    await asyncio.sleep(0)
    late = asyncio.create_task(ask())
    await asyncio.sleep(0)
    assert not shutting.done()

    engine.released.set()
    await shutting

    assert len(used) == 2, "who asked has its answer before the gate counts as shut"
    assert len(engine.requests) == 2
    assert all(task.done() for task in under_way)
    assert not late.done()
    late.cancel()


async def test_a_gate_without_requests_is_shut_at_once() -> None:
    await asyncio.wait_for(RequestGate(ScriptedGenerator()).shut(), 1)
