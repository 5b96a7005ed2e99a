"""A model folder with random weights: `python -m benchmarks.learner.random_model SHAPE FOLDER`.

Seconds and memory do not depend on what the weights are.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 32768,
    },
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 512,
    },
}
"""Sizes by name; Qwen2.5-7B's are those of its published config.json."""


def write_random_model(shape: str, folder: Path) -> None:
    """Weights and a tokenizer of one word, in transformers' format and bf16."""
    config = Qwen2Config(**SHAPES[shape], tie_word_embeddings=False, use_sliding_window=False)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    # GRPOTrainer asks for a tokenizer; the cells bring token ids.
    words = Tokenizer(models.WordLevel({"none": 0, "<end>": 1}, unk_token="none"))
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="none", eos_token="<end>", pad_token="<end>"
    ).save_pretrained(folder)


if __name__ == "__main__":
    write_random_model(sys.argv[1], Path(sys.argv[2]))
