"""The counted operations against torch's own counter, and by hand."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.learner.flops import ModelShape, group_flops, shape_of

SHAPE = ModelShape(
    layers=3,
    hidden=32,
    intermediate=48,
    heads=4,
    kv_heads=2,
    head_width=8,
    vocabulary=96,
    lora_rank=4,
)
CONFIG: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
}
PROMPT, ANSWER = 7, 5


def test_the_shape_is_read_from_a_configuration() -> None:
    assert shape_of(CONFIG, lora_rank=4) == SHAPE


def test_linear_layers_and_head_are_counted_as_torch_counts_them() -> None:
    base = LlamaForCausalLM(LlamaConfig(**{**CONFIG, "attn_implementation": "eager"}))
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))
    ids = torch.arange(PROMPT + ANSWER)[None]

    with FlopCounterMode(display=False) as forward:
        hidden = base.model(input_ids=ids, use_cache=False).last_hidden_state
        loss = base.lm_head(hidden[0, PROMPT - 1 : -1]).sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()

    counted = group_flops(SHAPE, PROMPT, [ANSWER])
    scores = 4 * 3 * 4 * 8 * (PROMPT + ANSWER) * (PROMPT + ANSWER + 1) / 2
    tokens = PROMPT + ANSWER
    first_inputs = 2 * tokens * (32 * (32 + 16 + 16) + 3 * 32 * 4)  # q, k, v and their LoRA A
    assert _products(forward) == counted.forward - scores
    assert _products(backward) == counted.backward - 2 * scores - first_inputs
    assert counted.total == counted.forward + counted.backward
    lora = model.peft_config["default"]
    assert isinstance(lora, LoraConfig)
    assert lora.r == SHAPE.lora_rank


def _products(counter: FlopCounterMode) -> int:
    """Operations of matrix products; batched ones are eager attention's, without the mask."""
    counts = counter.get_flop_counts()["Global"]
    return sum(flops for operator, flops in counts.items() if "bmm" not in str(operator))


@pytest.mark.parametrize(("answers", "copies"), [([2], 1), ([2, 2, 2], 3)])
def test_answers_with_a_prompt_of_their_own_cost_what_they_cost_alone(
    answers: list[int], copies: int
) -> None:
    alone = group_flops(SHAPE, 3, [2])

    together = group_flops(SHAPE, 3, answers, prompt_copies=copies)

    assert together.forward == copies * alone.forward
    assert together.backward == copies * alone.backward


def test_a_shared_prompt_saves_its_tokens_and_its_pairs() -> None:
    apart = group_flops(SHAPE, 3, [2, 2, 2], prompt_copies=3)

    shared = group_flops(SHAPE, 3, [2, 2, 2])

    a_token = 2 * 3 * (sum(i * o + 4 * (i + o) for i, o in SHAPE.linear_sizes))
    a_pair = 4 * 3 * 4 * 8
    assert apart.forward - shared.forward == 2 * (3 * a_token + 6 * a_pair)
