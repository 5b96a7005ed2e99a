"""Tokenizers of GGUF files, and frames of real chat templates."""

import json
from datetime import datetime
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from ehr.errors import ModelError
from ehr.language.chat import ChatFrame
from services.conversion import CHAT_FILE, render_chat, set_splitting, template_frame

SPECIALS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<sop>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def bare_tokenizer() -> Tokenizer:
    """Bytes as tokens, and five special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


def saved(folder: Path, single: str | None = None, **settings: object) -> Path:
    """A folder with the tokenizer; `single` is what its post-processor makes of a text."""
    tokenizer = bare_tokenizer()
    if single is not None:
        known = [(token, tokenizer.token_to_id(token)) for token in SPECIALS]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=f"{single} $B", special_tokens=known
        )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", **settings
    ).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def frame(template: str) -> ChatFrame:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare_tokenizer(), bos_token="<s>", eos_token="</s>", chat_template=template
    )
    return template_frame(tokenizer, {})


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    assert tokenizer.pre_tokenizer is not None
    return [text[slice(*place)] for _, place in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


SPLITS = {
    "\n\n12": ["\n\n", "1", "2"],
    "  7": ["  ", "7"],
    "a 2020": ["a", " ", "2", "0", "2", "0"],
    "Age: 64\n- pH: 7.4": ["Age", ":", " ", "6", "4", "\n", "-", " pH", ":", " ", "7", ".", "4"],
}


@pytest.mark.parametrize("text", SPLITS)
def test_smollm_splits_digits_before_anything_else(text: str) -> None:
    tokenizer = bare_tokenizer()

    set_splitting(tokenizer, "smollm")

    assert pieces(tokenizer, text) == SPLITS[text]


@pytest.mark.parametrize("splitting", ["qwen2", "llama-bpe", "gpt-2"])
def test_a_splitting_that_transformers_has_set_is_left_as_it_is(splitting: str) -> None:
    tokenizer = bare_tokenizer()
    before = pieces(tokenizer, "a 2020\n\n12")

    set_splitting(tokenizer, splitting)

    assert pieces(tokenizer, "a 2020\n\n12") == before


@pytest.mark.parametrize("splitting", [None, "default", "starcoder", "tomorrow"])
def test_a_splitting_that_nobody_here_knows_is_refused(splitting: str | None) -> None:
    with pytest.raises(ModelError, match=rf"tokenizer\.ggml\.pre.*smollm.*got {splitting!r}"):
        set_splitting(bare_tokenizer(), splitting)


@pytest.mark.parametrize(
    ("single", "settings", "prefix"),
    [
        ("<s> $A", {}, "<s>"),
        ("<s> $A </s>", {}, "<s>"),
        ("<s> <sop> $A", {}, "<s><sop>"),
        ("$A </s>", {}, ""),
        ("<|im_start|> $A", {}, "<|im_start|>"),
        (None, {}, ""),
        (None, {"add_bos_token": True}, "<s>"),
        (None, {"add_bos_token": True, "add_eos_token": True}, "<s>"),
    ],
)
def test_a_base_model_gets_what_its_tokenizer_puts_before_a_text(
    single: str | None, settings: dict[str, bool], prefix: str, tmp_path: Path
) -> None:
    render_chat(saved(tmp_path, single, **settings), tmp_path)

    written = json.loads((tmp_path / CHAT_FILE).read_text())
    assert written == {"prefix": prefix, "suffix": "\n", "clock": {}}


def test_a_chat_template_writes_its_own_bos_and_gets_no_second(tmp_path: Path) -> None:
    template = "{{ bos_token }}" + CHATML
    render_chat(saved(tmp_path, "<s> $A", chat_template=template), tmp_path)

    written = json.loads((tmp_path / CHAT_FILE).read_text())
    assert written["prefix"] == "<s><|im_start|>user\n"


def test_a_bos_that_the_tokenizer_file_does_not_know_is_refused(tmp_path: Path) -> None:
    file = saved(tmp_path, "<s> $A") / "tokenizer.json"
    written = json.loads(file.read_text())
    written["added_tokens"] = [t for t in written["added_tokens"] if t["content"] != "<s>"]
    written["model"]["vocab"]["<s>"] = 256
    file.write_text(json.dumps(written))
    # transformers adds it from here
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "bos_token": "<s>"}))

    with pytest.raises(ModelError, match="'<s>' among its added tokens"):
        render_chat(tmp_path, tmp_path)


def test_the_times_that_a_template_writes_are_kept_with_its_frame(tmp_path: Path) -> None:
    template = (
        "{{ 'Today: ' + strftime_now('%d %b %Y') + '\\n' }}{% for m in messages %}<|im_start|>"
        "{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant"
    )
    before = datetime.now().strftime("%d %b %Y")

    render_chat(saved(tmp_path, chat_template=template), tmp_path)

    written = json.loads((tmp_path / CHAT_FILE).read_text())
    day = written["clock"]["%d %b %Y"]
    assert day in (before, datetime.now().strftime("%d %b %Y"))
    assert written["prefix"] == f"Today: {day}\n<|im_start|>user\n"
    assert written["suffix"] == "<|im_end|>\n<|im_start|>assistant"


def test_a_template_that_counts_microseconds_has_one_frame(tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare_tokenizer(), chat_template="{{ strftime_now('%f') }}" + CHATML
    )
    clock: dict[str, str] = {}

    written = template_frame(tokenizer, clock)

    assert written.prefix == f"{clock['%f']}<|im_start|>user\n"


@pytest.mark.parametrize("switch", ["enable_thinking", "thinking"])
def test_a_template_with_a_switch_for_reasoning_has_it_off(switch: str) -> None:
    template = (
        CHATML.removesuffix("{% endif %}")
        + f"{{% if {switch} is defined and not {switch} %}}<think>\n\n</think>\n\n"
        + "{% else %}<think>\n{% endif %}{% endif %}"
    )

    assert frame(template).suffix.endswith("assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (CHATML.replace("assistant\n{%", "assistant\n<think>\n{%"), "opens a block of reasoning"),
        (CHATML.partition("{% if add_")[0], "opens the assistant's turn"),
        (CHATML.replace("m.content", "m.content | upper"), "shows it 0 times"),
        (CHATML.replace("m.content", "m.content + m.content"), "shows it 2 times"),
        (CHATML.replace("m.content", "m.role"), "shows it 0 times"),
        ("{{ lipsum() }}" + CHATML, "the same around every user message"),
        (
            "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}"
            + CHATML,
            "without a system message, it says.*system first",
        ),
        ("{{ messages[0]['tool'] + 1 }}" + CHATML, "it says .*Undefined"),
        ("{% if %}" + CHATML, "it says TemplateSyntaxError"),
    ],
)
def test_a_template_that_cannot_be_a_frame_is_refused(template: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        frame(template)


def test_several_named_templates_have_a_default_or_are_refused() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare_tokenizer())
    tokenizer.chat_template = {"default": CHATML, "rag": "x"}

    assert template_frame(tokenizer, {}).prefix == "<|im_start|>user\n"

    tokenizer.chat_template = {"rag": CHATML}
    with pytest.raises(ModelError, match="no default"):
        template_frame(tokenizer, {})
