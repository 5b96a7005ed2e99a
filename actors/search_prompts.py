"""The fixed token parts of a patient's search prompts."""

from dataclasses import dataclass

from actors.case_prompts import CasePrompt
from ehr.language.chat import ChatFrame, encode_chat
from ehr.language.pieces import TextTokenizer
from ehr.language.prompts import USEFULNESS_OPENING, PromptContext, usefulness_prompt


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatientPrompts:
    """The fixed token parts of a patient's prompts."""

    patient_id: str
    case: tuple[int, ...]
    """P_QD of the case, up to the assistant's turn."""
    usefulness_head: tuple[int, ...]
    usefulness_tail: tuple[int, ...]
    """What follows the steps in P_H, the words that open the assistant's turn included."""


def patient_prompts(
    prompt: CasePrompt, context: PromptContext, tokenizer: TextTokenizer, frame: ChatFrame
) -> PatientPrompts:
    """Tokenises what does not change during a patient's search, once."""
    useful = usefulness_prompt(prompt.case, context)
    return PatientPrompts(
        patient_id=prompt.case.patient_id,
        case=prompt.token_ids,
        usefulness_head=encode_chat(tokenizer, ChatFrame(frame.prefix, ""), useful.head),
        usefulness_tail=(
            *encode_chat(tokenizer, ChatFrame("", frame.suffix), useful.tail),
            *tokenizer.encode(USEFULNESS_OPENING),
        ),
    )
