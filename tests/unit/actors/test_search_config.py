"""Settings of the search that exclude each other."""

from typing import Any, Literal

import pytest
from pydantic import ValidationError

from actors.config import SearchSection
from training.config.run import RunConfig


@pytest.mark.parametrize("split", ["val", "test"])
def test_labels_of_reported_patients_steer_no_search(split: Literal["val", "test"]) -> None:
    with pytest.raises(ValidationError, match=r"use search\.value=label_free"):
        SearchSection(split=split)

    assert SearchSection(split=split, value="label_free", balance=False).split == split


@pytest.mark.parametrize("setting", ["balance", "only_correct"])
def test_a_label_free_search_chooses_nothing_by_the_label(setting: str) -> None:
    settings: dict[str, Any] = {"balance": False, "only_correct": False, setting: True}

    with pytest.raises(ValidationError, match="set both to false"):
        SearchSection(value="label_free", **settings)


def test_stage_1_does_not_train_on_a_label_free_search() -> None:
    search = {"value": "label_free", "balance": False}

    with pytest.raises(ValidationError, match=r"set sft\.enabled=false"):
        RunConfig.model_validate({"search": search})

    config = RunConfig.model_validate({"search": search, "sft": {"enabled": False}})
    assert config.search.value == "label_free"
