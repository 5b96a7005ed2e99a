"""Token pieces: the unit in which prompts and trajectories are put together.

A piece is tokenised once, by itself, and a prompt is the concatenation of its pieces. Search, SFT
and the prefix cache therefore see the same tokens wherever the same pieces occur.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable


class Author(StrEnum):
    """Who wrote a piece."""

    CALLER = "caller"
    """Fixed text: context for the model, never in a loss, a length or an entropy."""
    MODEL = "model"
    """Sampled from the policy."""


@runtime_checkable  # the shape checks of the test run ask isinstance
class TextTokenizer(Protocol):
    """The two calls of a tokenizer that the domain needs."""

    def encode(self, text: str, /) -> list[int]:
        """Token ids of a text, without special tokens around it."""
        ...

    def decode(self, token_ids: list[int] | tuple[int, ...], /) -> str:
        """Text of token ids, special tokens included."""
        ...


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text, its tokens, and who wrote it."""

    text: str
    token_ids: tuple[int, ...]
    author: Author

    @classmethod
    def of(cls, tokenizer: TextTokenizer, text: str, author: Author) -> "Piece":
        """The piece of a text tokenised by itself."""
        return cls(text, tuple(tokenizer.encode(text)), author)


def join_text(pieces: Iterable[Piece]) -> str:
    """Text of pieces put together."""
    return "".join(piece.text for piece in pieces)


def join_token_ids(pieces: Iterable[Piece]) -> tuple[int, ...]:
    """Tokens of pieces put together."""
    return tuple(token for piece in pieces for token in piece.token_ids)


def model_written(pieces: Iterable[Piece]) -> tuple[bool, ...]:
    """Whether the model wrote each token of the pieces put together: the loss mask."""
    return tuple(piece.author is Author.MODEL for piece in pieces for _ in piece.token_ids)
