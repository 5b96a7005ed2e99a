"""Reads the risk that a model would write as a distribution, without sampling it.

Under the pattern of a guided answer a risk is one of the hundred numbers 0.00 to 0.99. The engine
tells how likely each token is that the pattern allows next, so the probability of every number is
known: for a tokenizer with a token a digit, the ten tens digits are one request, and the ten units
digits behind each of them ten more at most. All share the prefix that the engine's cache has.

Any tokenizer is followed, two digits in one token or a point with a digit: what is summed over are
the ways in which tokens can spell the numbers. The least likely beginnings, together below
`_UNASKED_MASS`, are not asked about further: their numbers are taken to be equally likely.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from ehr.errors import ModelError
from ehr.language.guided_format import PROBABILITY_REGEX
from services.types import NextToken

NUMBERS = tuple(f"0.{number:02d}\n" for number in range(100))
"""What `PROBABILITY_REGEX` matches, in order."""

_REMAINING = (PROBABILITY_REGEX, r"\.[0-9]{2}\n", r"[0-9]{2}\n", r"[0-9]\n", r"\n")
"""What is left of that pattern behind so many characters."""

_LEAST_MASS = 0.999
"""Of the tokens that come back: with less, the engine kept some to itself."""

_UNASKED_MASS = 0.005
"""Of beginnings that are not looked into, over all. Behind a tens digit the mean is wrong by .045
of its mass at most, so by .0003 in all: a thirtieth of the last digit that is written."""

NextTokens = Callable[[tuple[int, ...], str], Awaitable[Sequence[NextToken]]]
"""Asks for the tokens that a pattern allows behind a prompt."""


@dataclass(frozen=True, slots=True)
class FoundRisks:
    """A distribution over `NUMBERS`, and what it took."""

    probabilities: tuple[float, ...]
    num_requests: int


@dataclass(frozen=True, slots=True)
class _Beginning:
    """A beginning of a number as tokens spell it."""

    text: str
    token_ids: tuple[int, ...]
    probability: float

    @property
    def length(self) -> int:
        """Characters so far, which alone say what the pattern allows next."""
        return len(self.text)


class RiskReader:
    """Reads risks with one engine; asyncio only.

    Args:
        next_tokens: `Engine.next_tokens`.
    """

    def __init__(self, next_tokens: NextTokens) -> None:
        self._next_tokens = next_tokens
        self._only: dict[int, NextToken | None] = {}
        """The one token that may follow so many characters, for which nothing is asked; None where
        there are several."""

    async def read(self, prompt_token_ids: tuple[int, ...]) -> FoundRisks:
        """The probability of every number behind a prompt, under the pattern.

        Args:
            prompt_token_ids: everything before the number's first character.

        Raises:
            ModelError: if the tokens that come back are no such numbers, or not all of them.
        """
        found = dict.fromkeys(NUMBERS, 0.0)
        beginnings = [_Beginning("", (), 1.0)]
        num_requests, unasked_mass = 0, 0.0
        while beginnings:
            following = await self._following(prompt_token_ids, beginnings)
            longer: list[_Beginning] = []
            for each in beginnings:
                tokens = following.get(each)
                if tokens is None:
                    only = self._only[each.length]
                    assert only is not None, "several are asked for"
                    tokens = [only]
                longer += [_continued(each, token) for token in tokens]
            num_requests += len(following)
            for each in longer:
                if each.text in found:
                    found[each.text] += each.probability
            beginnings = [each for each in longer if each.text not in found]
            beginnings, unasked = _worth_asking(beginnings, _UNASKED_MASS - unasked_mass)
            unasked_mass += sum(each.probability for each in unasked)
            for each in unasked:
                numbers = [number for number in NUMBERS if number.startswith(each.text)]
                for number in numbers:
                    found[number] += each.probability / len(numbers)
        return FoundRisks(tuple(found.values()), num_requests)

    async def _following(
        self, prompt_token_ids: tuple[int, ...], beginnings: Sequence[_Beginning]
    ) -> dict[_Beginning, list[NextToken]]:
        """What may follow each beginning, of those that the engine has to be asked about."""
        found: dict[_Beginning, list[NextToken]] = {}
        for each in beginnings:
            if each.length not in self._only:  # the first of its length tells for all
                found[each] = await self._ask(prompt_token_ids, each)
                self._only[each.length] = found[each][0] if len(found[each]) == 1 else None
        left = [
            each for each in beginnings if each not in found and self._only[each.length] is None
        ]
        replies = await asyncio.gather(*(self._ask(prompt_token_ids, each) for each in left))
        return found | dict(zip(left, replies, strict=True))

    async def _ask(
        self, prompt_token_ids: tuple[int, ...], beginning: _Beginning
    ) -> list[NextToken]:
        """What may follow, with probabilities that sum to 1."""
        tokens = await self._next_tokens(
            prompt_token_ids + beginning.token_ids, _REMAINING[beginning.length]
        )
        total = math.fsum(math.exp(token.logprob) for token in tokens)
        if not _LEAST_MASS <= total <= 1 / _LEAST_MASS:
            raise ModelError(
                f"expected the engine to tell all tokens that may follow {beginning.text!r} in a "
                f"risk, got {len(tokens)} with a probability of {total:.3f} together; use "
                "evaluate.reading=sampled with this model"
            )
        for token in tokens:
            text = beginning.text + token.text
            if not token.text or not any(number.startswith(text) for number in NUMBERS):
                raise ModelError(
                    f"expected tokens that spell a risk such as 0.37, the engine wrote {text!r}; "
                    "use evaluate.reading=sampled with this model"
                )
        shift = math.log(total)
        return [replace(token, logprob=token.logprob - shift) for token in tokens]


def _worth_asking(
    beginnings: Sequence[_Beginning], most: float
) -> tuple[list[_Beginning], list[_Beginning]]:
    """Beginnings to look into, and the least likely ones, of a mass of `most` at most.

    Only what has a tens digit may be left: of others too many numbers would be taken for equal.
    """
    left: list[_Beginning] = []
    mass = 0.0
    for each in sorted(beginnings, key=lambda each: each.probability):
        mass += each.probability
        if mass > most:
            break
        if each.length > len("0."):
            left.append(each)
    return [each for each in beginnings if each not in left], left


def _continued(beginning: _Beginning, token: NextToken) -> _Beginning:
    return _Beginning(
        beginning.text + token.text,
        (*beginning.token_ids, token.token_id),
        beginning.probability * math.exp(token.logprob),
    )
