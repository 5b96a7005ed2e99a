"""The clipped policy loss, Eq. 12 and 15-18."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from training.objective.advantage import check_finite

Aggregation = Literal["sequence_mean", "token_mean", "sum"]

# exp(20) is far beyond every clip, and still finite in float32.
_MAX_LOG_RATIO = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LossDenominators:
    """Counts of a whole optimizer step, over all ranks and micro-batches."""

    num_sequences: int
    """All B x G sequences, dead groups too (they add 0)."""
    num_tokens: int
    """Their model-written tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossParts:
    """The loss of a micro-batch and what the clip did; counts add up over micro-batches."""

    loss: Float[Tensor, ""]
    num_tokens: int
    num_clipped_low: int
    """Tokens without gradient because a falling ratio of a bad trajectory met the lower bound."""
    num_clipped_high: int
    """Tokens without gradient because a rising ratio of a good trajectory met the upper bound."""
    num_adaptive: int
    """Tokens whose surrogate would differ under the smallest upper clip: the entropy decided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledTokens:
    """What is fixed of a micro-batch while its policy is trained."""

    old_logp: Float[Tensor, "sequences tokens"]
    """Log-probability of each token under pi_old."""
    advantage: Float[Tensor, " sequences"] | Float[Tensor, "sequences tokens"]
    """A-hat of each trajectory, or of each of its tokens."""
    mask: Bool[Tensor, "sequences tokens"]
    """Tokens that the model wrote; whatever stands elsewhere is ignored."""
    importance_weight: Float[Tensor, "sequences tokens"] | None = None
    """Of each token (`importance.truncated_importance_weights`), constant; None = 1, Eq. 15 as it
    stands."""
    sample_ids: Sequence[str] | None = None
    """Names of the trajectories for messages."""


def bounded_ratio(log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """pi_theta / pi_old, Eq. 15, finite however far apart they are."""
    return log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()


def clipped_surrogate(
    ratio: Float[Tensor, "sequences tokens"],
    advantage: Float[Tensor, "sequences #tokens"],
    lower: float,
    upper: Float[Tensor, "sequences 1"],
) -> Float[Tensor, "sequences tokens"]:
    """min(rho A, clip(rho) A), Eq. 16 and 17, of each token."""
    clipped = torch.minimum(ratio, upper).clamp(min=lower)
    return torch.minimum(ratio * advantage, clipped * advantage)


def policy_loss(
    logp: Float[Tensor, "sequences tokens"],
    sampled: SampledTokens,
    clip_low: float,
    clip_high: Float[Tensor, " sequences"],
    aggregation: Aggregation,
    denominators: LossDenominators,
    *,
    clip_high_min: float | None = None,
    expected: Float[Tensor, " sequences"] | None = None,
) -> LossParts:
    """Negative clipped surrogate of a micro-batch, Eq. 15-18.

    GRPO, DAPO and EAG-RL differ in `clip_high` (fixed .2, fixed .28, entropy-aware), `aggregation`
    and what the advantages were made of, in nothing else.

    Args:
        logp: log-probability of each token under the policy that is trained.
        sampled: the same tokens under pi_old, their advantages, and which of them count.
        clip_low: epsilon of Eq. 16.
        clip_high: epsilon(tau) of each trajectory.
        aggregation: `sequence_mean` is Eq. 18, the mean over trajectories of their token means;
            `token_mean` (DAPO) weighs all tokens alike; `sum` is the mean over trajectories of
            Eq. 12's sum over tokens.
        denominators: of the whole optimizer step, so that micro-batches add up to its loss.
        clip_high_min: smallest upper clip, to count where the entropy decided; None = no count.
        expected: surrogate of each trajectory that needs no sample (`objective.risk`), added to the
            sum over its tokens; the tokens it stands for are in `mask`, with advantage 0.

    Raises:
        TrainingError: if a trajectory's ratio or loss is NaN or infinite.

    Paper gap: a trajectory without model-written tokens has no token mean; it adds 0.
    """
    mask, zero = sampled.mask, torch.zeros_like(logp)
    log_ratio = torch.where(mask, logp - sampled.old_logp, zero)
    # Before it is bounded: a log-probability of minus infinity would hide behind the bound.
    check_finite("log-ratio", log_ratio.detach().sum(1), sampled.sample_ids)
    ratio = bounded_ratio(log_ratio)
    a = sampled.advantage.to(logp.dtype)
    if a.dim() == 1:
        a = a[:, None]
    lower, upper = 1 - clip_low, (1 + clip_high.to(logp.dtype))[:, None]
    surrogate = clipped_surrogate(ratio, a, lower, upper)
    if sampled.importance_weight is not None:
        surrogate = surrogate * sampled.importance_weight.detach()
    surrogate = torch.where(mask, surrogate, zero)
    per_sequence = surrogate.sum(1)
    if expected is not None:
        per_sequence = per_sequence + expected
    check_finite("loss", per_sequence.detach(), sampled.sample_ids)
    loss = -_mean(per_sequence, mask, aggregation, denominators)
    return _counted(loss, ratio, a, mask, (lower, upper), clip_high_min)


@torch.no_grad()
def _counted(
    loss: Float[Tensor, ""],
    ratio: Float[Tensor, "sequences tokens"],
    advantage: Float[Tensor, "sequences #tokens"],
    mask: Bool[Tensor, "sequences tokens"],
    bounds: tuple[float, Float[Tensor, "sequences 1"]],
    clip_high_min: float | None,
) -> LossParts:
    """The loss with what the clip did."""
    lower, upper = bounds
    smallest = 1 + (math.inf if clip_high_min is None else clip_high_min)
    rising, falling = mask & (advantage > 0), mask & (advantage < 0)
    return LossParts(
        loss=loss,
        num_tokens=int(mask.sum()),
        num_clipped_low=int((falling & (ratio < lower)).sum()),
        num_clipped_high=int((rising & (ratio > upper)).sum()),
        num_adaptive=int((rising & (upper > smallest) & (ratio > smallest)).sum()),
    )


def _mean(
    per_sequence: Float[Tensor, " sequences"],
    mask: Bool[Tensor, "sequences tokens"],
    aggregation: Aggregation,
    denominators: LossDenominators,
) -> Float[Tensor, ""]:
    """The micro-batch's share in the mean of the whole optimizer step."""
    match aggregation:
        case "sequence_mean":
            lengths = mask.sum(1).clamp(min=1)
            return (per_sequence / lengths).sum() / denominators.num_sequences
        case "token_mean":
            return per_sequence.sum() / denominators.num_tokens
        case "sum":
            return per_sequence.sum() / denominators.num_sequences
