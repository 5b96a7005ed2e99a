"""The guided format: the caller writes the tags, the model writes the contents.

Layout of a trajectory, one content a line:

    <Subquestion 1>
    question
    </Subquestion 1>
    <Answer 1>
    answer
    </Answer 1>
    ...
    <Final subquestion>
    fixed sentence
    </Final subquestion>
    <Important Features>
    name, name, name, name, name
    </Important Features>
    <Final answer>
    0.dd
    </Final answer>

Whether a step is a subquestion or the final is the model's own choice of one token after `<`; the
caller forces the final at the last depth. `GuidedFormat` has the fixed pieces; the search composes
trajectories with it. A `Writer` drives a rollout call by call and keeps sampled tokens as they are.
Every content ends with a line end that the model writes, so that it learns where to stop.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ehr.errors import ConfigurationError, ModelError
from ehr.language.guided_format import (
    LINE_REGEX,
    LINE_STOP,
    PROBABILITY_REGEX,
    SUBQUESTION,
    GuidedFormat,
)
from ehr.language.pieces import (
    Author,
    Piece,
    join_text,
    join_token_ids,
    model_written,
)

_JSON_TEXT_REGEX = r'[^"<\\\n]+"'
"""The inside of a JSON string with the quotation mark that closes it; it cannot hold an escape."""


_PROBABILITY_TOKENS = 5  # "0.85\n" has five characters, and a token has at least one
_FEATURES_TOKENS = 64  # five names of the catalogue take 20 to 60 tokens
_MIN_LINE_TOKENS = 4


class CallKind(StrEnum):
    """What a writer asks the model for."""

    CHOICE = "choice"
    """One token: another subquestion or the final."""
    QUESTION = "question"
    """A line."""
    ANSWER = "answer"
    """A line."""
    FEATURES = "features"
    """Five names, a line."""
    PROBABILITY = "probability"
    """`0.dd`, a line."""
    THOUGHT = "thought"
    """The reasoning of Think-then-Answer: a line, or a JSON string."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectForm:
    """Fixed texts of a direct prediction, around what the model writes."""

    opening: str
    after_thought: str = ""
    """Between the reasoning and the probability."""
    closing: str
    thought_regex: str = LINE_REGEX
    thought_end: str = LINE_STOP
    """Ends the reasoning; written by the model, or by the caller at the token limit."""


PROBABILITY_ONLY = DirectForm(opening="<Final answer>\n", closing="</Final answer>")
"""Vanilla."""
THINK_TAGS = DirectForm(
    opening="<think>\n", after_thought="</think>\n<answer>\n", closing="</answer>"
)
"""Think-then-Answer with tags."""
THINK_JSON = DirectForm(
    opening='{"think": "',
    after_thought=',\n"answer": ',
    closing="}",
    thought_regex=_JSON_TEXT_REGEX,
    thought_end='"',
)
"""Think-then-Answer as one JSON object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidedCall:
    """One request to the model; its prompt is the conversation plus all pieces so far."""

    kind: CallKind
    max_tokens: int
    regex: str | None = None
    """Pattern of the whole completion."""
    allowed_token_ids: tuple[int, ...] | None = None
    """The only tokens allowed (a choice)."""
    stop: tuple[str, ...] = ()
    """Stop strings, to be kept in text and tokens (`include_stop`)."""


class Writer(ABC):
    """Text that caller and model write in turns; pure state.

    Ask for `next_request`, send it with all tokens so far as the prompt and hand the reply to
    `accept`, until there is no next request. A line that reaches its token limit is closed by the
    caller, so whatever is written can be read.
    """

    def __init__(self, layout: GuidedFormat) -> None:
        self._layout = layout
        self._pieces: list[Piece] = []
        self._next: CallKind | None = None
        self._num_cut_lines = 0

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Everything written so far."""
        return tuple(self._pieces)

    @property
    def text(self) -> str:
        """Text written so far."""
        return join_text(self._pieces)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Tokens written so far, sampled ones as they were sampled."""
        return join_token_ids(self._pieces)

    @property
    def model_mask(self) -> tuple[bool, ...]:
        """Which of those tokens the model wrote."""
        return model_written(self._pieces)

    @property
    def num_cut_lines(self) -> int:
        """Lines that reached their token limit and were closed by the caller."""
        return self._num_cut_lines

    @abstractmethod
    def next_request(self) -> GuidedCall | None:
        """What to ask the model next; None when the text is complete."""

    def accept(self, token_ids: Sequence[int], text: str) -> None:
        """Takes the model's reply to `next_request` and writes the caller's part after it.

        Args:
            token_ids: the sampled tokens, kept as they are; without any end-of-sequence token.
            text: their text.

        Raises:
            ModelError: if a choice is none of the offered tokens.
        """
        if self._next is None:
            raise ValueError("expected no further text: everything is written")
        if self._next is CallKind.CHOICE:
            self._accept_choice(token_ids)
            return
        self._pieces.append(Piece(text, tuple(token_ids), Author.MODEL))
        end = self._end_of(self._next)
        if not text.endswith(end):
            self._num_cut_lines += 1
            self._pieces.append(self._layout.caller(end))
        self._after_line(self._next)

    def write(self, text: str, token_ids: Sequence[int]) -> None:
        """Writes the line that `next_request` asks for in the caller's own words."""
        if self._next is None:
            raise ValueError("expected no further text: everything is written")
        self._pieces.append(Piece(text, tuple(token_ids), Author.CALLER))
        self._after_line(self._next)

    def _end_of(self, kind: CallKind) -> str:
        """What ends a piece of this kind: nearly always a line end."""
        return LINE_STOP

    @abstractmethod
    def _after_line(self, kind: CallKind) -> None:
        """Writes what follows a line and sets what comes next."""

    def _accept_choice(self, token_ids: Sequence[int]) -> None:
        raise ValueError("expected a line: this text has no choices")


class DirectWriter(Writer):
    """Writes a direct prediction: Vanilla, or Think-then-Answer with reasoning first.

    Args:
        layout: fixed pieces of the format.
        form: fixed texts of the prediction.
        think_tokens: token budget of the reasoning; None = the probability only.
    """

    def __init__(
        self,
        layout: GuidedFormat,
        form: DirectForm = PROBABILITY_ONLY,
        think_tokens: int | None = None,
    ) -> None:
        super().__init__(layout)
        self._form = form
        self._think_tokens = think_tokens
        self._pieces.append(layout.caller(form.opening))
        self._next = CallKind.PROBABILITY if think_tokens is None else CallKind.THOUGHT

    def next_request(self) -> GuidedCall | None:
        """What to ask the model next; None when the answer is complete."""
        form = self._form
        if self._next is None:
            return None
        if self._next is CallKind.THOUGHT and self._think_tokens is not None:
            return GuidedCall(
                kind=CallKind.THOUGHT,
                max_tokens=self._think_tokens,
                regex=form.thought_regex,
                stop=(form.thought_end,),
            )
        return _probability_call()

    def _end_of(self, kind: CallKind) -> str:
        return self._form.thought_end if kind is CallKind.THOUGHT else LINE_STOP

    def _after_line(self, kind: CallKind) -> None:
        is_thought = kind is CallKind.THOUGHT
        text = self._form.after_thought if is_thought else self._form.closing
        self._pieces.append(self._layout.caller(text))
        self._next = CallKind.PROBABILITY if is_thought else None


class ShortAnswerWriter(Writer):
    """Writes features and probability, without subquestions.

    Args:
        layout: fixed pieces of the format.
        max_new_tokens: most tokens that the model writes.
    """

    def __init__(self, layout: GuidedFormat, max_new_tokens: int) -> None:
        super().__init__(layout)
        self._features_tokens = min(_FEATURES_TOKENS, max_new_tokens - _PROBABILITY_TOKENS)
        self._pieces.append(layout.caller("<Important Features>\n"))
        self._next = CallKind.FEATURES

    def next_request(self) -> GuidedCall | None:
        """What to ask the model next; None when the answer is complete."""
        match self._next:
            case CallKind.FEATURES:
                return _features_call(self._layout, self._features_tokens)
            case CallKind.PROBABILITY:
                return _probability_call()
            case _:
                return None

    def _after_line(self, kind: CallKind) -> None:
        if kind is CallKind.FEATURES:
            self._pieces.append(self._layout.after_features())
            self._next = CallKind.PROBABILITY
        else:
            self._pieces.append(self._layout.closing())
            self._next = None


class GuidedWriter(Writer):
    """Writes one trajectory in the guided format.

    The token budget is for model-written tokens. What the final needs is set aside; the rest is
    dealt out evenly over the lines that may still come.

    Args:
        max_depth: step at which the final is forced.
        layout: fixed pieces of the format.
        max_new_tokens: most tokens that the model writes.

    Raises:
        ConfigurationError: if the budget leaves less than a few tokens per line.
    """

    def __init__(self, max_depth: int, layout: GuidedFormat, max_new_tokens: int) -> None:
        super().__init__(layout)
        self._max_depth = max_depth
        self._features_tokens = min(_FEATURES_TOKENS, max_new_tokens * 2 // 5)
        # A token for each choice: one at every step but the last.
        self._line_budget = (
            max_new_tokens - self._features_tokens - _PROBABILITY_TOKENS - (max_depth - 1)
        )
        self._depth = 1
        if self._features_tokens < _MIN_LINE_TOKENS or (
            self._line_budget < 2 * (max_depth - 1) * _MIN_LINE_TOKENS
        ):
            raise ConfigurationError(
                f"expected max_new_tokens to leave {_MIN_LINE_TOKENS} tokens for each line of "
                f"{max_depth - 1} steps beside the final, got {max_new_tokens}; raise "
                "max_new_tokens or lower max_depth"
            )
        self._open_step()

    def next_request(self) -> GuidedCall | None:
        """What to ask the model next; None when the trajectory is complete."""
        match self._next:
            case None:
                return None
            case CallKind.CHOICE:
                return GuidedCall(
                    kind=CallKind.CHOICE,
                    max_tokens=1,
                    allowed_token_ids=tuple(self._layout.choices.values()),
                )
            case CallKind.FEATURES:
                return _features_call(self._layout, self._features_tokens)
            case CallKind.PROBABILITY:
                return _probability_call()
            case kind:
                return _line_call(kind, LINE_REGEX, self._line_tokens(kind))

    def _after_line(self, kind: CallKind) -> None:
        layout, depth = self._layout, self._depth
        if kind in (CallKind.QUESTION, CallKind.ANSWER):
            self._line_budget -= len(self._last_line().token_ids)
        match kind:
            case CallKind.QUESTION:
                self._pieces.append(layout.after_question(depth))
                self._next = CallKind.ANSWER
            case CallKind.ANSWER:
                self._pieces.append(layout.after_answer(depth))
                self._depth += 1
                self._open_step()
            case CallKind.FEATURES:
                self._pieces.append(layout.after_features())
                self._next = CallKind.PROBABILITY
            case _:
                self._pieces.append(layout.closing())
                self._next = None

    def _open_step(self) -> None:
        if self._depth >= self._max_depth:
            self._pieces.extend(self._layout.final_opening(forced=True))
            self._next = CallKind.FEATURES
        else:
            self._pieces.append(self._layout.step_opening())
            self._next = CallKind.CHOICE

    def _accept_choice(self, token_ids: Sequence[int]) -> None:
        chosen = [c for c, token in self._layout.choices.items() if tuple(token_ids) == (token,)]
        if not chosen:
            raise ModelError(
                f"expected one of the tokens {self._layout.choices}, the generator sent "
                f"{list(token_ids)[:5]}; check that it honours allowed_token_ids"
            )
        if chosen[0] == SUBQUESTION:
            opening = self._layout.question_opening(self._depth)
            self._next = CallKind.QUESTION
        else:
            opening = self._layout.final_opening(forced=False)
            self._next = CallKind.FEATURES
        self._pieces.extend(opening[1:])  # "<" is already there

    def _last_line(self) -> Piece:
        return next(piece for piece in reversed(self._pieces) if piece.author is Author.MODEL)

    def _line_tokens(self, kind: CallKind) -> int:
        """An even share of what is left, over the lines that may still come."""
        num_lines = 2 * (self._max_depth - self._depth) - (kind is CallKind.ANSWER)
        return self._line_budget // num_lines


def _features_call(layout: GuidedFormat, max_tokens: int) -> GuidedCall:
    return _line_call(CallKind.FEATURES, layout.features_regex, max_tokens)


def _probability_call() -> GuidedCall:
    return _line_call(CallKind.PROBABILITY, PROBABILITY_REGEX, _PROBABILITY_TOKENS)


def _line_call(kind: CallKind, regex: str, max_tokens: int) -> GuidedCall:
    return GuidedCall(kind=kind, max_tokens=max_tokens, regex=regex, stop=(LINE_STOP,))
