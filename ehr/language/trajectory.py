"""Tags of a trajectory, and a parser for what language models really write between them.

The parser tolerates wrong numbers, missing close tags, other capitals and percentages. It never
guesses a probability: what cannot be read is a format failure with a reason.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ehr.catalogue.name_lists import split_names

FINAL_SENTENCE = "Now the probability of the outcome can be estimated."
"""What the caller writes into `<Final subquestion>`; the same for every task."""

NUM_IMPORTANT_FEATURES = 5

_TAG = re.compile(
    r"<\s*(?P<close>/?)\s*(?P<name>final\s+subquestion|subquestion|important\s+features|"
    r"final\s+answer|answer|think)\s*\d*\s*>",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"(?<![\w.,^-])(?P<sign>-?)(?P<value>\d+(?:\.\d+)?|0,\d+|\.\d+)(?P<exp>e[+-]?\d+)?"
    r"(?P<percent>\s*(?:%|percent\b))?(?!\w|\^|[.,]\w)",
    re.IGNORECASE,
)
_BARE = re.compile(r"\s*[\d.,]+\s*%?\s*")
# A bound or a span is not a probability: reading "less than 0.1" as 0.1 would be a guess.
_INEXACT = re.compile(
    r"[<>\u2264\u2265]\s*[\d.]|[\d%]\s*(?:[-\u2013\u2014]|\bto\b)\s*[\d.]|"
    r"\b(?:less|more|greater|lower|higher|above|below|under|over|between|at\s+least|at\s+most)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class ParsedStep:
    """One subquestion and its answer, stripped; either may be empty."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedTrajectory:
    """What could be read from a trajectory's text."""

    steps: tuple[ParsedStep, ...] = ()
    features: tuple[str, ...] = ()
    """Names of the last features block as they were written, duplicates kept."""
    features_span: tuple[int, int] | None = None
    """Where the contents of that block begin and end in the text; None without a block."""
    probability: float | None = None
    """The predicted probability in [0, 1]; None = unreadable."""
    failure: str | None = None
    """Why the format failed, in a few words; None = readable."""


@dataclass(frozen=True, slots=True)
class _Block:
    name: str
    start: int
    end: int


def parse_trajectory(text: str) -> ParsedTrajectory:
    """Steps, important features and probability of a question-decomposition answer."""
    blocks = _blocks(text)
    features_span = next(
        ((b.start, b.end) for b in reversed(blocks) if b.name == "important features"), None
    )
    features: tuple[str, ...] = ()
    if features_span is not None:
        features = tuple(split_names(text[features_span[0] : features_span[1]]))
    answers = [text[b.start : b.end] for b in blocks if b.name == "final answer"]
    probability, failure = one_probability(answers)
    return ParsedTrajectory(
        steps=_steps(text, blocks),
        features=features,
        features_span=features_span,
        probability=probability,
        failure=failure,
    )


def parse_vanilla(text: str) -> ParsedTrajectory:
    """Probability of an answer that should hold nothing else, inside or outside answer tags."""
    blocks = [b for b in _blocks(text) if b.name in ("final answer", "answer")]
    answers = [text[b.start : b.end] for b in blocks] or [text]
    probability, failure = one_probability(answers)
    return ParsedTrajectory(probability=probability, failure=failure)


def parse_think(text: str) -> ParsedTrajectory:
    """Probability inside `<answer>`, after the reasoning inside `<think>`.

    Without that tag it is read behind the reasoning, or if the text is nothing but a probability.
    """
    thought = text.lower().rfind("</think>")
    after_thinking = text if thought < 0 else text[thought + len("</think>") :]
    blocks = [b for b in _blocks(after_thinking) if b.name in ("final answer", "answer")]
    answers = [after_thinking[b.start : b.end] for b in blocks]
    if not answers and (thought >= 0 or _BARE.fullmatch(text)):
        answers = [after_thinking]
    probability, failure = one_probability(answers)
    return ParsedTrajectory(probability=probability, failure=failure)


def reasoning_of(text: str) -> str:
    """The prose of an answer of any format: answers to subquestions, or what stands in `<think>`.

    Questions, feature lists and the final probability leave; an answer of another shape has none.
    """
    thoughts = [block for block in _blocks(text) if block.name == "think"]
    if thoughts:
        close = text.lower().rfind("</think>")
        text = text[thoughts[0].start : close if close > thoughts[0].start else len(text)]
    first_tag = _TAG.search(text)
    # What stands before any tag is prose where the model thinks, and a preamble elsewhere.
    opening = text[: first_tag.start() if first_tag else len(text)] if thoughts else ""
    parts = [opening.strip(), *(step.answer for step in _steps(text, _blocks(text)))]
    return "\n".join(part for part in parts if part)


def parse_probability(text: str) -> float | None:
    """The one probability that a text states, or None.

    `0.85`, `.85`, `0,85`, `85%`, `1` and sentences around one of them are read. Bounds, spans,
    several different numbers, numbers above 1 without a percent sign and negative ones are not.
    """
    if _INEXACT.search(text):
        return None
    values: set[float] = set()
    for number in _NUMBER.finditer(text):
        value = float(number["value"].replace(",", ".") + (number["exp"] or ""))
        if number["percent"]:
            value /= 100
        if number["sign"] or value > 1:
            return None
        values.add(round(value, 6))
    return values.pop() if len(values) == 1 else None


def _blocks(text: str) -> list[_Block]:
    """Contents after each opening tag up to the next tag of any kind."""
    tags = list(_TAG.finditer(text))
    ends = [*(tag.start() for tag in tags), len(text)][1:]
    return [
        _Block(" ".join(tag["name"].lower().split()), tag.end(), end)
        for tag, end in zip(tags, ends, strict=True)
        if not tag["close"]
    ]


def _steps(text: str, blocks: list[_Block]) -> tuple[ParsedStep, ...]:
    steps: list[ParsedStep] = []
    question: str | None = None
    for block in blocks:
        content = text[block.start : block.end].strip()
        if block.name == "subquestion":
            if question is not None:
                steps.append(ParsedStep(question, ""))
            question = content
        elif block.name == "answer":
            steps.append(ParsedStep(question or "", content))
            question = None
        elif block.name == "final subquestion":
            break
    if question is not None:
        steps.append(ParsedStep(question, ""))
    return tuple(steps)


def one_probability(answers: Sequence[str]) -> tuple[float | None, str | None]:
    """The probability that all stated answers agree on, or why there is none."""
    if not answers:
        return None, "no final answer"
    values = {parse_probability(answer) for answer in answers}
    if None in values:
        return None, "unreadable final answer"
    if len(values) > 1:
        return None, "contradicting final answers"
    return values.pop(), None
