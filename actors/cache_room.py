"""Trees that may grow at a time before one's prompt pushes another's out of the engine's cache.

A tree comes back to the engine some two hundred times, each time with its whole prompt. With more
trees than the cache holds, each finds its prompt gone and has it computed again.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from actors.formats import SearchFormat
from actors.language_model import SCORE_TOKENS, SearchLimits
from actors.search_prompts import PatientPrompts


def tree_tokens(prompts: PatientPrompts, layout: SearchFormat, limits: SearchLimits) -> int:
    """Cache that a growing tree needs at most, in tokens.

    Two prompts, the case's and that of its scores, each followed by the steps of the path at hand,
    and d continuations at a time. Branches that are not at hand are left out: they are short, and
    what of them is gone is computed behind a prompt that is still there.
    """
    section = limits.section
    final_and_step = layout.reserve_tokens(1)
    further_step = final_and_step - section.final_tokens
    steps = final_and_step + max(0, section.max_depth - 2) * further_step
    steps = min(steps, max(0, limits.max_model_len - len(prompts.case)))
    continuation = section.question_tokens + len(prompts.usefulness_tail) + SCORE_TOKENS
    return (
        len(prompts.case)
        + len(prompts.usefulness_head)
        + 2 * steps
        + section.num_candidates * continuation
    )


class CacheRoom:
    """Lets trees in, in the order in which they come, while they fit; one always does.

    Args:
        tokens: cache that they share; None if nobody knows, which lets all in.
    """

    def __init__(self, tokens: int | None) -> None:
        self._tokens = tokens
        self._used = 0
        self._num_inside = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def num_waiting(self) -> int:
        """Trees that are held back."""
        return len(self._waiting)

    @asynccontextmanager
    async def take(self, tokens: int) -> AsyncIterator[None]:
        """Held while a tree grows that needs so many tokens; waits until they are free."""
        if self._waiting or not self._fits(tokens):
            await self._turn(tokens)
        else:
            self._enter(tokens)
        try:
            yield
        finally:
            self._leave(tokens)

    async def _turn(self, tokens: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((tokens, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave(tokens)  # let in and called off at the same time
            else:
                self._waiting.remove((tokens, turn))
                self._let_in()
            raise

    def _fits(self, tokens: int) -> bool:
        return self._tokens is None or self._num_inside == 0 or self._used + tokens <= self._tokens

    def _enter(self, tokens: int) -> None:
        self._used += tokens
        self._num_inside += 1

    def _leave(self, tokens: int) -> None:
        self._used -= tokens
        self._num_inside -= 1
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            tokens, turn = self._waiting.popleft()
            self._enter(tokens)
            turn.set_result(None)
