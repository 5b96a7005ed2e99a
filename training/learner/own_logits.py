"""A model's own way from its last hidden states to logits, and whether the learner goes it too."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PretrainedConfig

from ehr.errors import ModelError
from training.learner.packing import PackedRow, TokenGroup, pack
from training.objective.logprob import LogitShape

_FACTORS = {
    "cohere": "logit_scale",
    "cohere2": "logit_scale",
    "cohere2_moe": "logit_scale",
    "hyperclovax": "logits_scaling",
}
"""Model types whose logits are multiplied, with the setting that says by what."""
_DIVISORS = dict.fromkeys(
    (
        "granite",
        "granite_swa",
        "granitemoe",
        "granitemoe_swa",
        "granitemoehybrid",
        "granitemoeshared",
    ),
    "logits_scaling",
)
"""Model types whose logits are divided."""

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.25}
"""Largest mean difference of log-probabilities that rounding explains: three times what SmolLM2 has
in bfloat16 (0.08; its largest is 0.23), where every layer rounds and logits near 30 stand 0.125
apart. In float32 it has 4e-6. What is left out of a head costs 0.7 and more."""

_NUM_PROMPT, _NUM_RESPONSE, _NUM_RESPONSES = 8, 6, 2
"""Tokens of the compared row: enough for positions, prompt and leaks between responses to count."""


def logit_shape(causal: Any) -> LogitShape:
    """What a causal language model does behind the product of states and head.

    Args:
        causal: a model of transformers.
    """
    config: PretrainedConfig = causal.config.get_text_config()
    scale = 1.0
    if config.model_type in _FACTORS:
        scale = getattr(config, _FACTORS[config.model_type])
    elif config.model_type in _DIVISORS:
        scale = 1.0 / getattr(config, _DIVISORS[config.model_type])
    return LogitShape(
        bias=getattr(causal.get_output_embeddings(), "bias", None),
        scale=float(scale),
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def probe_row(vocabulary: int) -> PackedRow:
    """A short packed row of one prompt and its responses, always the same random tokens.

    Args:
        vocabulary: number of tokens that there are.
    """
    lengths = (_NUM_PROMPT, *[_NUM_RESPONSE] * _NUM_RESPONSES)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(vocabulary, (sum(lengths),), generator=generator).split(lengths)
    prompt, *responses = (tuple(tokens.tolist()) for tokens in drawn)
    group = TokenGroup(
        patient_id="probe",
        prompt=prompt,
        responses=tuple(responses),
        trained=((True,) * _NUM_RESPONSE,) * _NUM_RESPONSES,
    )
    (row,) = pack([group], sum(lengths))
    return row


@torch.no_grad()
def own_logprobs(
    causal: Any, row: PackedRow
) -> tuple[Float[Tensor, " targets"], Float[Tensor, " targets"]]:
    """Log-probabilities and entropies by the model's own logits, sequence by sequence.

    Nothing of the learner takes part: neither its packing nor its attention nor its head.

    Args:
        causal: a model of transformers, with an attention of transformers'.
        row: of `probe_row`, on the model's device.
    """
    prompt, *responses = _parts(row)
    sequences = torch.stack([torch.cat([prompt, response]) for response in responses])
    logits = causal(input_ids=sequences, use_cache=False).logits[:, len(prompt) - 1 : -1]
    every = logits.float().log_softmax(-1)
    logprobs = every.gather(-1, torch.stack(responses)[..., None])[..., 0]
    return logprobs.flatten(), -(every.exp() * every).sum(-1).flatten()


def require_same(
    model_type: str,
    dtype: torch.dtype,
    own: tuple[Float[Tensor, " targets"], Float[Tensor, " targets"]],
    learner: tuple[Float[Tensor, " targets"], Float[Tensor, " targets"]],
) -> None:
    """Compare log-probabilities and entropies of the same tokens.

    Args:
        model_type: named in the message.
        dtype: of the base's parameters.
        own: by `own_logprobs`.
        learner: by the learner's packed forward pass.

    Raises:
        ModelError: if they differ by more than rounding explains, or any is no number.
    """
    limit = _TOLERANCE.get(dtype, _TOLERANCE[torch.bfloat16])
    differences = torch.stack([(a - b).abs() for a, b in zip(own, learner, strict=True)])
    if not differences.mean(1).max().item() <= limit:  # NaN is not
        raise ModelError(
            f"expected the learner's log-probabilities of model type {model_type!r} to be those of "
            f"the model's own logits within {limit:g} nats in the mean, they differ by up to "
            f"{differences.max().item():.3g}: its attention, dropout or output head is none that "
            "the learner knows (bias, scale and soft cap of the logits are); choose another model, "
            "such as one of Llama or Qwen2.5"
        )


def _parts(row: PackedRow) -> list[Int[Tensor, " tokens"]]:
    (span,) = row.spans
    return [row.token_ids[start:stop] for start, stop in (span.prompt, *span.responses)]
