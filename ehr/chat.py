"""A chat template as two fixed texts around the user's message."""

from collections.abc import Callable
from dataclasses import dataclass

from ehr.errors import ModelError
from ehr.pieces import TextTokenizer

_PLACEHOLDER = "EAGRLUSERMESSAGE"


@dataclass(frozen=True, slots=True)
class ChatFrame:
    """What a chat template writes before and after one user message."""

    prefix: str
    """Up to the message, the template's default system prompt included."""
    suffix: str
    """From the message to where the assistant's turn begins."""


def frame_of(render: Callable[[str], str]) -> ChatFrame:
    """The frame of a chat template, from rendering a placeholder message once.

    Args:
        render: the template applied to a user message, with the generation prompt.

    Raises:
        ModelError: if the template does not show the message exactly once.
    """
    parts = render(_PLACEHOLDER).split(_PLACEHOLDER)
    if len(parts) != 2:
        raise ModelError(
            "expected a chat template that shows the user message exactly once, it shows it "
            f"{len(parts) - 1} times; give the model folder another chat_template.jinja"
        )
    return ChatFrame(prefix=parts[0], suffix=parts[1])


def encode_chat(
    tokenizer: TextTokenizer, frame: ChatFrame, *user_parts: str | tuple[int, ...]
) -> tuple[int, ...]:
    """Tokens of a prompt: prefix, each part of the user message and suffix, each by itself.

    Args:
        tokenizer: the model's tokenizer.
        frame: the chat template.
        user_parts: the user message as one text, or cut where its tokens must not merge; parts
            that are tokens already are taken as they are.
    """
    token_ids: list[int] = []
    for part in (frame.prefix, *user_parts, frame.suffix):
        token_ids.extend(tokenizer.encode(part) if isinstance(part, str) else part)
    return tuple(token_ids)
