"""Log-probabilities and entropies of given tokens, without ever holding all logits."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint


def response_logprobs(
    hidden: Float[Tensor, "tokens width"],
    head_weight: Float[Tensor, "vocabulary width"],
    targets: Int[Tensor, " tokens"],
    *,
    chunk: int = 256,
    with_entropy: bool = False,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"] | None]:
    """Log-probability of each target token, and the entropy of its distribution (H_t of Eq. 9).

    The head is applied to `chunk` tokens at a time, so memory holds one chunk of logits instead of
    tokens x vocabulary. Under a frozen head the gradient is ready when the log-probabilities are:
    that of a token's log-probability with respect to its own state, e_target W - p W, does not
    depend on the loss, which only scales it. Under a trained head the logits are computed again in
    the backward pass.

    Args:
        hidden: states that predict the targets.
        head_weight: output embedding.
        targets: the tokens in question.
        chunk: tokens per application of the head.
        with_entropy: also return full-vocabulary entropies in nats, without gradient.

    Returns:
        float32 log-probabilities, and entropies or None.
    """
    if torch.is_grad_enabled() and hidden.requires_grad and not head_weight.requires_grad:
        logprob, entropy = _FrozenHead.apply(hidden, head_weight, targets, chunk, with_entropy)
        return logprob, entropy if with_entropy else None
    logprobs: list[Tensor] = []
    entropies: list[Tensor] = []
    for states, wanted in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        # Without gradients this is a plain call.
        logprob, entropy = checkpoint(
            _chunk_logprobs, states, head_weight, wanted, with_entropy, use_reentrant=False
        )
        logprobs.append(logprob)
        if entropy is not None:
            entropies.append(entropy)
    return torch.cat(logprobs), torch.cat(entropies) if with_entropy else None


def _chunk_logprobs(
    hidden: Float[Tensor, "tokens width"],
    head_weight: Float[Tensor, "vocabulary width"],
    targets: Int[Tensor, " tokens"],
    with_entropy: bool,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"] | None]:
    every = F.log_softmax(F.linear(hidden, head_weight).float(), -1)
    logprob = every.gather(-1, targets[:, None])[:, 0]
    return logprob, _entropy(every.detach()) if with_entropy else None


def _entropy(logprobs: Float[Tensor, "tokens vocabulary"]) -> Float[Tensor, " tokens"]:
    return -(logprobs.exp() * logprobs).sum(-1)


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "tokens width"],
        head_weight: Float[Tensor, "vocabulary width"],
        targets: Int[Tensor, " tokens"],
        chunk: int,
        with_entropy: bool,
    ) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " entropies"]]:
        logprob = hidden.new_empty(len(targets), dtype=torch.float32)
        entropy = torch.empty_like(logprob) if with_entropy else logprob.new_empty(0)
        slope = hidden.new_empty(hidden.shape)
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            every = F.log_softmax(F.linear(hidden[part], head_weight).float(), -1)
            logprob[part] = every.gather(-1, targets[part, None])[:, 0]
            if with_entropy:
                entropy[part] = _entropy(every)
            probability = every.exp_().to(head_weight.dtype)
            slope[part] = head_weight[targets[part]] - torch.mm(probability, head_weight)
        ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(entropy)
        return logprob, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, " tokens"], _: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return slope * grad[:, None].to(slope.dtype), None, None, None, None
