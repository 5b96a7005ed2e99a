"""Floating-point operations that a group's loss needs, counted by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a Llama-like model with LoRA on all its linear layers."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    lora_rank: int

    @property
    def linear_sizes(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of a layer's linear maps: q, k, v, o, gate, up, down."""
        query, key = self.heads * self.head_width, self.kv_heads * self.head_width
        return (
            (self.hidden, query),
            (self.hidden, key),
            (self.hidden, key),
            (query, self.hidden),
            (self.hidden, self.intermediate),
            (self.hidden, self.intermediate),
            (self.intermediate, self.hidden),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """Operations of the two passes, a multiplication and an addition being two."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


def group_flops(
    shape: ModelShape, prompt: int, answers: Sequence[int], *, prompt_copies: int = 1
) -> Flops:
    """Operations of a group's log-probabilities and their gradient with regard to the adapter.

    Counted are matrix products: linear layers (a frozen one has a gradient for its input and none
    for its weight, so its backward costs as much as its forward), LoRA's two maps (their weights
    have one, so twice as much), attention over the pairs that the causal mask leaves (backward
    twice the forward), and the head on the answers' rows. What is computed again (checkpointing,
    scores of the attention, the chunks of the head) counts once, element-wise work not at all.
    The first layer's q, k and v have an input without gradient; the 0.5 % that this saves at 30
    layers is left in.

    Args:
        shape: of the model.
        prompt: tokens of the prompt.
        answers: tokens of each answer, each predicted once.
        prompt_copies: how often the prompt is computed: 1 where it is shared, `len(answers)` in a
            dense computation.
    """
    tokens = prompt * prompt_copies + sum(answers)
    weights = sum(inputs * outputs for inputs, outputs in shape.linear_sizes)
    lora_weights = shape.lora_rank * sum(sum(sizes) for sizes in shape.linear_sizes)
    pairs = prompt_copies * prompt * (prompt + 1) / 2 + sum(
        answer * prompt + answer * (answer + 1) / 2 for answer in answers
    )
    linear = 2.0 * shape.layers * weights * tokens
    lora = 2.0 * shape.layers * lora_weights * tokens
    # Scores and the weighted sum of values: two products of the head's width a pair.
    attention = 4.0 * shape.layers * shape.heads * shape.head_width * pairs
    head = 2.0 * shape.hidden * shape.vocabulary * sum(answers)
    return Flops(
        forward=linear + lora + attention + head,
        backward=linear + 2 * lora + 2 * attention + head,
    )


def shape_of(config: Mapping[str, Any], lora_rank: int) -> ModelShape:
    """The shape that a model's `config.json` states."""
    heads = config["num_attention_heads"]
    return ModelShape(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_width=config.get("head_dim") or config["hidden_size"] // heads,
        vocabulary=config["vocab_size"],
        lora_rank=lora_rank,
    )
