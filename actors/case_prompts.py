"""The case prompt in tokens: one function for search, SFT, rollouts and evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ehr.cohorts.cohort import PatientCase
from ehr.language.chat import ChatFrame, encode_chat
from ehr.language.pieces import TextTokenizer
from ehr.language.prompts import (
    PromptContext,
    fit_case,
    question_decomposition_prompt,
    short_answer_prompt,
    shown_case,
    think_json_prompt,
    think_prompt,
    vanilla_prompt,
)

PromptKind = Literal[
    "question_decomposition",
    "short_answer",
    "vanilla",
    "think_then_answer",
    "think_then_answer_json",
]
"""What a model is asked to do with a case."""

_RENDER: dict[str, Callable[[PatientCase, PromptContext], str]] = {
    "question_decomposition": question_decomposition_prompt,
    "short_answer": short_answer_prompt,
    "vanilla": vanilla_prompt,
    "think_then_answer": think_prompt,
    "think_then_answer_json": think_json_prompt,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CasePrompt:
    """A patient's prompt, ready to be generated from."""

    token_ids: tuple[int, ...]
    """Chat template and user message, up to where the assistant's turn begins."""
    case: PatientCase
    """What of the patient the prompt shows: the oldest visits may be left out, and missing values
    may be carried forward."""


def case_prompt(
    case: PatientCase,
    kind: PromptKind,
    context: PromptContext,
    tokenizer: TextTokenizer,
    frame: ChatFrame,
) -> CasePrompt:
    """The prompt of a patient, with as many visits as `prompt.max_prompt_tokens` allows.

    Args:
        case: the patient.
        kind: what is asked.
        context: task, features and prompt options.
        tokenizer: the model's tokenizer.
        frame: the model's chat template.

    Raises:
        DataError: if even one visit does not fit.
    """

    def encode(text: str) -> tuple[int, ...]:
        return encode_chat(tokenizer, frame, text)

    def render(shown: PatientCase) -> str:
        return _RENDER[kind](shown, context)

    # Carried forward before the oldest visits leave, so that their values are not lost with them.
    whole = shown_case(case, context.section)
    fitted = fit_case(
        whole, render, lambda text: len(encode(text)), context.section.max_prompt_tokens
    )
    return CasePrompt(token_ids=encode(render(fitted)), case=fitted)
