"""Risks read as distributions: every way to spell a number counts, and nothing is missing."""

import asyncio
import itertools
import math
import random
import re
from collections.abc import Sequence

import pytest

from ehr.errors import ModelError
from ehr.language.guided_format import PROBABILITY_REGEX
from services.risk_reading import NUMBERS, RiskReader
from services.types import BASE_POLICY, NextToken, RiskReading


class Speller:
    """A language model over some pieces of text, whose pattern is a risk's.

    A piece's weight depends on everything written before it, so that paths matter.
    """

    def __init__(self, pieces: Sequence[str], kept: int = 1000) -> None:
        self.pieces = list(pieces)
        self.kept = kept
        self.num_asked = 0

    def text(self, tokens: Sequence[int]) -> str:
        return "".join(self.pieces[token] for token in tokens)

    def weights(self, tokens: Sequence[int]) -> dict[int, float]:
        text = self.text(tokens)
        allowed = [
            token
            for token, piece in enumerate(self.pieces)
            if any(number.startswith(text + piece) for number in NUMBERS)
        ]
        draw = random.Random(str(tuple(tokens)))
        return {token: draw.random() + 0.01 for token in allowed}

    async def next_tokens(self, prompt: tuple[int, ...], regex: str) -> tuple[NextToken, ...]:
        self.num_asked += 1
        weights = self.weights(prompt)
        # the pattern that is asked for allows the same tokens
        left = [number[len(self.text(prompt)) :] for number in NUMBERS]
        assert any(re.fullmatch(regex, rest) for rest in left)
        found = [
            NextToken(
                token_id=token,
                text=self.pieces[token],
                logprob=math.log(weight / sum(weights.values())),
            )
            for token, weight in weights.items()
        ]
        return tuple(found[: self.kept])

    def by_hand(self) -> dict[str, float]:
        """Probability of every number, by walking all paths."""
        found = dict.fromkeys(NUMBERS, 0.0)

        def walk(tokens: tuple[int, ...], probability: float) -> None:
            if self.text(tokens) in found:
                found[self.text(tokens)] += probability
                return
            weights = self.weights(tokens)
            for token, weight in weights.items():
                walk((*tokens, token), probability * weight / sum(weights.values()))

        walk((), 1.0)
        return found


DIGITS = [*"0123456789", ".", "\n"]
PAIRS = [f"{number:02d}" for number in range(100)]
VOCABULARIES = {
    "a token a digit": DIGITS,
    "a zero with its point": [*DIGITS, "0."],
    "two digits in one token": [*DIGITS, *PAIRS],
    "a point with a digit, a digit with its line end": [*DIGITS, ".3", "7\n", "42\n", "0.5"],
    "whole numbers too": [*DIGITS, "0.37\n", "0.99"],
}


def mean(probabilities: Sequence[float]) -> float:
    return sum(p * float(number) for p, number in zip(probabilities, NUMBERS, strict=True))


def read(speller: Speller) -> tuple[float, ...]:
    return asyncio.run(RiskReader(speller.next_tokens).read(())).probabilities


@pytest.mark.parametrize("pieces", VOCABULARIES.values(), ids=VOCABULARIES.keys())
def test_every_way_to_spell_a_number_counts(pieces: list[str]) -> None:
    speller = Speller(pieces)

    found = read(speller)

    by_hand = list(speller.by_hand().values())
    differences = [abs(one - other) for one, other in zip(found, by_hand, strict=True)]
    assert sum(differences) <= 2 * 0.005
    assert mean(found) == pytest.approx(mean(by_hand), abs=0.0003)
    assert sum(found) == pytest.approx(1, abs=1e-9)


def test_the_numbers_are_those_of_the_pattern() -> None:
    digits = itertools.product("0123456789", repeat=2)

    assert [f"0.{tens}{units}\n" for tens, units in digits] == list(NUMBERS)
    assert all(re.fullmatch(PROBABILITY_REGEX, number) for number in NUMBERS)


def test_unlikely_beginnings_are_not_looked_into_and_cost_a_thirtieth_of_a_digit() -> None:
    class Sure(Speller):
        def weights(self, tokens: Sequence[int]) -> dict[int, float]:
            found = super().weights(tokens)
            if self.text(tokens) == "0.":  # .3 and .4, the others together below .004
                return {t: w if self.pieces[t] in "34" else 0.0003 * w for t, w in found.items()}
            return found

    speller = Sure(DIGITS)
    reader = RiskReader(speller.next_tokens)
    asyncio.run(reader.read(()))

    found = asyncio.run(reader.read(()))

    assert found.num_requests == 3  # the tens, the units behind .3 and those behind .4
    assert sum(found.probabilities) == pytest.approx(1, abs=1e-9)
    exact = list(speller.by_hand().values())
    assert mean(found.probabilities) == pytest.approx(mean(exact), abs=0.0003)


def test_what_is_known_to_follow_is_not_asked_for_again() -> None:
    speller = Speller(DIGITS)
    reader = RiskReader(speller.next_tokens)

    first = asyncio.run(reader.read(())).num_requests
    second = asyncio.run(reader.read(())).num_requests

    assert second == 11  # the tens, and the units behind each of them
    assert first + second == speller.num_asked


def test_an_engine_that_keeps_tokens_to_itself_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"all tokens that may follow '0\.'.*evaluate\.reading"):
        read(Speller(DIGITS, kept=8))


@pytest.mark.parametrize("text", [" 5", "", "x", "12"])
def test_what_spells_no_risk_is_an_error(text: str) -> None:
    async def next_tokens(prompt: tuple[int, ...], regex: str) -> list[NextToken]:
        return [NextToken(token_id=7, text=text, logprob=0.0)]

    with pytest.raises(ModelError, match="spell a risk such as"):
        asyncio.run(RiskReader(next_tokens).read(()))


def test_mean_and_spread_are_those_of_the_numbers() -> None:
    probabilities = [0.0] * 100
    probabilities[20], probabilities[60] = 0.75, 0.25
    reading = RiskReading(
        probabilities=tuple(probabilities), policy_version=BASE_POLICY, num_requests=11
    )

    assert reading.mean == pytest.approx(0.3)
    assert reading.spread == pytest.approx(math.sqrt(0.75 * 0.01 + 0.25 * 0.09))
