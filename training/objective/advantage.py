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
    centred = _centred(reward, sample_ids)
    deviation = _deviation([centred])
    return centred / deviation if deviation > 0 else centred


def batch_advantages(
    rewards: Sequence[Float[Tensor, " _"]], sample_ids: Sequence[Sequence[str]] | None = None
) -> list[Float[Tensor, " _"]]:
    """Advantages with one deviation for all groups of a batch: ours, beside Eq. 14.

    Eq. 14 divides by each group's own deviation. A group has one label, so it then pushes a
    probability up or down by the same amount however wrong it was, and the mean over patients of
    equal risk is which label most of them have: R_cls, whose best answer is the risk, comes to
    reward the extremes. With one divisor the push is as large as the reward's difference, and the
    log-likelihood of Eq. 4 stays what is maximized. Source: Bereket & Leskovec 2025, "Uncalibrated
    Reasoning: GRPO Induces Overconfidence for Stochastic Outcomes"; Liu et al. 2025, "Understanding
    R1-Zero-Like Training" (Dr. GRPO).

    Args:
        rewards: of each trajectory, patient by patient.
        sample_ids: names of the trajectories for messages.

    Returns:
        float64, in the order of `rewards`: mean 0 in every group, root mean square 1 over all;
        exactly 0 for a dead group.

    Raises:
        ValueError: if a group has fewer than two trajectories.
        TrainingError: if a reward is NaN or infinite.
    """
    names = sample_ids or [None] * len(rewards)
    centred = [_centred(*each) for each in zip(rewards, names, strict=True)]
    deviation = _deviation(centred)
    return [each / deviation if deviation > 0 else each for each in centred]


def advantage_scales(rewards: Sequence[Float[Tensor, " _"]], *, over_batch: bool) -> list[float]:
    """What the rewards of each group are divided by to become advantages.

    Args:
        rewards: of each trajectory, patient by patient.
        over_batch: by `batch_advantages`, else by `group_advantages`.

    Returns:
        One number a group, in the order of `rewards`; 0 where nothing is divided and all
        advantages are 0.
    """
    centred = [_centred(each, None) for each in rewards]
    if over_batch:
        return [float(_deviation(centred))] * len(centred)
    return [float(_deviation([each])) for each in centred]


def weigh_parts(
    parts: Sequence[Float[Tensor, " group"]], weights: Sequence[float]
) -> Float[Tensor, " group"]:
    """One reward from parts that were brought to the same scale (as advantages).

    Not in the paper: Eq. 7 weighs the parts as they are, so that the part that varies more decides
    nearly alone. Here a weight is the share of a part whatever its scale; a part that is equal for
    all trajectories counts for nothing.

    Args:
        parts: each part's advantages for the trajectories of one patient.
        weights: one for each part.

    Returns:
        In the order of the trajectories.
    """
    return sum(
        (weight * part for weight, part in zip(weights, parts, strict=True)),
        start=torch.zeros_like(parts[0]),
    )


def _centred(
    reward: Float[Tensor, " group"], sample_ids: Sequence[str] | None
) -> Float[Tensor, " group"]:
    """Differences from the group's mean in float64, exactly 0 for a dead group."""
    if reward.numel() < 2:
        raise ValueError(f"expected a group of at least two rewards, got {reward.numel()}")
    check_finite("reward", reward, sample_ids)
    reward = reward.double()
    return torch.zeros_like(reward) if is_dead(reward) else reward - reward.mean()


def _deviation(centred: Sequence[Float[Tensor, " _"]]) -> Float[Tensor, ""]:
    return torch.cat(list(centred)).square().mean().sqrt()


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
