"""What engines whose tokens are characters are asked about risks."""

import re

from services.risk_reading import NUMBERS


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
