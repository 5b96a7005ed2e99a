"""The case prompt in tokens."""

from dataclasses import replace

import numpy as np
import pytest

from actors.case_prompts import PromptKind, case_prompt
from ehr.errors import DataError
from ehr.language.prompts import PromptContext
from tests.scripted import CONTEXT, FRAME, CharTokenizer, case_of

KINDS = (
    *("question_decomposition", "short_answer", "vanilla"),
    *("think_then_answer", "think_then_answer_json"),
)


def _limited(max_prompt_tokens: int) -> PromptContext:
    section = CONTEXT.section.model_copy(update={"max_prompt_tokens": max_prompt_tokens})
    return replace(CONTEXT, section=section)


@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_is_the_message_inside_the_chat_template(kind: PromptKind) -> None:
    prompt = case_prompt(case_of(), kind, CONTEXT, CharTokenizer(), FRAME)

    text = "".join(map(chr, prompt.token_ids))
    assert text.startswith("[USER]")
    assert text.endswith("[ASSISTANT]")
    assert "Heart Rate: [80.0, 90.0]" in text


def test_the_oldest_visit_leaves_when_the_prompt_is_too_long() -> None:
    tokenizer = CharTokenizer()
    whole = case_prompt(case_of(), "vanilla", CONTEXT, tokenizer, FRAME)

    cut = case_prompt(case_of(), "vanilla", _limited(len(whole.token_ids) - 1), tokenizer, FRAME)

    assert (whole.case.num_visits, cut.case.num_visits) == (2, 1)
    assert "Heart Rate: [90.0]" in "".join(map(chr, cut.token_ids))


def test_a_single_visit_that_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="max_prompt_tokens"):
        case_prompt(case_of(), "vanilla", _limited(130), CharTokenizer(), FRAME)


def test_a_value_of_a_visit_that_leaves_is_carried_into_those_that_stay() -> None:
    values = np.array([[80.0] + [1.0] * 7, [np.nan] + [2.0] * 7])
    case, tokenizer = replace(case_of(), values=values), CharTokenizer()

    def context(max_prompt_tokens: int) -> PromptContext:
        limits = {"missing": "locf", "max_prompt_tokens": max_prompt_tokens}
        return replace(CONTEXT, section=CONTEXT.section.model_copy(update=limits))

    whole = case_prompt(case, "vanilla", context(20_000), tokenizer, FRAME)
    cut = case_prompt(case, "vanilla", context(len(whole.token_ids) - 1), tokenizer, FRAME)

    assert "Heart Rate: [80.0, 80.0]" in tokenizer.decode(whole.token_ids)
    assert "Heart Rate: [80.0]" in tokenizer.decode(cut.token_ids)
    assert cut.case.values[:, 0].tolist() == [80.0], "what grounding is checked against"
    assert np.isnan(case.values[1, 0])
