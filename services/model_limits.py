"""What a model's own `config.json` allows, asked before an engine takes a minute to refuse it."""

import json
from pathlib import Path
from typing import Any

from ehr.errors import ConfigurationError
from services.config import GeneratorSection, ModelSection
from services.precision import parameter_type

_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_BYTES = {"bfloat16": 2, "float32": 4}
_SCALED_ALREADY = frozenset({"su", "longrope", "llama3", "yarn", "default", None})
"""Kinds of rotary scaling whose length in the file needs no factor."""


def require_fitting_model(folder: Path, model: ModelSection, generator: GeneratorSection) -> None:
    """Compares the configured sizes with the model's.

    What the model's file does not say is left to the engine.

    Args:
        folder: of the model, with its `config.json`.
        model: `max_model_len` and `dtype`.
        generator: `cache_gib`, which counts on CPUs only.

    Raises:
        ConfigurationError: if the context is longer than the model's, or one prompt with its answer
            does not fit into the KV cache.
    """
    described = json.loads((folder / "config.json").read_text())
    described = described.get("text_config") or described
    longest = _context(described)
    if longest is not None and model.max_model_len > longest:
        raise ConfigurationError(
            f"model.max_model_len is {model.max_model_len}, but model.name={model.name} takes at "
            f"most {longest} tokens; lower it, and prompt.max_prompt_tokens with it, or choose "
            "another model"
        )
    token_bytes = _token_bytes(described, model)
    if generator.gpus_per_replica > 0 or token_bytes is None:
        return
    room = int(generator.cache_gib * 2**30 / token_bytes)
    if room < model.max_model_len:
        needed = model.max_model_len * token_bytes / 2**30
        raise ConfigurationError(
            f"generator.cache_gib is {generator.cache_gib:g}, which holds {room} tokens of "
            f"model.name={model.name}, fewer than model.max_model_len, {model.max_model_len}; give "
            f"it {needed:.2g} or more, or lower model.max_model_len"
        )


def _context(described: dict[str, Any]) -> int | None:
    lengths = [described[name] for name in _LENGTHS if isinstance(described.get(name), int)]
    scaling = described.get("rope_scaling") or described.get("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    return min(lengths) if lengths and kind in _SCALED_ALREADY else None


def _token_bytes(described: dict[str, Any], model: ModelSection) -> int | None:
    """Bytes of keys and values that a token leaves in the cache of a CPU engine."""
    heads, layers = described.get("num_attention_heads"), described.get("num_hidden_layers")
    hidden = described.get("hidden_size")
    if not (heads and layers and hidden) or described.get("sliding_window"):
        return None
    size = described.get("head_dim") or hidden // heads
    kept = described.get("num_key_value_heads") or heads
    return 2 * layers * kept * size * _BYTES[parameter_type(model.dtype, on_gpu=False)]
