"""Log-probabilities and entropies of given tokens, without ever holding all logits."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

FORBIDDEN = -1e9
"""Score of a token that could not be chosen: its probability is exactly 0, and 0 times its
log-probability is not NaN."""


def response_logprobs(
    hidden: Float[Tensor, "tokens width"],
    head_weight: Float[Tensor, "vocabulary width"],
    targets: Int[Tensor, " tokens"],
    *,
    allowed: Int32[Tensor, "tokens words"] | None = None,
    chunk: int = 128,
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
        allowed: the tokens that each was chosen from, bit i % 32 of word i // 32 for token i:
            log-probability and entropy are those of the distribution over these alone. None = all.
        chunk: tokens per application of the head.
        with_entropy: also return entropies in nats, without gradient.

    Returns:
        float32 log-probabilities, and entropies or None.
    """
    if not (torch.is_grad_enabled() and head_weight.requires_grad):
        logprob, entropy = _FrozenHead.apply(
            hidden, head_weight, targets, allowed, chunk, with_entropy
        )
        return logprob, entropy if with_entropy else None
    logprobs: list[Tensor] = []
    entropies: list[Tensor] = []
    for start in range(0, max(1, len(targets)), chunk):
        part = slice(start, start + chunk)
        logprob, entropy = checkpoint(
            _chunk_logprobs,
            hidden[part],
            head_weight,
            targets[part],
            None if allowed is None else allowed[part],
            with_entropy,
            use_reentrant=False,
        )
        logprobs.append(logprob)
        if entropy is not None:
            entropies.append(entropy)
    return torch.cat(logprobs), torch.cat(entropies) if with_entropy else None


def _chunk_logprobs(
    hidden: Float[Tensor, "tokens width"],
    head_weight: Float[Tensor, "vocabulary width"],
    targets: Int[Tensor, " tokens"],
    allowed: Int32[Tensor, "tokens words"] | None,
    with_entropy: bool,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"] | None]:
    scores = F.linear(hidden, head_weight).float()
    if allowed is not None:
        scores = scores.masked_fill(_forbidden(allowed, head_weight.shape[0]), FORBIDDEN)
    every = F.log_softmax(scores, -1)
    logprob = every.gather(-1, targets[:, None])[:, 0]
    return logprob, _entropy(every.detach()) if with_entropy else None


def _entropy(logprobs: Float[Tensor, "tokens vocabulary"]) -> Float[Tensor, " tokens"]:
    return -(logprobs.exp() * logprobs).sum(-1)


def _forbidden(
    allowed: Int32[Tensor, "tokens words"], vocabulary: int
) -> Bool[Tensor, "tokens vocabulary"]:
    # By bytes: an eighth of the memory that whole words would take. Bits of a word follow one
    # another in its bytes on every machine that torch runs on.
    in_bytes = allowed.contiguous().view(torch.uint8)
    bits = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8, device=allowed.device)
    return (in_bytes[:, :, None] & bits == 0).flatten(1)[:, :vocabulary]


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "tokens width"],
        head_weight: Float[Tensor, "vocabulary width"],
        targets: Int[Tensor, " tokens"],
        allowed: Int32[Tensor, "tokens words"] | None,
        chunk: int,
        with_entropy: bool,
    ) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " entropies"]]:
        num_tokens, vocabulary = len(targets), head_weight.shape[0]
        logprobs = hidden.new_empty(num_tokens, dtype=torch.float32)
        entropies = logprobs.new_empty(num_tokens if with_entropy else 0)
        slopes = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # The same memory for every chunk: fresh pages cost more than the passes over them.
        shape = (min(chunk, num_tokens), vocabulary)
        low = head_weight.new_empty(shape)
        scores = logprobs.new_empty(shape)
        every = logprobs.new_empty(shape)
        for start in range(0, num_tokens, chunk):
            part = slice(start, min(start + chunk, num_tokens))
            rows = slice(0, part.stop - start)
            torch.mm(hidden[part], head_weight.t(), out=low[rows])
            scores[rows] = low[rows]
            if allowed is not None:
                scores[rows].masked_fill_(_forbidden(allowed[part], vocabulary), FORBIDDEN)
            torch.log_softmax(scores[rows], -1, out=every[rows])
            logprobs[part] = every[rows].gather(-1, targets[part, None])[:, 0]
            if with_entropy:
                torch.exp(every[rows], out=scores[rows])
                entropies[part] = -scores[rows].mul_(every[rows]).sum(-1)
            if slopes is not None:
                low[rows] = every[rows].exp_()
                slopes[part] = head_weight[targets[part]] - torch.mm(low[rows], head_weight)
        if slopes is not None:
            ctx.save_for_backward(slopes)
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, " tokens"], _: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return slopes * grad[:, None].to(slopes.dtype), None, None, None, None, None
