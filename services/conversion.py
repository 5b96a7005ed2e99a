"""What needs transformers once per model: converting a GGUF and rendering the chat template.

Run as `python -m services.conversion TASK FROM TO`, so that the caller never loads torch.
"""

import json
import sys
from pathlib import Path

from ehr.chat import frame_of

CHAT_FILE = "chat_frame.json"


def convert_gguf(source: Path, target: Path) -> None:
    """Write the model and tokenizer of a GGUF file as a standard folder, in bfloat16."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(target)
    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name)
    config = loaded.config
    # transformers refuses to save what it read from a GGUF, although it is plain tensors by now.
    delattr(config, "quantization_config")
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    plain.bfloat16().save_pretrained(target)


def render_chat(folder: Path, target: Path) -> None:
    """Write what the chat template puts before and after one user message."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)

    def render(user_text: str) -> str:
        if not tokenizer.chat_template:
            return user_text + "\n"
        message = [{"role": "user", "content": user_text}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        return str(text)

    frame = frame_of(render)
    (target / CHAT_FILE).write_text(json.dumps({"prefix": frame.prefix, "suffix": frame.suffix}))


if __name__ == "__main__":
    {"convert": convert_gguf, "render": render_chat}[sys.argv[1]](*map(Path, sys.argv[2:]))
