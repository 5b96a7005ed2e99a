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

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ehr.errors import ConfigurationError, ModelError
from ehr.language.pieces import (
    Author,
    Piece,
    TextTokenizer,
    join_text,
    join_token_ids,
    model_written,
)
from ehr.language.trajectory import FINAL_SENTENCE, NUM_IMPORTANT_FEATURES

SUBQUESTION = "subquestion"
FINAL = "final"
_CHOICE_WORDS = {SUBQUESTION: "Subquestion", FINAL: "Final"}

LINE_REGEX = r"[^<\n]+\n"
"""A question or an answer. The line end is part of it, so that no stop falls inside a token."""
_JSON_TEXT_REGEX = r'[^"<\\\n]+"'
"""The inside of a JSON string with the quotation mark that closes it; it cannot hold an escape."""
_NAME_REGEX = r"[^,<\n]{1,64}"
PROBABILITY_REGEX = r"0\.[0-9]{2}\n"
LINE_STOP = "\n"
"""Stop string of every line; it belongs to the line (keep it in text and tokens)."""

_FEATURES_TO_ANSWER = "</Important Features>\n<Final answer>\n"
USEFULNESS_REGEX = r"100|[1-9][0-9]?"
"""A score of 1 to 100, after `ehr.language.prompts.USEFULNESS_OPENING`."""

_PROBABILITY_TOKENS = 5  # "0.85\n" has five characters, and a token has at least one
_FEATURES_TOKENS = 64  # five names of the catalogue take 20 to 60 tokens
_MIN_LINE_TOKENS = 4


def step_regex(i: int) -> str:
    """Choice and question of step i in one request, after `<`."""
    return rf"(Subquestion {i}>\n{LINE_REGEX}|Final subquestion>)"


def features_regex(names: Sequence[str] = ()) -> str:
    """Five names: any of at most 64 characters, or any of `names` (repeats are not excluded)."""
    name = f"({'|'.join(map(_escaped, names))})" if names else _NAME_REGEX
    return rf"{name}(, {name}){{{NUM_IMPORTANT_FEATURES - 1}}}\n"


def final_regex(names: Sequence[str] = ()) -> str:
    """Features and probability in one request, after `GuidedFormat.final_opening`."""
    return features_regex(names) + _FEATURES_TO_ANSWER + PROBABILITY_REGEX


def _escaped(name: str) -> str:
    # `re.escape` also escapes spaces, which engines' own regular expressions do not know.
    return re.sub(r"[][.^$*+?{}\\|()]", r"\\\g<0>", name)


def choice_tokens(tokenizer: TextTokenizer) -> dict[str, int]:
    """First tokens of the words that follow `<`: keys `SUBQUESTION` and `FINAL`.

    Raises:
        ModelError: if they coincide or are no plain beginnings of the words.
    """
    tokens: dict[str, int] = {}
    for choice, word in _CHOICE_WORDS.items():
        token = tokenizer.encode(word)[0]
        start = tokenizer.decode([token])
        if not start or not word.startswith(start):
            raise ModelError(
                f"expected a tokenizer whose first token of {word!r} begins that word, it is "
                f"{start!r}; use `prompt.format=free` with this model"
            )
        tokens[choice] = token
    if len(set(tokens.values())) < len(tokens):
        raise ModelError(
            "expected a tokenizer that tells 'Subquestion' from 'Final' by the first token, both "
            f"begin with token {tokens[FINAL]}; use `prompt.format=free` with this model"
        )
    return tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalText:
    """The model's part of a final, as text."""

    features: str
    """The line of names, stripped."""
    probability: str
    """The written probability, stripped."""


def read_step(text: str, i: int) -> str | None:
    """Question of a completion of `step_regex(i)`, stripped; None if it opened the final.

    A completion that was cut off inside its question gives what there is, "" if nothing.
    """
    if text.startswith("Final"):
        return None
    return text.removeprefix(f"Subquestion {i}>\n").split("\n")[0].strip()


def read_final(text: str) -> FinalText | None:
    """Contents of a completion of `final_regex`; None if it was cut off before the probability."""
    features, found, probability = text.partition(_FEATURES_TO_ANSWER)
    if not found or not re.fullmatch(r"0\.[0-9]{2}", probability.strip()):
        return None
    return FinalText(features=features.strip(), probability=probability.strip())


class GuidedFormat:
    """Fixed pieces of the guided format in one tokenizer's tokens, and the patterns of a final.

    Args:
        tokenizer: the model's.
        names: the names that features may have; none = any.

    Raises:
        ModelError: if the tokenizer cannot express the choice as one token.
    """

    def __init__(self, tokenizer: TextTokenizer, names: Sequence[str] = ()) -> None:
        self.features_regex = features_regex(names)
        self.final_regex = final_regex(names)
        self._tokenizer = tokenizer
        self._fixed: dict[str, Piece] = {}
        self.choices = choice_tokens(tokenizer)
        self._starts = {choice: tokenizer.decode([token]) for choice, token in self.choices.items()}

    def caller(self, text: str) -> Piece:
        """A fixed text, tokenised by itself once."""
        if text not in self._fixed:
            self._fixed[text] = Piece.of(self._tokenizer, text, Author.CALLER)
        return self._fixed[text]

    def step_opening(self) -> Piece:
        """`<`, after which the kind of the step is chosen."""
        return self.caller("<")

    def after_choice(self, choice: str, i: int) -> Piece:
        """The rest of the opening tag; for the final also everything up to the features."""
        rest = _CHOICE_WORDS[choice].removeprefix(self._starts[choice])
        if choice == SUBQUESTION:
            return self.caller(f"{rest} {i}>\n")
        return self.caller(
            f"{rest} subquestion>\n{FINAL_SENTENCE}\n</Final subquestion>\n<Important Features>\n"
        )

    def question_opening(self, i: int) -> tuple[Piece, ...]:
        """`<Subquestion i>` and a line end, its choice token the model's."""
        return self._opening(SUBQUESTION, i, Author.MODEL)

    def final_opening(self, *, forced: bool) -> tuple[Piece, ...]:
        """Everything from `<Final subquestion>` to where the features are written.

        Args:
            forced: the caller chose the final (last depth, or a retry), so no token is the model's.
        """
        return self._opening(FINAL, 0, Author.CALLER if forced else Author.MODEL)

    def after_question(self, i: int) -> Piece:
        """Closes question i and opens its answer."""
        return self.caller(f"</Subquestion {i}>\n<Answer {i}>\n")

    def close_question(self, i: int) -> Piece:
        """Closes question i only: where a usefulness prompt ends."""
        return self.caller(f"</Subquestion {i}>\n")

    def after_answer(self, i: int) -> Piece:
        """Closes answer i."""
        return self.caller(f"</Answer {i}>\n")

    def after_features(self) -> Piece:
        """Closes the features and opens the final answer."""
        return self.caller(_FEATURES_TO_ANSWER)

    def closing(self) -> Piece:
        """Closes the final answer: the end of a trajectory."""
        return self.caller("</Final answer>")

    def line(self, text: str) -> Piece:
        """A sampled content as one line, stripped and tokenised by itself."""
        return Piece.of(self._tokenizer, text.strip() + "\n", Author.MODEL)

    def _opening(self, choice: str, i: int, author: Author) -> tuple[Piece, ...]:
        chosen = Piece(self._starts[choice], (self.choices[choice],), author)
        return self.step_opening(), chosen, self.after_choice(choice, i)


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
