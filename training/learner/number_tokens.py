"""The tokens of a risk that is written under the pattern `0.dd`: two digits, or both in one."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ehr.errors import ModelError
from ehr.language.guided_format import PROBABILITY_REGEX
from ehr.language.pieces import TextTokenizer
from training.learner.packing import Branches

_OPENING = "0."
_TWO_DIGITS = re.compile("[0-9]{2}")


@dataclass(frozen=True, slots=True)
class NumberTokens:
    """How a tokenizer writes `0.dd` and the line end; but for the digits there is no choice."""

    opening: tuple[int, ...]
    """Of `0.`."""
    digits: tuple[int, ...]
    """Of the digits 0 to 9, one each."""
    pairs: Mapping[int, int]
    """Of two digits in one token: which number 0 to 99 each is; most tokenizers have none."""
    ending: int
    """Of the line end."""

    def branches(self, token_ids: Sequence[int], start: int) -> Branches:
        """What could stand in the place of a number's tens digit in a response.

        Args:
            token_ids: the response.
            start: place of the number's first token.

        Raises:
            ModelError: if no number begins there in these tokens.
        """
        place = start + len(self.opening)
        number = tuple(token_ids[start : place + 3])
        in_one = number[len(self.opening) : len(self.opening) + 1]
        digits = in_one if set(in_one) <= self.pairs.keys() else number[len(self.opening) : -1]
        is_number = set(digits) <= ({*self.digits} if len(digits) == 2 else self.pairs.keys())
        expected = (*self.opening, *digits, self.ending)
        if not is_number or not digits or number[: len(expected)] != expected:
            raise ModelError(
                f"expected a number in the tokens {self.opening}, two of {self.digits} or one of "
                f"{list(self.pairs)[:5]}, and {self.ending}, the generator sent {number}; check "
                f"that it honours the pattern {PROBABILITY_REGEX!r}, or use "
                "`grpo.credit: reward_to_go`"
            )
        return Branches(place, self.digits, tuple(self.pairs))


def number_tokens(compiled: Any, tokenizer: TextTokenizer, num_words: int) -> NumberTokens:
    """Find the tokens of `0.dd`, by the library that vLLM follows patterns with.

    Args:
        compiled: the pattern `PROBABILITY_REGEX`, compiled by xgrammar for the tokenizer.
        tokenizer: encodes a text by itself, without special tokens.
        num_words: 32-bit words of a mask over the vocabulary.

    Raises:
        ModelError: if a digit is not one token, or the pattern leaves a choice of other tokens than
            the ten digits (and two digits in one) where a digit stands, or any choice elsewhere.
    """
    digits = tuple(_token_of_digit(tokenizer, digit) for digit in "0123456789")

    def only(written: tuple[int, ...]) -> int:
        (token, *others) = sorted(_allowed(compiled, written, num_words))
        if others:
            raise _refusal(tokenizer, written, [token, *others], "one token")
        return token

    opening: tuple[int, ...] = ()
    while "".join(tokenizer.decode([token]) for token in opening) != _OPENING:
        opening = (*opening, only(opening))
    wanted = f"the ten digits, tokens {digits}"
    first = _allowed(compiled, opening, num_words)
    texts = {token: tokenizer.decode([token]) for token in sorted(first - set(digits))}
    pairs = {token: int(text) for token, text in texts.items() if _TWO_DIGITS.fullmatch(text)}
    if first != {*digits, *pairs} or len(set(pairs.values())) < len(pairs):
        raise _refusal(tokenizer, opening, first - pairs.keys(), wanted)
    for tens in digits:
        found = _allowed(compiled, (*opening, tens), num_words)
        if found != set(digits):
            raise _refusal(tokenizer, (*opening, tens), found, wanted)
    endings = {only((*opening, tens, units)) for tens in digits for units in digits}
    endings |= {only((*opening, pair)) for pair in pairs}
    (ending,) = endings
    return NumberTokens(opening, digits, pairs, ending)


def _token_of_digit(tokenizer: TextTokenizer, digit: str) -> int:
    found = tokenizer.encode(digit)
    if len(found) != 1 or tokenizer.decode(found) != digit:
        raise ModelError(
            f"expected a tokenizer that writes the digit {digit!r} as one token, it is "
            f"{_shown(tokenizer, found)}; use `grpo.credit: reward_to_go` with this model"
        )
    return found[0]


def _allowed(compiled: Any, written: Sequence[int], num_words: int) -> set[int]:
    """What the pattern allows behind these tokens."""
    import xgrammar

    matcher = xgrammar.GrammarMatcher(compiled)
    for token in written:
        assert matcher.accept_token(token), "was allowed"
    words = torch.zeros(1, num_words, dtype=torch.int32)
    matcher.fill_next_token_bitmask(words, 0)
    bits = words[0, :, None] >> torch.arange(32, dtype=torch.int32) & 1
    return set(bits.flatten().nonzero()[:, 0].tolist())


def _refusal(
    tokenizer: TextTokenizer, written: Sequence[int], found: Iterable[int], expected: str
) -> ModelError:
    tokens = sorted(found)
    more = "" if len(tokens) <= 20 else f" and {len(tokens) - 20} more"
    text = "".join(tokenizer.decode([token]) for token in written)
    return ModelError(
        f"expected a tokenizer that writes a risk digit by digit; behind {text!r} the pattern "
        f"{PROBABILITY_REGEX!r} leaves {_shown(tokenizer, tokens[:20])}{more} and not "
        f"{expected}; use `grpo.credit: reward_to_go` with this model"
    )


def _shown(tokenizer: TextTokenizer, token_ids: Sequence[int]) -> str:
    return ", ".join(f"{token} ({tokenizer.decode([token])!r})" for token in token_ids) or "nothing"
