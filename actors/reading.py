"""What the search keeps of a sampled text: where it is cut, and when it is thrown away.

Models write anything; every function here takes any text. A piece of content never holds a tag,
so that nothing a model writes can open or close one behind the caller's back.
"""

import re
import unicodedata
from dataclasses import dataclass

from ehr.language.guided_format import USEFULNESS_REGEX
from ehr.language.pieces import TextTokenizer

NEUTRAL_SCORE = 50
"""Stands for a usefulness score that could not be read, with a flag."""

_SUBQUESTION_TAG = re.compile(r"<\s*subquestion\s*(?P<number>\d*)\s*>", re.IGNORECASE)
_FINAL_TAG = re.compile(r"<\s*final\s+subquestion\s*>", re.IGNORECASE)
# "pH <7.2" is no tag. "<|" begins the control tokens of many models: spelled out in a text, a
# tokenizer would make the token itself of it.
_CONTROL_TOKEN = "<|"
_ANY_TAG = re.compile(r"<\s*/?\s*[a-z]|<\|", re.IGNORECASE)
_LAST_LATIN = "\u024f"  # the end of Latin Extended-B
# A digit before the point is a number that was cut ("a pH of 7."), unless a blank follows.
_SENTENCE_END = re.compile(r"[.!?](?=\s)|(?<!\d)[.!?]$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """The usable part of a sampled piece."""

    text: str
    """Stripped; empty if nothing is usable."""
    cut: bool = False
    """Whether the token limit came before the end, and something was cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a freely written step opens, and what it asks."""

    question: Content
    final: bool
    tagged: bool
    """Whether an opening tag was there; without one the text counts as a subquestion."""
    misnumbered: bool = False
    """Whether the tag has another number than the step's; the caller writes the right one."""


def read_question(sampled: str, finish_reason: str) -> Content:
    """The question in a sampled text; cut at its last `?` at the token limit, else empty."""
    text, closed = _before_tag(sampled)
    if closed or finish_reason != "length":
        return Content(text=text)
    return Content(text=text[: text.rfind("?") + 1].strip(), cut=True)


def read_answer(sampled: str, finish_reason: str) -> Content:
    """The answer in a sampled text; at the token limit cut at its last sentence end, if any."""
    text, closed = _before_tag(sampled)
    if closed or finish_reason != "length":
        return Content(text=text)
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return Content(text=text[: ends[-1]] if ends else text, cut=True)


def read_feature_names(sampled: str, finish_reason: str) -> Content:
    """The feature names in a sampled text; cut at the last comma at the token limit."""
    text, closed = _before_tag(sampled)
    if closed or finish_reason != "length":
        return Content(text=text)
    return Content(text=text.rpartition(",")[0].strip(), cut=True)


def read_opening(sampled: str, finish_reason: str, depth: int) -> Opening:
    """The step that a freely written text opens at `depth`: a subquestion or the final one."""
    text = sampled.lstrip()
    final = _FINAL_TAG.match(text)
    subquestion = _SUBQUESTION_TAG.match(text)
    tag = final or subquestion
    body = text[tag.end() :] if tag else text
    question, closed = _before_tag(body)
    cut = finish_reason == "length" and not closed
    if cut:
        question = question[: question.rfind("?") + 1].strip()
    number = subquestion["number"].lstrip("0") if subquestion else ""
    return Opening(
        question=Content(text=question, cut=cut),
        final=final is not None,
        tagged=tag is not None,
        misnumbered=number not in ("", str(depth)),
    )


def read_score(sampled: str, finish_reason: str) -> int | None:
    """The usefulness score from 1 to 100, or None.

    A completion that ran into its token limit is unreadable: the 10 in it may be a cut 100.
    """
    text = sampled.strip()
    if finish_reason == "length" or not re.fullmatch(USEFULNESS_REGEX, text):
        return None
    return int(text)


def usefulness_of(score: int) -> float:
    """R of Eq. 3: a score from 1 to 100 on [0, 1]."""
    return (score - 1) / 99


def without_control_tokens(text: str) -> str:
    """The text before anything that looks like a control token."""
    return text.partition(_CONTROL_TOKEN)[0]


def same_question_key(text: str) -> str:
    """Equal for questions that differ only in case, white space, closing marks or Unicode form."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(plain.split()).rstrip(" ?.!:;,\u3002")


def mostly_foreign(text: str) -> bool:
    """Whether most letters of a text are outside the Latin script, in which prompts are written."""
    letters = [character for character in text if character.isalpha()]
    foreign = sum(character > _LAST_LATIN for character in letters)
    return 2 * foreign > len(letters)


def fit_tokens(text: str, max_tokens: int, tokenizer: TextTokenizer, end: str) -> str:
    """The beginning of a text that takes at most `max_tokens` when it is written with `end`.

    A sampled piece is tokenised again, by itself. That may take more tokens than were sampled: of
    bytes that are no characters every one becomes a replacement character.
    """
    keep = max_tokens
    while text and len(tokenizer.encode(text + end)) > max_tokens:
        text = tokenizer.decode(tokenizer.encode(text)[:keep]).rstrip("\ufffd").strip()
        keep -= 1
    return text


def _before_tag(text: str) -> tuple[str, bool]:
    """The text before the first tag, stripped, and whether there was one."""
    tag = _ANY_TAG.search(text)
    return text[: tag.start() if tag else None].strip(), tag is not None
