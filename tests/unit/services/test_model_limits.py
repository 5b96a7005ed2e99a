"""Sizes that a model's own file does not allow."""

import json
from pathlib import Path
from typing import Any

import pytest

from ehr.errors import ConfigurationError
from services.config import GeneratorSection, ModelSection
from services.model_limits import require_fitting_model

SMOLLM2 = {
    "max_position_embeddings": 8192,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "hidden_size": 576,
}
# keys and values, 30 layers, 3 heads of 64 numbers, 4 bytes each
SMOLLM2_TOKEN_BYTES = 2 * 30 * 3 * 64 * 4


def look(
    folder: Path, described: dict[str, Any], max_model_len: int, gib: float, gpus: float = 0
) -> None:
    (folder / "config.json").write_text(json.dumps(described))
    model = ModelSection(max_model_len=max_model_len, dtype="float32")
    require_fitting_model(folder, model, GeneratorSection(cache_gib=gib, gpus_per_replica=gpus))


def test_a_context_that_is_longer_than_the_models_is_refused(tmp_path: Path) -> None:
    look(tmp_path, SMOLLM2, 8192, gib=4)

    with pytest.raises(ConfigurationError, match=r"model\.max_model_len is 8193, .*at most 8192"):
        look(tmp_path, SMOLLM2, 8193, gib=4)


def test_a_cache_that_does_not_hold_one_prompt_is_refused(tmp_path: Path) -> None:
    exactly = 2048 * SMOLLM2_TOKEN_BYTES / 2**30
    look(tmp_path, SMOLLM2, 2048, gib=exactly)

    expected = r"generator\.cache_gib is .* holds 2047 tokens .*model\.max_model_len, 2048; give"
    with pytest.raises(ConfigurationError, match=expected):
        look(tmp_path, SMOLLM2, 2048, gib=exactly * 0.9999)


def test_a_gpus_cache_is_the_engines_own_affair(tmp_path: Path) -> None:
    look(tmp_path, SMOLLM2, 8192, gib=0.001, gpus=1)


@pytest.mark.parametrize(
    "described",
    [
        {},
        {**SMOLLM2, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"text_config": {"max_position_embeddings": 100_000}},
    ],
)
def test_what_the_file_does_not_say_is_left_to_the_engine(
    tmp_path: Path, described: dict[str, Any]
) -> None:
    look(tmp_path, described, 16_384, gib=4)


def test_the_text_part_of_a_model_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="at most 8192"):
        look(tmp_path, {"text_config": SMOLLM2}, 8193, gib=4)
