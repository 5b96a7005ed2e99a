"""Group-normalized advantages, Eq. 14."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ehr.errors import TrainingError

DEAD_GROUP_SPAN = 1e-6
"""Rewards closer together than this carry no preference, only rounding."""


def group_advantages(
    reward: Float[Tensor, " group"], sample_ids: Sequence[str] | None = None
) -> Float[Tensor, " group"]:
    """Group-normalized advantage of each trajectory, A-hat in Eq. 14.

    Args:
        reward: total reward R of each trajectory of one patient; `group` = G.
        sample_ids: names of the trajectories for messages; their numbers by default.

    Returns:
        float64, mean 0 and population standard deviation 1, in the order of `reward`; exactly 0
        for a dead group (`is_dead`).

    Raises:
        ValueError: if the group has fewer than two trajectories.
        TrainingError: if a reward is NaN or infinite.

    Paper gap: all rewards equal leaves 0/0; every advantage is then 0. In float32, eight equal
    rewards differ from their mean by rounding, and dividing by a tiny deviation would blow it up.
    """
    if reward.numel() < 2:
        raise ValueError(f"expected a group of at least two rewards, got {reward.numel()}")
    check_finite("reward", reward, sample_ids)
    reward = reward.double()
    if is_dead(reward):
        return torch.zeros_like(reward)
    centred = reward - reward.mean()
    return centred / centred.square().mean().sqrt()


def weigh_parts(
    parts: Sequence[Float[Tensor, " group"]],
    weights: Sequence[float],
    sample_ids: Sequence[str] | None = None,
) -> Float[Tensor, " group"]:
    """One reward from parts that are brought to the same scale within the group first.

    Not in the paper: Eq. 7 weighs the parts as they are, so that the part that varies more decides
    nearly alone. Here a weight is the share of a part whatever its scale; a part that is equal for
    all trajectories counts for nothing.

    Args:
        parts: each part of the reward of each trajectory of one patient.
        weights: one for each part.
        sample_ids: as in `group_advantages`.

    Returns:
        float64, in the order of the trajectories.

    Raises:
        TrainingError: if a part is NaN or infinite.
    """
    scaled = [group_advantages(part, sample_ids) for part in parts]
    return sum(
        (weight * part for weight, part in zip(weights, scaled, strict=True)),
        start=torch.zeros_like(scaled[0]),
    )


def is_dead(reward: Float[Tensor, " group"]) -> bool:
    """Whether the rewards of a group are all equal, so that it teaches nothing."""
    return bool(reward.max() - reward.min() <= DEAD_GROUP_SPAN)


def check_finite(
    what: str, values: Float[Tensor, " samples"], sample_ids: Sequence[str] | None
) -> None:
    """Refuse NaN and infinity.

    Raises:
        TrainingError: naming up to five samples whose value is not finite.
    """
    broken = (~values.isfinite()).nonzero()[:, 0].tolist()
    if broken:
        found = ", ".join(
            f"{sample_ids[i] if sample_ids else f'sample {i}'}={values[i].item()}"
            for i in broken[:5]
        )
        raise TrainingError(
            f"expected a finite {what} for every sample, got {found}; look at these samples in "
            "rollouts.jsonl, or lower the learning rate if the loss itself diverged"
        )
