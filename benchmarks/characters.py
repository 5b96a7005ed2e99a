"""What engines whose tokens are characters are asked about risks."""

import math
import re

from services.risk_reading import NUMBERS
from services.types import NextToken


def next_characters(regex: str) -> list[str]:
    """Characters with which a risk may go on, where `regex` is what is left of its pattern."""
    return sorted(
        {
            number[place]
            for number in NUMBERS
            for place in range(len(number))
            if re.fullmatch(regex, number[place:])
        }
    )


def alike_next_tokens(regex: str) -> tuple[NextToken, ...]:
    """The same characters as tokens, none likelier than another."""
    allowed = next_characters(regex)
    logprob = -math.log(len(allowed))
    return tuple(NextToken(token_id=ord(c), text=c, logprob=logprob) for c in allowed)
