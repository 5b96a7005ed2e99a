"""Log-probabilities and entropies of given tokens, without ever holding all logits."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def response_logprobs(
    hidden: Float[Tensor, "tokens width"],
    head_weight: Float[Tensor, "vocabulary width"],
    targets: Int[Tensor, " tokens"],
    *,
    chunk: int = 512,
    with_entropy: bool = False,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"] | None]:
    """Log-probability of each target token, and the entropy of its distribution (H_t of Eq. 9).

    The head is applied to `chunk` tokens at a time and again in the backward pass, so memory
    holds one chunk of logits instead of tokens x vocabulary.

    Args:
        hidden: states that predict the targets.
        head_weight: output embedding.
        targets: the tokens in question.
        chunk: tokens per application of the head.
        with_entropy: also return full-vocabulary entropies in nats, without gradient.

    Returns:
        float32 log-probabilities, and entropies or None.
    """
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
    logits = torch.nn.functional.linear(hidden, head_weight).float()
    log_normalizer = logits.logsumexp(-1)
    logprob = logits.gather(-1, targets[:, None])[:, 0] - log_normalizer
    if not with_entropy:
        return logprob, None
    with torch.no_grad():
        probability = (logits - log_normalizer[:, None]).exp()
        return logprob, log_normalizer - (probability * logits).sum(-1)
