import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from ehr.errors import ModelError
from services.adapters import read_pairs
from services.precision import ParameterType
from tests.learner_fakes import LEARNER, TINY, tiny_model, token_groups
from training.learner.packing import pack
from training.learner.policy_model import (
    adapter_bytes,
    adapter_weights,
    load_adapter,
    load_policy_model,
    save_adapter,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("m"))


def load(path, seed=3, section=LEARNER, dtype: ParameterType = "float32"):
    return load_policy_model(path, section, dtype=dtype, seed=seed)


def changed(model):
    torch.manual_seed(1)
    for weight in model.parameters():
        weight.data.normal_(0, 0.1)
    return model


def test_a_fresh_adapter_leaves_the_base_as_it_is(path):
    model = load(path)
    (row,) = pack(token_groups(1, 2), 4096)

    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    logits = base(torch.tensor([token_groups(1, 2)[0].prompt])).logits[0, -1]

    expected = logits.log_softmax(-1)[row.targets[0]]
    torch.testing.assert_close(model(row)[0][0], expected, atol=1e-5, rtol=1e-5)


def test_only_the_adapter_is_a_parameter_and_it_is_fp32_on_a_bf16_base(path):
    model = load(path, dtype="bfloat16")

    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in model.parameters())
    assert model.peft_model.get_base_model().dtype == torch.bfloat16
    assert len(list(model.parameters())) == 2 * 7 * TINY["num_hidden_layers"]


def test_the_seed_decides_the_first_adapter(path):
    assert adapter_bytes(load(path, seed=3)) == adapter_bytes(load(path, seed=3))
    assert adapter_bytes(load(path, seed=3)) != adapter_bytes(load(path, seed=4))


def test_a_saved_adapter_is_read_by_peft_and_gives_the_same_log_probabilities(path, tmp_path):
    model = changed(load(path))
    (row,) = pack(token_groups(1, 1), 4096)
    group = token_groups(1, 1)[0]

    save_adapter(model, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter")
    logits = theirs(torch.tensor([group.prompt])).logits[0, -1]

    expected = logits.log_softmax(-1)[row.targets[0]]
    torch.testing.assert_close(model(row)[0][0], expected, atol=1e-5, rtol=1e-5)


def test_an_adapter_comes_back_from_a_folder_and_from_bytes(path, tmp_path):
    model = changed(load(path))
    save_adapter(model, tmp_path)

    from_folder, from_bytes = load(path, seed=9), load(path, seed=9)
    load_adapter(from_folder, tmp_path)
    load_adapter(from_bytes, adapter_bytes(model))

    for other in (from_folder, from_bytes):
        for name, weight in adapter_weights(model).items():
            assert torch.equal(weight, adapter_weights(other)[name])


def test_the_generators_read_the_adapter_and_its_scaling(path, tmp_path):
    model = load(path, section=LEARNER.model_copy(update={"lora_alpha": 2.0}))
    save_adapter(model, tmp_path)

    assert model.scaling == 0.5
    assert len(read_pairs(adapter_bytes(model))) == 7 * TINY["num_hidden_layers"]
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_alpha"] == 2.0


def test_entropy_of_the_whole_vocabulary_is_near_that_of_a_random_model(path):
    (row,) = pack(token_groups(1, 2), 4096)

    _, entropy, _ = load(path)(row, with_entropy=True)

    torch.testing.assert_close(entropy, torch.full_like(entropy, 5.5), atol=0.1, rtol=0)


def test_checkpointing_changes_memory_and_not_the_gradient(path):
    (row,) = pack(token_groups(1, 3), 4096)
    plain = changed(load(path))
    saving = changed(
        load(path, section=LEARNER.model_copy(update={"gradient_checkpointing": True}))
    )

    for model in (plain, saving):
        model(row)[0].sum().backward()

    for ours, theirs in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-5)


def test_a_sliding_window_model_is_refused(tmp_path):
    MistralForCausalLM(MistralConfig(**TINY, sliding_window=16)).save_pretrained(tmp_path)

    with pytest.raises(ModelError, match=r"attend fully.*mistral.*window 16"):
        load(tmp_path)


def test_llama_is_packed_as_well(tmp_path):
    model = load(tiny_model(tmp_path, "llama"))
    (row,) = pack(token_groups(1, 2), 4096)

    assert model(row)[0].isfinite().all()


def test_a_folder_without_a_model_is_refused_by_name(tmp_path):
    with pytest.raises(ModelError, match=str(tmp_path)):
        load(tmp_path)


def test_a_missing_adapter_says_what_to_do(path, tmp_path):
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors is missing"):
        load_adapter(load(path), tmp_path)


def test_an_adapter_of_another_rank_is_refused(path):
    other = load(path, section=LEARNER.model_copy(update={"lora_rank": 2}))

    with pytest.raises(ModelError, match=r"at rank 4.*differs in"):
        load_adapter(load(path), adapter_bytes(other))
