"""The guided format: its texts, the patterns that hold a model to them, and how it is read."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ehr.errors import ModelError
from ehr.language.pieces import (
    Author,
    Piece,
    TextTokenizer,
)
from ehr.language.trajectory import FINAL_SENTENCE, NUM_IMPORTANT_FEATURES

SUBQUESTION = "subquestion"


FINAL = "final"


_CHOICE_WORDS = {SUBQUESTION: "Subquestion", FINAL: "Final"}


LINE_REGEX = r"[^<\n]+\n"
"""A question or an answer. The line end is part of it, so that no stop falls inside a token."""


_NAME_REGEX = r"[^,<\n]{1,64}"


PROBABILITY_REGEX = r"0\.[0-9]{2}\n"


LINE_STOP = "\n"
"""Stop string of every line; it belongs to the line (keep it in text and tokens)."""


_FEATURES_TO_ANSWER = "</Important Features>\n<Final answer>\n"


USEFULNESS_REGEX = r"100|[1-9][0-9]?"
"""A score of 1 to 100, after `ehr.language.prompts.USEFULNESS_OPENING`."""


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
