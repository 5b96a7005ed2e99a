"""What the rewards of a rollout batch give each of its tokens: scale, parts and credit (Eq. 7, 14).

The defaults are the paper's: R as it stands, the group's deviation, one advantage for all tokens of
a trajectory. `docs/results.md` has what each of the others changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ehr.pieces import TextTokenizer
from ehr.rewards import Reward
from ehr.trajectory import parse_trajectory
from training.config import GrpoSection
from training.objective.advantage import batch_advantages, group_advantages, weigh_parts
from training.objective.entropy import token_spans


@dataclass(frozen=True, slots=True)
class RolloutAdvantage:
    """A-hat of one trajectory's tokens."""

    whole: float
    """Of tokens that can change all of R."""
    behind_features: float
    """Of tokens behind the features block."""


def rollout_advantages(
    rewards: Sequence[Sequence[Reward]],
    accuracy_weights: Sequence[float],
    section: GrpoSection,
    names: Sequence[Sequence[str]],
) -> list[list[RolloutAdvantage]]:
    """Advantages of a batch's rollouts.

    With `credit: reward_to_go` the tokens behind the features block have the advantage of R_cls
    alone: R_att is settled there and would be chance to them. R and R_cls are normalized each by
    its own deviation, so those tokens are trained as by GRPO on R_cls, whatever lambda is. (An
    answer that becomes unreadable there loses R_att too; the worst R_cls says so.) Source:
    reward-to-go of REINFORCE, e.g. Schulman et al. 2016, "High-Dimensional Continuous Control Using
    Generalized Advantage Estimation".

    Args:
        rewards: of the rollouts, patient by patient.
        accuracy_weights: lambda of each patient's R.
        section: how advantages are made.
        names: of the rollouts, for messages.

    Raises:
        TrainingError: if a reward is not finite; names the rollout.
    """

    def normalized(values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if section.advantage_scale == "batch":
            return batch_advantages(values, names)
        return [group_advantages(*each) for each in zip(values, names, strict=True)]

    def part(name: str) -> list[torch.Tensor]:
        return [
            torch.tensor([getattr(each, name) for each in group], dtype=torch.float64)
            for group in rewards
        ]

    total, classification = part("total"), normalized(part("cls"))
    if section.scale_parts:
        parts = zip(accuracy_weights, classification, normalized(part("att")), strict=True)
        total = [weigh_parts([cls, att], (weight, 1 - weight)) for weight, cls, att in parts]
    whole = normalized(total)
    behind = classification if section.credit == "reward_to_go" else whole
    return [
        [RolloutAdvantage(*each) for each in zip(w.tolist(), b.tolist(), strict=True)]
        for w, b in zip(whole, behind, strict=True)
    ]


def token_advantages(
    token_ids: Sequence[int], tokenizer: TextTokenizer, advantage: RolloutAdvantage
) -> list[float]:
    """A-hat of every token of a response, the caller's own included.

    A token with a character of the features block's contents is not behind it; without a block, no
    token is.
    """
    if advantage.whole == advantage.behind_features:
        return [advantage.whole] * len(token_ids)
    text, spans = token_spans(token_ids, tokenizer)
    block = parse_trajectory(text).features_span
    return [
        advantage.behind_features if block and start >= block[1] else advantage.whole
        for start, _ in spans
    ]
