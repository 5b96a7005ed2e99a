"""Trees wait for room in the engine's cache, in the order in which they come."""

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.cache_room import CacheRoom, tree_tokens
from actors.case_prompts import case_prompt
from actors.config import SearchSection
from actors.formats import search_format
from actors.language_model import SearchLimits
from actors.search_prompts import patient_prompts
from services.types import BASE_POLICY
from tests.scripted import CONTEXT, FRAME, CharTokenizer, case_of


@dataclass
class Visitors:
    """Trees of given sizes that each stay for a few turns of the loop."""

    room: CacheRoom
    inside: dict[int, int] = field(default_factory=dict)
    entered: list[int] = field(default_factory=list)
    most_tokens: int = 0

    async def stay(self, number: int, tokens: int, turns: int = 3) -> None:
        async with self.room.take(tokens):
            self.entered.append(number)
            self.inside[number] = tokens
            if len(self.inside) > 1:
                self.most_tokens = max(self.most_tokens, sum(self.inside.values()))
            for _ in range(turns):
                await asyncio.sleep(0)
            del self.inside[number]


@settings(max_examples=50, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(1, 150), st.integers(0, 5)), min_size=1, max_size=20),
)
def test_all_get_in_in_order_and_together_they_fit(trees: list[tuple[int, int]]) -> None:
    visitors = Visitors(CacheRoom(100))

    async def together() -> None:
        async with asyncio.timeout(10):
            await asyncio.gather(
                *(visitors.stay(number, *tree) for number, tree in enumerate(trees))
            )

    asyncio.run(together())

    assert visitors.entered == list(range(len(trees)))
    assert visitors.most_tokens <= 100
    assert visitors.room.num_waiting == 0


async def test_one_tree_gets_in_however_large() -> None:
    visitors = Visitors(CacheRoom(10))

    await visitors.stay(0, 1000)

    assert visitors.entered == [0]


async def test_a_cache_of_unknown_size_holds_nobody_back() -> None:
    visitors = Visitors(CacheRoom(None))

    await asyncio.gather(*(visitors.stay(number, 1_000_000) for number in range(8)))

    assert visitors.most_tokens == 8_000_000


async def test_a_tree_that_is_called_off_leaves_its_place_to_others() -> None:
    room = CacheRoom(100)
    visitors = Visitors(room)
    first = asyncio.create_task(visitors.stay(0, 80, turns=20))
    await asyncio.sleep(0)
    large = asyncio.create_task(visitors.stay(1, 90))
    small = asyncio.create_task(visitors.stay(2, 20))
    await asyncio.sleep(0)
    assert room.num_waiting == 2

    large.cancel()
    await asyncio.gather(first, small)

    assert visitors.entered == [0, 2]
    with pytest.raises(asyncio.CancelledError):
        await large


def test_a_tree_needs_two_prompts_their_steps_and_the_candidates_at_hand() -> None:
    tokenizer = CharTokenizer()
    prompt = case_prompt(case_of(), "question_decomposition", CONTEXT, tokenizer, FRAME)
    prompts = patient_prompts(prompt, CONTEXT, tokenizer, FRAME)
    section = SearchSection(max_depth=3, num_candidates=2)
    layout = search_format("guided", tokenizer, section)
    limits = SearchLimits(section=section, max_model_len=100_000, least=BASE_POLICY)
    fixed = len(prompts.case) + len(prompts.usefulness_head)

    tokens = tree_tokens(prompts, layout, limits)

    # Two steps with all their tokens and the final, after both prompts.
    steps = 2 * (section.question_tokens + section.answer_tokens) + section.final_tokens
    assert tokens > fixed + 2 * steps
    assert tokens < fixed + 2 * (steps + 700) + 2 * (64 + len(prompts.usefulness_tail) + 4)
    # A short context bounds the steps.
    short = SearchLimits(section=section, max_model_len=len(prompts.case) + 10, least=BASE_POLICY)
    assert tree_tokens(prompts, layout, short) == fixed + 20 + 2 * (
        64 + len(prompts.usefulness_tail) + 4
    )
