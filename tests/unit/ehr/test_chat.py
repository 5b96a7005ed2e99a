import pytest

from ehr.errors import ModelError
from ehr.language.chat import (
    ChatFrame,
    encode_chat,
    frame_of,
    require_assistant_turn,
)
from tests.tokenizers import ByteTokenizer, PairTokenizer


def test_a_frame_is_what_the_template_writes_around_the_message():
    frame = frame_of(lambda message: f"<sys>Be kind.<user>{message}<assistant>")

    assert frame == ChatFrame(prefix="<sys>Be kind.<user>", suffix="<assistant>")
    assert frame.text == "<sys>Be kind.<user>{message}<assistant>"
    assert ChatFrame.of_text(frame.text) == frame


@pytest.mark.parametrize(("template", "times"), [("no message", 0), ("{0} and {0}", 2)])
def test_a_template_without_one_place_for_the_message_is_refused(template, times):
    with pytest.raises(ModelError, match=f"it shows it {times} times"):
        frame_of(template.format)


@pytest.mark.parametrize(
    "change",
    [
        str.upper,
        str.lower,
        lambda text: text[:2000],
        lambda text: text.replace("<think>", ""),
        lambda text: " ".join(text.split()),
        lambda text: text.replace("<", "&lt;"),
        lambda text: text.encode("ascii", "replace").decode(),
        repr,
    ],
)
def test_a_template_that_changes_the_message_is_refused(change):
    with pytest.raises(ModelError, match=r"as it is, it shows it 0 times"):
        frame_of(lambda message: f"<user>{change(message)}<assistant>")


def test_a_template_may_strip_a_message_as_prompts_have_no_blanks_at_their_ends():
    assert frame_of(lambda text: f"<u>{text.strip()}<a>") == ChatFrame("<u>", "<a>")


def test_a_template_that_looks_at_the_message_or_draws_lots_is_refused():
    turns = iter(range(100))

    with pytest.raises(ModelError, match="the same around every user message"):
        frame_of(lambda text: f"{'long' if len(text) > 500 else 'short'}{text}<a>")
    with pytest.raises(ModelError, match="the same around every user message"):
        frame_of(lambda text: f"{'lucky' if next(turns) == 9 else ''}{text}<a>")


@pytest.mark.parametrize(
    "suffix",
    [
        "<a>\n<think>\n",
        "<a><think>",
        "<a><think>a</think><think>\n",
        "<a><Thinking>",
        "<a>[THINK]",
        "<a><|START_THINKING|>",
        *("<a><thought>", "<a><|begin_of_thought|>", "<a>\u25c1think\u25b7", "<a><|think|>"),
        *("<a><unused94>thought\n", "<a><|channel|>analysis<|message|>", "<a><longcat_think>"),
        *("<a><seed:cot_budget_reflect>", "<a><scratchpad>", "<a></think><reason>"),
    ],
)
def test_an_answer_that_would_begin_inside_a_block_of_reasoning_is_refused(suffix):
    with pytest.raises(ModelError, match=r"opens a block of reasoning.*closes the block"):
        frame_of(lambda message: message + suffix)


@pytest.mark.parametrize(
    "suffix",
    [
        *("<a>\n<think>\n\n</think>\n\n", "<a></think>", "<a>\u25c1think\u25b7\u25c1/think\u25b7"),
        *("<a><|START_THINKING|><|END_THINKING|>", "<a><unused94>thought\n<unused95>"),
        *("<a><|begin_of_thought|><|end_of_thought|>", "<a><|channel|>final<|message|>"),
        *("<a><no_think>", "<a>Reasoning: low", "<a><analyst>", "<a>[|assistant|]"),
    ],
)
def test_a_closed_block_of_reasoning_is_part_of_the_frame(suffix):
    assert frame_of(lambda message: message + suffix).suffix == suffix


TURNS = {"user": "<|im_start|>user\n", "assistant": "<|im_start|>assistant\n"}


def chat(user, answer, end="<|im_end|>\n", turns=TURNS):
    text = turns["user"] + user + end
    return text if answer is None else text + turns["assistant"] + answer + end


@pytest.mark.parametrize(
    ("suffix", "render"),
    [
        ("<|im_end|>\n<|im_start|>assistant\n", chat),
        # the turn is always opened, without its line break
        (
            "<|im_end|>\n<|im_start|>assistant",
            lambda user, answer: chat(user, answer) + "<|im_start|>assistant",
        ),
        # one mark ends the message and opens the answer
        ("[/INST]", lambda user, answer: f"[INST]{user}[/INST]" + (f" {answer}" if answer else "")),
        ("\nA:", lambda user, answer: f"Q: {user}\nA:"),
        ("<a>", lambda user, answer: None),
        # every finished answer has an empty block of reasoning before it
        (
            "<u2><a>",
            lambda user, answer: user + "<u2><a>" + ("<think>\n\n</think>\n" + (answer or "")),
        ),
    ],
)
def test_a_template_that_opens_the_assistants_turn_is_taken(suffix, render):
    rendered = render("MESSAGE", None) or "MESSAGE"

    require_assistant_turn(ChatFrame(rendered.split("MESSAGE")[0], suffix), render)


@pytest.mark.parametrize(
    ("suffix", "render"),
    [
        ("<|im_end|>\n", chat),
        ("", lambda user, answer: user + (answer or "")),
        ("\n\n", lambda user, answer: f"{user}\n\n{answer or ''}"),
        ("</s>\n", lambda user, answer: f"user: {answer or user}</s>\n"),
        ("<|eot_id|>", lambda user, answer: None),
        (
            "\n\n",
            lambda user, answer: f"Q: {user}\n\n" + ("" if answer is None else f"A: {answer}"),
        ),
        (
            "</user>",
            lambda user, answer: f"{user}</user>" + (f"<bot>{answer}</bot>" if answer else ""),
        ),
    ],
)
def test_a_template_that_opens_no_assistants_turn_is_refused(suffix, render):
    rendered = render("MESSAGE", None) or "MESSAGE"

    with pytest.raises(ModelError, match=r"opens the assistant's turn.*add_generation_prompt"):
        require_assistant_turn(ChatFrame(rendered.split("MESSAGE")[0], suffix), render)


def test_prefix_message_and_suffix_are_tokenised_by_themselves():
    tokenizer = PairTokenizer()
    frame = ChatFrame(prefix="abc", suffix="f")

    tokens = encode_chat(tokenizer, frame, "de")

    assert tokens == (*tokenizer.encode("abc"), *tokenizer.encode("de"), *tokenizer.encode("f"))


def test_parts_of_a_message_keep_their_own_tokens():
    frame = ChatFrame(prefix="a", suffix="e")

    assert encode_chat(ByteTokenizer(), frame, "b", (1, 2), "d") == (97, 98, 1, 2, 100, 101)
