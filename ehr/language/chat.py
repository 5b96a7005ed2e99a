"""A chat template as two fixed texts around the user's message."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from ehr.errors import ModelError
from ehr.language.pieces import TextTokenizer

_SHORT_PROBE = (
    "EagRl <think>\n\"q\" & 's' > 1\n</think>\n\n<Final answer>  {{ 0.5 }} {% x %} "
    "[pH: 7,4]\t\u00b5g"
)
"""What templates are known to change: letters, line breaks, blanks, quotes, tags, braces, and signs
beyond ASCII. As in our prompts there is no blank at either end, so that a template may strip."""
_LONG_PROBE = "\n".join([_SHORT_PROBE, *["Line of a record: 1, NaN"] * 400, "end"])
_NUM_RENDERINGS = 8
"""Of each probe: a template that draws one of two texts passes one time in 2 to the 15."""
_ANSWER = "EagRlAnswer"
_REASONING = re.compile(
    r"[<\[\u25c1](?P<end>/)?\|?(?P<close>/|end_(?:of_)?)?(?:(?:begin_of|start)_)?(?!no)(?:[\w:]+[:_])??"
    r"(?:think(?:ing)?(?:_process)?|thoughts?|reason(?:ing)?|reflect(?:ion)?|analysis|scratchpad"
    r"|(?:inner_)?monologue|cot)\|?[>\]\u25b7]"
    r"|<unused9(?:4|(?P<closed>5))>|<\|channel\|>(?:analysis|(?P<final>final))",
    re.IGNORECASE,
)
"""A tag around what a model writes before its answer; a named group is there in one that closes.
The last line has those of MedGemma and of the Harmony format."""

_MESSAGE = "{message}"
_END_OF_TURN = re.compile(r"</s>|<[^<>]*(?:end|eos|eot)[^<>]*>", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ChatFrame:
    """What a chat template writes before and after one user message."""

    prefix: str
    """Up to the message, the template's default system prompt included."""
    suffix: str
    """From the message to where the assistant's turn begins."""

    @property
    def text(self) -> str:
        """The frame as one text, for a reader and for the keys of stages."""
        return self.prefix + _MESSAGE + self.suffix

    @classmethod
    def of_text(cls, text: str) -> "ChatFrame":
        """The frame whose `text` it is."""
        prefix, _, suffix = text.partition(_MESSAGE)
        return cls(prefix, suffix)


def frame_of(render: Callable[[str], str]) -> ChatFrame:
    """The frame of a chat template, from rendering messages such as prompts are.

    Args:
        render: the template applied to a user message, with the generation prompt.

    Raises:
        ModelError: if the template does not show the message exactly once as it is, does not write
            the same around every message, or leaves a block open that is for reasoning.
    """
    probes = (_SHORT_PROBE, _LONG_PROBE) * _NUM_RENDERINGS
    frames = {_around(probe, render(probe)): None for probe in probes}
    if len(frames) > 1:
        first, second, *_ = (frame.text for frame in frames)
        raise ModelError(
            "expected a chat template that writes the same around every user message, got "
            f"{first!r} and {second!r}; give the model folder another chat_template.jinja"
        )
    (frame,) = frames
    tags = list(_REASONING.finditer(frame.suffix))
    if tags and not any(tags[-1].groupdict().values()):
        opening = tags[-1][0]
        raise ModelError(
            f"expected a chat template that opens the assistant's answer, it opens a block of "
            f"reasoning ({frame.suffix[-60:]!r}): answers would be read as reasoning; use a model "
            "that answers without, or give the model folder a chat_template.jinja that closes the "
            f"block behind {opening!r}"
        )
    return frame


def require_assistant_turn(
    frame: ChatFrame, render: Callable[[str, str | None], str | None]
) -> None:
    """Refuse a template behind whose user message a model would go on with the user's turn.

    Args:
        frame: of the template, by `frame_of`.
        render: the template applied to a user message and the assistant's answer (None = no
            answer), without the generation prompt; None where the template refuses that.

    Raises:
        ModelError: if the generation prompt adds nothing to a message, and a finished chat has more
            between message and answer than the frame has behind the message.
    """
    alone = render(_SHORT_PROBE, None)
    shown = frame.prefix + _SHORT_PROBE + frame.suffix
    if frame.suffix.strip() and alone is not None and alone.strip() != shown.strip():
        return
    if not _opens_turn(frame.suffix.strip(), render(_SHORT_PROBE, _ANSWER) or ""):
        raise ModelError(
            "expected a chat template that opens the assistant's turn behind the user message, it "
            f"ends in {frame.suffix!r}, with and without add_generation_prompt; give the model "
            "folder a chat_template.jinja that opens the turn `{% if add_generation_prompt %}`"
        )


def _opens_turn(suffix: str, finished_chat: str) -> bool:
    """Whether a suffix without a generation prompt is all that stands before an answer."""
    _, _, behind = finished_chat.partition(_SHORT_PROBE)
    between, found, _ = behind.partition(_ANSWER)
    between = between.strip()
    if not suffix or not found or not between.startswith(suffix):
        return bool(_END_OF_TURN.sub("", suffix).strip())  # such a chat tells nothing
    # Some templates write an empty block of reasoning before every answer.
    return not re.sub(r"<think>\s*</think>", "", between.removeprefix(suffix)).strip()


def _around(message: str, rendered: str) -> ChatFrame:
    parts = rendered.split(message)
    if len(parts) != 2:
        raise ModelError(
            "expected a chat template that shows the user message exactly once and as it is, it "
            f"shows it {len(parts) - 1} times (a message it changes is none); give the model "
            "folder another chat_template.jinja"
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
