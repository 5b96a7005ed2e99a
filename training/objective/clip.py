"""The entropy-aware upper clip, Eq. 10."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

EQUAL_ENTROPY_SPAN = 1e-6
"""Entropies (nats) closer together than this do not tell trajectories apart."""


def min_max_clip_high(
    entropy: Float[Tensor, " group"],
    valid: Bool[Tensor, " group"],
    low: float,
    high: float,
    least_span: float = 0.0,
) -> Float[Tensor, " group"]:
    """Upper clip of each trajectory, epsilon(tau) in Eq. 10.

    Args:
        entropy: mean entropy of each trajectory's salient tokens, H(tau).
        valid: which trajectories have salient tokens at all.
        low: the smallest upper clip, epsilon_min.
        high: the largest, epsilon_max.
        least_span: entropies (nats) of a group that lie closer together than this take only their
            share of [low, high] (ours); 0 = Eq. 10, which stretches any difference over all of it.

    Returns:
        Values in [low, high]: `low` for the least uncertain valid trajectory, and `high` for the
        most, unless `least_span` is wider than the entropies are apart.

    Paper gap: fewer than two valid trajectories, equal entropies, or none for a trajectory leave
    0/0 or nothing to compare; the clip is then `low`.
    """
    clip_high = torch.full_like(entropy, low)
    if valid.sum() < 2:
        return clip_high
    least, most = entropy[valid].min(), entropy[valid].max()
    if most - least <= EQUAL_ENTROPY_SPAN:
        return clip_high
    share = ((entropy - least) / (most - least).clamp(min=least_span)).clamp(0, 1)
    # Written as a weighted mean, both ends are attained exactly.
    return torch.where(valid, low * (1 - share) + high * share, clip_high)
