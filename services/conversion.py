"""What needs transformers once per model: converting a GGUF and rendering the chat template.

Run as `python -m services.conversion TASK FROM TO`, so that the caller never loads torch.
"""

import json
import sys
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

from ehr.errors import EagRlError, ModelError
from ehr.language.chat import ChatFrame, frame_of, require_assistant_turn

CHAT_FILE = "chat_frame.json"
REFUSED = 3
"""Exit status where a model is refused; the reason is on standard output."""

_NO_REASONING = {"enable_thinking": False, "thinking": False}
"""What templates of models that can reason first ask for (Qwen3, GLM, SmolLM3; DeepSeek, Granite).
The answers that are read here have their own place for reasoning."""


def convert_gguf(source: Path, target: Path) -> None:
    """Write the model and tokenizer of a GGUF file as a standard folder, in bfloat16."""
    from transformers import AutoModelForCausalLM

    gguf_tokenizer(source).save_pretrained(target)
    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name)
    config = loaded.config
    # transformers refuses to save what it read from a GGUF, although it is plain tensors by now.
    delattr(config, "quantization_config")
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    plain.bfloat16().save_pretrained(target)


def gguf_tokenizer(source: Path) -> Any:
    """The tokenizer of a GGUF file, a tokenizer of transformers.

    Raises:
        ModelError: if the file does not say how text is split before its merges apply, or says it
            in a way that is not known here.
    """
    from transformers import AutoTokenizer
    from transformers.integrations.gguf.reader import read_gguf_metadata

    metadata, _ = read_gguf_metadata(str(source))
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    if metadata.get("tokenizer.ggml.model") == "gpt2":  # byte-level merges
        set_splitting(tokenizer.backend_tokenizer, metadata.get("tokenizer.ggml.pre"))
    return tokenizer


def set_splitting(tokenizer: Any, splitting: str | None) -> None:
    """Make a byte-level tokenizer split text as its merges were learned.

    Args:
        tokenizer: of the library tokenizers, as transformers builds it from a GGUF file.
        splitting: name of the rule, `tokenizer.ggml.pre`.

    Raises:
        ModelError: if the name is unknown: a wrong splitting gives other tokens than those of the
            model's training, and nothing else shows it.
    """
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    if splitting == "smollm":
        # As in the tokenizer.json that SmolLM and SmolLM2 were published with.
        rule = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
        tokenizer.pre_tokenizer = Sequence(rule)
    elif splitting not in {"gpt-2", *GGUF_PRE_TOKENIZER_SPLITS}:  # those transformers has set
        known = ", ".join(sorted({"gpt-2", "smollm", *GGUF_PRE_TOKENIZER_SPLITS}))
        raise ModelError(
            f"expected a GGUF file whose tokenizer.ggml.pre is one of {known}, got {splitting!r}; "
            "use the model's folder with its own tokenizer.json instead"
        )


def render_chat(folder: Path, target: Path) -> None:
    """Write what stands before and after one user message, and which times of day are in it.

    With a chat template that is what the template writes; its BOS is the only one. Without, it is
    what the tokenizer puts before a text, and a line break.

    Raises:
        ModelError: if the template cannot be a frame, or the tokenizer does not know its BOS.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    clock: dict[str, str] = {}
    if tokenizer.chat_template:
        frame = template_frame(tokenizer, clock)
    else:
        frame = ChatFrame(prefix=leading_tokens(tokenizer, folder), suffix="\n")
    record = {"prefix": frame.prefix, "suffix": frame.suffix, "clock": clock}
    (target / CHAT_FILE).write_text(json.dumps(record))


def template_frame(tokenizer: Any, clock: dict[str, str]) -> ChatFrame:
    """The frame of a tokenizer's chat template, without a block of reasoning where it has a say.

    Args:
        tokenizer: of transformers.
        clock: gets every form of the time that the template writes, with what it wrote.

    Raises:
        ModelError: if the template fails, or cannot be a frame.
    """
    now = datetime.now()  # one for all renderings; local, as in transformers

    def written(form: str) -> str:
        return clock.setdefault(form, now.strftime(form))

    def apply(user_text: str, answer: str | None, add_generation_prompt: bool) -> str:
        chat = [{"role": "user", "content": user_text}]
        if answer is not None:
            chat.append({"role": "assistant", "content": answer})
        text = tokenizer.apply_chat_template(
            chat,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            strftime_now=written,
            **_NO_REASONING,
        )
        return str(text)

    def with_prompt(user_text: str) -> str:
        try:
            return apply(user_text, None, True)
        except Exception as error:  # a template is a program: anything can come out of it
            raise ModelError(
                "expected a chat template that takes one user message without a system message, it "
                f"says {error!r}; give the model folder another chat_template.jinja"
            ) from error

    def without_prompt(user_text: str, answer: str | None) -> str | None:
        try:
            return apply(user_text, answer, False)
        except Exception:  # it takes no such chat, which says nothing about prompts
            return None

    frame = frame_of(with_prompt)
    require_assistant_turn(frame, without_prompt)
    return frame


def leading_tokens(tokenizer: Any, folder: Path) -> str:
    """What a tokenizer puts before a text (BOS), as text; what it puts behind is left out.

    Args:
        tokenizer: of transformers.
        folder: it comes from; its tokenizer.json is what prompts are made with.

    Raises:
        ModelError: if tokenizer.json does not make the same tokens of that text.
    """
    from tokenizers import Tokenizer

    encoded = tokenizer("a", return_special_tokens_mask=True)
    tokens = zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
    leading = [token for token, _ in takewhile(lambda each: each[1], tokens)]
    text = "".join(tokenizer.convert_ids_to_tokens(leading))
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found = plain.encode(text, add_special_tokens=False).ids
    if found != leading:
        raise ModelError(
            f"expected tokenizer.json to have {text!r} among its added tokens ({leading!r}), since "
            f"the tokenizer puts it before every text; it makes {found!r} of it; save the "
            "tokenizer again with `save_pretrained`"
        )
    return text


if __name__ == "__main__":
    try:
        {"convert": convert_gguf, "render": render_chat}[sys.argv[1]](*map(Path, sys.argv[2:]))
    except EagRlError as refusal:
        sys.stdout.write(str(refusal))
        sys.exit(REFUSED)
