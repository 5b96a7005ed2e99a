"""Log-probabilities and entropies of given tokens, without ever holding all logits."""

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LogitShape:
    """What a model does to the products h W of states and head before the softmax.

    Logits are cap * tanh(s / cap) of s = scale * (h W + bias), or s itself without a cap.
    """

    bias: Float[Tensor, " vocabulary"] | None = None
    """Added to the products (Phi)."""
    scale: float = 1.0
    """Factor of the sum (Cohere; one over the divisor of Granite)."""
    softcap: float | None = None
    """Limit that no logit reaches (Gemma)."""


PLAIN = LogitShape()
"""Logits are the products themselves (Llama, Qwen)."""


def response_logprobs(
    hidden: Float[Tensor, "tokens width"],
    head_weight: Float[Tensor, "vocabulary width"],
    targets: Int[Tensor, " tokens"],
    *,
    shape: LogitShape = PLAIN,
    allowed: Int32[Tensor, "tokens words"] | None = None,
    chunk: int = 128,
    with_entropy: bool = False,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"] | None]:
    """Log-probability of each target token, and the entropy of its distribution (H_t of Eq. 9).

    The head is applied to `chunk` tokens at a time, so memory holds one chunk of logits instead of
    tokens x vocabulary. Under a frozen head the gradient is ready when the log-probabilities are:
    that of a token's log-probability with respect to its own state, e_target W - p W, does not
    depend on the loss, which only scales it; a scale of the logits multiplies it, and under a soft
    cap each logit counts by the slope of its tanh. Under a trained head the logits are computed
    again in the backward pass.

    Args:
        hidden: states that predict the targets.
        head_weight: output embedding; its precision is the one that the products are made in.
        targets: the tokens in question.
        shape: what the model does to the products.
        allowed: the tokens that each was chosen from, bit i % 32 of word i // 32 for token i:
            log-probability and entropy are those of the distribution over these alone. None = all.
        chunk: tokens per application of the head.
        with_entropy: also return entropies in nats, without gradient.

    Returns:
        float32 log-probabilities, and entropies or None.
    """
    hidden = hidden.to(head_weight.dtype)  # some models keep their head in float32
    if not (torch.is_grad_enabled() and head_weight.requires_grad):
        logprob, entropy = _FrozenHead.apply(
            hidden, head_weight, targets, shape, allowed, chunk, with_entropy
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
            shape,
            None if allowed is None else allowed[part],
            with_entropy,
            use_reentrant=False,
        )
        logprobs.append(logprob)
        if entropy is not None:
            entropies.append(entropy)
    return torch.cat(logprobs), torch.cat(entropies) if with_entropy else None


def choice_logprobs(
    hidden: Float[Tensor, "*places width"],
    head_weight: Float[Tensor, "vocabulary width"],
    tokens: Int[Tensor, " tokens"],
    shape: LogitShape = PLAIN,
) -> Float[Tensor, "*places tokens"]:
    """Log-probability of each of a few tokens where nothing else can be written.

    The head is applied to these tokens alone, so a place costs next to nothing.

    Args:
        hidden: states that predict the choices.
        head_weight: output embedding.
        tokens: what there is to choose from.
        shape: what the model does to the products.

    Returns:
        float32; the probabilities of a place add up to 1.
    """
    bias = None if shape.bias is None else shape.bias[tokens]
    hidden = hidden.to(head_weight.dtype)
    return F.log_softmax(_scores(hidden, head_weight[tokens], bias, shape), -1)


def _scores(
    hidden: Float[Tensor, "*places width"],
    weight: Float[Tensor, "tokens width"],
    bias: Float[Tensor, " tokens"] | None,
    shape: LogitShape,
) -> Float[Tensor, "*places tokens"]:
    scores = F.linear(hidden, weight, bias).float() * shape.scale
    return scores if shape.softcap is None else shape.softcap * torch.tanh(scores / shape.softcap)


def _chunk_logprobs(
    hidden: Float[Tensor, "tokens width"],
    head_weight: Float[Tensor, "vocabulary width"],
    targets: Int[Tensor, " tokens"],
    shape: LogitShape,
    allowed: Int32[Tensor, "tokens words"] | None,
    with_entropy: bool,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"] | None]:
    scores = _scores(hidden, head_weight, shape.bias, shape)
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


def _fill_scores(
    scores: Float[Tensor, "tokens vocabulary"],
    products: Float[Tensor, "tokens vocabulary"],
    shape: LogitShape,
) -> Float[Tensor, "tokens vocabulary"] | None:
    """Logits of `products` (bias and all) into `scores`; the slopes of the soft cap come back."""
    scores.copy_(products)
    if shape.scale != 1.0:
        scores.mul_(shape.scale)
    if shape.softcap is None:
        return None
    scores.div_(shape.softcap).tanh_()
    slopes = 1 - scores.square()
    scores.mul_(shape.softcap)
    return slopes


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "tokens width"],
        head_weight: Float[Tensor, "vocabulary width"],
        targets: Int[Tensor, " tokens"],
        shape: LogitShape,
        allowed: Int32[Tensor, "tokens words"] | None,
        chunk: int,
        with_entropy: bool,
    ) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " entropies"]]:
        num_tokens, vocabulary = len(targets), head_weight.shape[0]
        logprobs = hidden.new_empty(num_tokens, dtype=torch.float32)
        entropies = logprobs.new_empty(num_tokens if with_entropy else 0)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # The same memory for every chunk: fresh pages cost more than the passes over them.
        sizes = (min(chunk, num_tokens), vocabulary)
        low = head_weight.new_empty(sizes)
        scores = logprobs.new_empty(sizes)
        every = logprobs.new_empty(sizes)
        for start in range(0, num_tokens, chunk):
            part = slice(start, min(start + chunk, num_tokens))
            rows = slice(0, part.stop - start)
            if shape.bias is None:
                torch.mm(hidden[part], head_weight.t(), out=low[rows])
            else:
                torch.addmm(shape.bias, hidden[part], head_weight.t(), out=low[rows])
            slopes = _fill_scores(scores[rows], low[rows], shape)
            if allowed is not None:
                scores[rows].masked_fill_(_forbidden(allowed[part], vocabulary), FORBIDDEN)
            torch.log_softmax(scores[rows], -1, out=every[rows])
            logprobs[part] = every[rows].gather(-1, targets[part, None])[:, 0]
            if with_entropy:
                torch.exp(every[rows], out=scores[rows])
                entropies[part] = -scores[rows].mul_(every[rows]).sum(-1)
            if gradient is not None:
                weights = every[rows].exp_()
                own = head_weight[targets[part]]
                if slopes is not None:
                    weights.mul_(slopes)
                    own = own * slopes.gather(-1, targets[part, None]).to(own.dtype)
                low[rows] = weights
                gradient[part] = own - torch.mm(low[rows], head_weight)
        if gradient is not None:
            ctx.save_for_backward(gradient)
            ctx.scale = shape.scale
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    # torch annotates neither its decorator nor that backward takes as many gradients as outputs.
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, " tokens"], _: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        factors = (ctx.scale * grad[:, None]).to(gradient.dtype)
        return gradient * factors, None, None, None, None, None, None
