"""The two output formats as the search uses them: what to ask, and which pieces come of it.

`guided`: the caller writes the tags and patterns constrain the model. `free`: the model writes
everything and stop strings end a call. The pieces of both read alike, so one parser reads both.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from actors.config import SearchSection
from actors.reading import (
    Content,
    Opening,
    fit_tokens,
    read_answer,
    read_feature_names,
    read_opening,
    read_question,
    without_control_tokens,
)
from ehr.language.guided_format import (
    LINE_REGEX,
    LINE_STOP,
    PROBABILITY_REGEX,
    GuidedFormat,
    read_final,
    read_step,
    step_regex,
)
from ehr.language.pieces import Author, Piece, TextTokenizer
from ehr.language.trajectory import FINAL_SENTENCE
from services.types import Completion

_PROBABILITY_TOKENS = 8
"""A probability line in any tokenizer, with its line end and the end of sequence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One question to the model: what the caller writes first, and how the reply is bounded."""

    opening: tuple[Piece, ...] = ()
    max_tokens: int
    stop: tuple[str, ...]
    regex: str | None = None


Answerer = Callable[[Ask], Awaitable[Completion]]
"""Asks the model after `final_opening` and what the question itself opens."""


class SearchFormat(Protocol):
    """What the search needs to know of an output format; depths count from 1."""

    def proposal(self, depth: int) -> Ask:
        """Asks for the next step: a subquestion, or the opening of the final one."""
        ...

    def read_proposal(self, completion: Completion, depth: int) -> Opening:
        """The step that a reply to `proposal` opens."""
        ...

    def question(self, depth: int, text: str) -> tuple[Piece, ...]:
        """A subquestion and the opening of its answer."""
        ...

    def answer(self) -> Ask:
        """Asks for the answer after `question`."""
        ...

    def read_answer(self, completion: Completion) -> Content:
        """The answer in a reply to `answer`."""
        ...

    def close_answer(self, depth: int, text: str) -> tuple[Piece, ...]:
        """An answer and the end of its step."""
        ...

    def unanswered(self, depth: int, text: str, *, final: bool) -> tuple[Piece, ...]:
        """A step without its answer: where a usefulness prompt ends."""
        ...

    def final_opening(self, text: str, *, forced: bool) -> tuple[Piece, ...]:
        """The final subquestion, up to where the model writes."""
        ...

    async def write_final(self, ask: Answerer) -> tuple[Piece, ...]:
        """What the model writes after `final_opening`, closed."""
        ...

    async def retry_final(self, ask: Answerer) -> tuple[Piece, ...]:
        """The same, forced: the caller opens more and accepts less."""
        ...

    def reserve_tokens(self, depth: int) -> int:
        """Tokens that one more step and the final may take at most: the context guard's."""
        ...


class _LineLimits:
    """Keeps sampled lines within their token limits when they are tokenised again.

    The line end that is written behind each of them may come on top of its limit.
    """

    def __init__(self, tokenizer: TextTokenizer, section: SearchSection) -> None:
        self._tokenizer = tokenizer
        end = len(tokenizer.encode("\n"))
        self.question_tokens = section.question_tokens + end
        self.answer_tokens = section.answer_tokens + end
        self.names_tokens = section.final_tokens + end

    def question(self, content: Content) -> Content:
        """The question, or none if it is too long: part of a question asks something else."""
        return content if self._fits(content, self.question_tokens) else Content(text="", cut=True)

    def answer(self, content: Content) -> Content:
        """The answer, or as much of it as fits."""
        if self._fits(content, self.answer_tokens):
            return content
        text = fit_tokens(content.text, self.answer_tokens, self._tokenizer, "\n")
        return Content(text=text, cut=True)

    def names(self, content: Content) -> str:
        """The feature names, without those that do not fit."""
        if self._fits(content, self.names_tokens):
            return content.text
        text = fit_tokens(content.text, self.names_tokens, self._tokenizer, "\n")
        return text.rpartition(",")[0].strip()

    def _fits(self, content: Content, max_tokens: int) -> bool:
        return len(self._tokenizer.encode(content.text + "\n")) <= max_tokens


class GuidedSearchFormat:
    """The guided format (ehr.language.guided_writers), one request a step and one for the final."""

    def __init__(
        self, tokenizer: TextTokenizer, section: SearchSection, names: Sequence[str] = ()
    ) -> None:
        self._layout = GuidedFormat(tokenizer, names)
        self._section = section
        self._limits = _LineLimits(tokenizer, section)

    def proposal(self, depth: int) -> Ask:
        """Choice and question in one request; the pattern ends it, the stop is a second guard."""
        tag = self._layout.caller(f"Subquestion {depth}>\n")
        return Ask(
            opening=(self._layout.step_opening(),),
            max_tokens=self._section.question_tokens + len(tag.token_ids),
            stop=("</Subquestion", "</Final subquestion"),
            regex=step_regex(depth),
        )

    def read_proposal(self, completion: Completion, depth: int) -> Opening:
        """The question, or the fixed final sentence if the model chose the final."""
        question = read_step(completion.text, depth)
        if question is None:
            return Opening(question=Content(text=FINAL_SENTENCE), final=True, tagged=True)
        return Opening(
            question=self._limits.question(read_question(question, completion.finish_reason)),
            final=False,
            tagged=completion.text.startswith(f"Subquestion {depth}>"),
        )

    def question(self, depth: int, text: str) -> tuple[Piece, ...]:
        """The model's choice and line between the caller's tags."""
        layout = self._layout
        return (*layout.question_opening(depth), layout.line(text), layout.after_question(depth))

    def answer(self) -> Ask:
        """One line."""
        return Ask(max_tokens=self._section.answer_tokens, stop=(LINE_STOP,), regex=LINE_REGEX)

    def read_answer(self, completion: Completion) -> Content:
        """The line."""
        return self._limits.answer(read_answer(completion.text, completion.finish_reason))

    def close_answer(self, depth: int, text: str) -> tuple[Piece, ...]:
        """The model's line and the caller's tag."""
        return self._layout.line(text), self._layout.after_answer(depth)

    def unanswered(self, depth: int, text: str, *, final: bool) -> tuple[Piece, ...]:
        """The step up to its closing question tag."""
        layout = self._layout
        if final:
            return (layout.caller(_final_question(text)),)
        return (*layout.question_opening(depth), layout.line(text), layout.close_question(depth))

    def final_opening(self, text: str, *, forced: bool) -> tuple[Piece, ...]:
        """Up to the features; the sentence is always the fixed one."""
        return self._layout.final_opening(forced=forced)

    async def write_final(self, ask: Answerer) -> tuple[Piece, ...]:
        """Features and probability in one request; one that was cut off leaves no probability."""
        completion = await ask(
            Ask(
                max_tokens=self._section.final_tokens,
                stop=("</Final answer",),
                regex=self._layout.final_regex,
            )
        )
        final = read_final(completion.text)
        if final is None:
            return (self._layout.line(self._names(completion)),)
        return self._final(final.features, final.probability)

    async def retry_final(self, ask: Answerer) -> tuple[Piece, ...]:
        """Names and probability in two requests: names that run too long lose the last one."""
        layout = self._layout
        names = await ask(
            Ask(
                max_tokens=self._section.final_tokens,
                stop=(LINE_STOP,),
                regex=layout.features_regex,
            )
        )
        features = layout.line(self._names(names))
        probability = await ask(
            Ask(
                opening=(features, layout.after_features()),
                max_tokens=_PROBABILITY_TOKENS,
                stop=(LINE_STOP,),
                regex=PROBABILITY_REGEX,
            )
        )
        return self._final(features.text, read_answer(probability.text, "stop").text)

    def reserve_tokens(self, depth: int) -> int:
        """Fixed pieces plus every limit of a step and the final."""
        limits, layout = self._limits, self._layout
        fixed = (
            *self.question(depth, ""),
            layout.after_answer(depth),
            *layout.final_opening(forced=True),
            layout.after_features(),
        )
        written = limits.question_tokens + limits.answer_tokens + limits.names_tokens
        return sum(len(piece.token_ids) for piece in fixed) + written + _PROBABILITY_TOKENS

    def _names(self, completion: Completion) -> str:
        return self._limits.names(read_feature_names(completion.text, completion.finish_reason))

    def _final(self, features: str, probability: str) -> tuple[Piece, ...]:
        layout = self._layout
        return (
            layout.line(features),
            layout.after_features(),
            layout.line(probability),
            layout.closing(),
        )


class FreeSearchFormat:
    """The free format: tags are the model's too, so every piece counts as written by it."""

    def __init__(self, tokenizer: TextTokenizer, section: SearchSection) -> None:
        self._tokenizer = tokenizer
        self._section = section
        self._limits = _LineLimits(tokenizer, section)

    def proposal(self, depth: int) -> Ask:
        """Whatever the model opens, up to where its question ends."""
        return Ask(
            max_tokens=self._section.question_tokens,
            stop=("</Subquestion", "</Final subquestion"),
        )

    def read_proposal(self, completion: Completion, depth: int) -> Opening:
        """A subquestion, or the final one if that is what it opens."""
        opening = read_opening(completion.text, completion.finish_reason, depth)
        return replace(opening, question=self._limits.question(opening.question))

    def question(self, depth: int, text: str) -> tuple[Piece, ...]:
        """The question between fixed tags with the right number."""
        return (
            self._piece(f"<Subquestion {depth}>\n"),
            self._piece(text + "\n"),
            self._piece(f"</Subquestion {depth}>\n<Answer {depth}>\n"),
        )

    def answer(self) -> Ask:
        """Everything up to the end of the answer, or the next question without one."""
        return Ask(max_tokens=self._section.answer_tokens, stop=("</Answer", "<Subquestion"))

    def read_answer(self, completion: Completion) -> Content:
        """The answer up to the first tag."""
        return self._limits.answer(read_answer(completion.text, completion.finish_reason))

    def close_answer(self, depth: int, text: str) -> tuple[Piece, ...]:
        """The answer and its closing tag."""
        return self._piece(text + "\n"), self._piece(f"</Answer {depth}>\n")

    def unanswered(self, depth: int, text: str, *, final: bool) -> tuple[Piece, ...]:
        """The step up to its closing question tag."""
        if final:
            return self.final_opening(text, forced=False)
        return (
            self._piece(f"<Subquestion {depth}>\n"),
            self._piece(text + "\n"),
            self._piece(f"</Subquestion {depth}>\n"),
        )

    def final_opening(self, text: str, *, forced: bool) -> tuple[Piece, ...]:
        """The final question; a forced one is the fixed sentence."""
        return (
            self._piece("<Final subquestion>\n"),
            self._piece((FINAL_SENTENCE if forced else text) + "\n"),
            self._piece("</Final subquestion>\n"),
        )

    async def write_final(self, ask: Answerer) -> tuple[Piece, ...]:
        """Features and probability as the model writes them."""
        completion = await ask(self._final_ask())
        return self._final(completion)

    async def retry_final(self, ask: Answerer) -> tuple[Piece, ...]:
        """The same after an opened features block."""
        opening = self._piece("<Important Features>\n")
        completion = await ask(self._final_ask(opening))
        return opening, *self._final(completion)

    def reserve_tokens(self, depth: int) -> int:
        """Fixed pieces plus every limit of a step and the final."""
        limits = self._limits
        fixed = (
            *self.question(depth, ""),
            self._piece(f"</Answer {depth}>\n"),
            *self.final_opening("", forced=True),
            self._piece("<Important Features>\n"),
        )
        written = limits.question_tokens + limits.answer_tokens + self._section.final_tokens
        return sum(len(piece.token_ids) for piece in fixed) + written

    def _final_ask(self, *opening: Piece) -> Ask:
        return Ask(opening=opening, max_tokens=self._section.final_tokens, stop=("</Final answer",))

    def _final(self, completion: Completion) -> tuple[Piece, ...]:
        text = without_control_tokens(completion.text).strip()
        return self._piece(text), self._piece("\n</Final answer>")

    def _piece(self, text: str) -> Piece:
        return Piece.of(self._tokenizer, text, Author.MODEL)


def search_format(
    name: str, tokenizer: TextTokenizer, section: SearchSection, names: Sequence[str] = ()
) -> SearchFormat:
    """The format that `prompt.format` names.

    Args:
        name: `prompt.format`.
        tokenizer: the model's.
        section: limits of what is written.
        names: names that guided finals may use for features; none = any.
    """
    if name == "guided":
        return GuidedSearchFormat(tokenizer, section, names)
    return FreeSearchFormat(tokenizer, section)


def _final_question(text: str) -> str:
    return f"<Final subquestion>\n{text}\n</Final subquestion>\n"
