"""Log-probabilities of the learner are those of the model's own logits, or the model is refused."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    CohereConfig,
    ElectraConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    HyperCLOVAXConfig,
    LlamaConfig,
    MiniCPM3Config,
    NanoChatConfig,
    NemotronConfig,
    OPTConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)

from ehr.errors import ModelError
from services.precision import ParameterType
from tests.learner_fakes import LEARNER
from training.learner.own_logits import probe_row, require_same
from training.learner.policy_model import load_policy_model

VOCABULARY = 64
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
FULL: dict[str, Any] = {"layer_types": ["full_attention"] * 2}
ENDS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
ATTENTION: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
}
TRAINED = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "divided": GraniteConfig(
        **SIZES,
        logits_scaling=4.0,
        embedding_multiplier=3.0,
        residual_multiplier=0.5,
        attention_multiplier=0.2,
    ),
    "multiplied": CohereConfig(**SIZES, **ENDS, logit_scale=0.25),
    "multiplied under another name": HyperCLOVAXConfig(**SIZES, **ENDS, logits_scaling=0.25),
    "bias": PhiConfig(**SIZES),
    "soft cap": NanoChatConfig(**SIZES, **ENDS, final_logit_softcapping=3.0),
    "soft cap, embeddings multiplied": Gemma3TextConfig(
        **SIZES, **FULL, head_dim=8, final_logit_softcapping=3.0
    ),
    "head of another name": GPTNeoXConfig(**SIZES),
}
REFUSED = {
    "values narrower than keys": (MiniCPM3Config(**SIZES, **ATTENTION, v_head_dim=8), "minicpm3"),
    "spans do not reach its attention": (NemotronConfig(**SIZES), "'nemotron': .*spans"),
    "scores capped": (Gemma2Config(**SIZES, **FULL, head_dim=8), "no softcap.*Gemma2Attention"),
    "sliding layers": (Gemma2Config(**SIZES, head_dim=8), "attend fully.*'gemma2'"),
    "sinks": (
        GptOssConfig(
            **SIZES, **FULL, **ENDS, head_dim=8, num_local_experts=2, num_experts_per_tok=1
        ),
        "no s_aux.*GptOssAttention",
    ),
    "head of two layers": (BertConfig(**SIZES, is_decoder=True), "'bert'"),
    "narrow head": (ElectraConfig(**SIZES, embedding_size=16, is_decoder=True), "'electra'"),
}


def save(config, folder):
    """A random model whose logits are a few units apart, as a trained one's are."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        head = model.get_output_embeddings()
        head.weight.normal_(0, 1)
        if getattr(head, "bias", None) is not None:
            head.bias.normal_(0, 1)
    model.save_pretrained(folder)
    return folder


def load(folder, dtype: ParameterType = "float32", **changes):
    section = LEARNER.model_copy(update=changes)
    return load_policy_model(folder, section, dtype=dtype, seed=3)


def dense(policy, row):
    """Log-probabilities and entropies by transformers alone, with gradients."""
    causal = policy.peft_model.get_base_model()
    causal.set_attn_implementation("eager")
    (span,) = row.spans
    start, stop = span.prompt
    responses = torch.stack([row.token_ids[first:last] for first, last in span.responses])
    prompts = row.token_ids[start:stop].expand(len(responses), -1)
    logits = causal(torch.cat([prompts, responses], 1)).logits[:, stop - start - 1 : -1]
    every = logits.log_softmax(-1)
    entropy = -(every.exp() * every).sum(-1)
    return every.gather(-1, responses[..., None]).flatten(), entropy.flatten()


def gradients(policy, values):
    weights = torch.linspace(-1, 1, len(values))
    return torch.autograd.grad((values * weights).sum(), list(policy.parameters()))


@pytest.mark.parametrize("name", TRAINED)
def test_log_probabilities_entropies_and_gradients_are_those_of_the_models_logits(name, tmp_path):
    policy = load(save(TRAINED[name], tmp_path))
    torch.manual_seed(1)
    for weight in policy.parameters():
        weight.data.normal_(0, 0.1)
    row = probe_row(VOCABULARY)

    logprobs, entropies, _ = policy(row, with_entropy=True)
    ours = gradients(policy, logprobs)
    expected, expected_entropies = dense(policy, row)
    theirs = gradients(policy, expected)

    assert expected.std() > 0.3
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropies, expected_entropies, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_the_learner_would_compute_otherwise_is_refused_by_name(name, tmp_path):
    config, message = REFUSED[name]
    save(config, tmp_path)

    with pytest.raises(ModelError, match=message):
        load(tmp_path)


def test_dropout_that_is_no_module_is_seen_where_checkpointing_needs_the_training_mode(tmp_path):
    save(OPTConfig(**SIZES, word_embed_proj_dim=32, ffn_dim=48, dropout=0.5), tmp_path)

    load(tmp_path)
    with pytest.raises(ModelError, match=r"'opt'.*dropout"):
        load(tmp_path, gradient_checkpointing=True)


def test_weights_that_are_missing_are_refused_and_not_drawn_at_random(tmp_path):
    save(LlamaConfig(**SIZES, tie_word_embeddings=False), tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["lm_head.weight"]
    save_file(weights, file, metadata={"format": "pt"})

    with pytest.raises(ModelError, match=r"'llama'.*1 are missing.*lm_head\.weight"):
        load(tmp_path)


def test_weights_of_another_size_than_the_configuration_says_are_refused(tmp_path):
    save(LlamaConfig(**SIZES), tmp_path)
    LlamaConfig(**{**SIZES, "vocab_size": 80}).save_pretrained(tmp_path)

    with pytest.raises(ModelError, match="expected the weights"):
        load(tmp_path)


def test_bfloat16_rounding_is_no_reason_to_refuse(tmp_path):
    assert load(save(TRAINED["divided"], tmp_path), "bfloat16").peft_model.dtype == torch.bfloat16


def test_a_difference_names_the_model_type_and_its_size():
    same = (torch.zeros(3), torch.ones(3))
    other = (torch.tensor([0.0, -0.75, 0.1]), torch.ones(3))

    with pytest.raises(ModelError, match=r"'granite'.*within 0\.0001 nats.*up to 0\.75"):
        require_same("granite", torch.float32, same, other)
    with pytest.raises(ModelError, match="up to nan"):
        require_same("granite", torch.float32, same, (same[0], same[1] / 0 * 0))
    require_same("granite", torch.float32, same, same)
