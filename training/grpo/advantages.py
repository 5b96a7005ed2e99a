"""What the rewards of a rollout batch give each of its tokens: scale, parts and credit (Eq. 7, 14).

The defaults are the paper's: R as it stands, the group's deviation, one advantage for all tokens of
a trajectory. `docs/results/log.md` has what each of the others changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ehr.catalogue.name_lists import name_spans
from ehr.language.pieces import TextTokenizer
from ehr.language.trajectory import parse_trajectory
from ehr.rewards import Reward
from training.config.grpo import GrpoSection
from training.objective.advantage import (
    advantage_scales,
    batch_advantages,
    group_advantages,
    weigh_parts,
)
from training.objective.entropy import token_spans


@dataclass(frozen=True, slots=True)
class RolloutAdvantage:
    """A-hat of one trajectory's tokens."""

    whole: float
    """Of tokens that can change all of R."""
    behind_features: float
    """Of tokens behind the features block."""
    of_names: tuple[float, ...] = ()
    """Of the tokens of each name in that block; empty = `whole`."""
    risk_scale: float = 0.0
    """What differences of R_cls are divided by; 0 = there are none in its group, or batch."""


def rollout_advantages(
    rewards: Sequence[Sequence[Reward]],
    accuracy_weights: Sequence[float],
    section: GrpoSection,
    names: Sequence[Sequence[str]],
    gains: Sequence[Sequence[Sequence[float]]] = (),
) -> list[list[RolloutAdvantage]]:
    """Advantages of a batch's rollouts.

    With `credit: reward_to_go` the tokens behind the features block have the advantage of R_cls
    alone: R_att is settled there and would be chance to them. R and R_cls are normalized each by
    its own deviation, so those tokens are trained as by GRPO on R_cls, whatever lambda is. (An
    answer that becomes unreadable there loses R_att too; the worst R_cls says so.) Source:
    reward-to-go of REINFORCE, e.g. Schulman et al. 2016, "High-Dimensional Continuous Control Using
    Generalized Advantage Estimation".

    With `credit: by_name` the tokens of a name have, beside R_cls, what that name adds to R_att
    instead of all of R_att, compared with the names in the same place of the group's other answers.
    Four fifths of R_att are other names' doing. What a name leaves to those behind it is not
    charged to it: of a set that is little more than that it cannot be named again.

    With `credit: exact_risk` all is as with `reward_to_go`, but for the written number
    (`training.objective.risk`).

    Args:
        rewards: of the rollouts, patient by patient.
        accuracy_weights: lambda of each patient's R.
        section: how advantages are made.
        names: of the rollouts, for messages.
        gains: what each name of each rollout adds to R_att; read with `credit: by_name` only.

    Raises:
        TrainingError: if a reward is not finite; names the rollout.
    """
    normalized = partial(_normalized, section=section, names=names)

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
    behind = whole if section.credit == "trajectory" else classification
    of_names = [torch.zeros(len(group), 0) for group in rewards]
    if section.credit == "by_name":
        cls = classification if section.scale_parts else part("cls")
        of_names = _of_names(gains, cls, accuracy_weights, section, names)
    scales = advantage_scales(part("cls"), over_batch=section.advantage_scale == "batch")
    return [
        [
            RolloutAdvantage(*each, scale)
            for each in zip(w.tolist(), b.tolist(), map(tuple, n.tolist()), strict=True)
        ]
        for w, b, n, scale in zip(whole, behind, of_names, scales, strict=True)
    ]


def _of_names(
    gains: Sequence[Sequence[Sequence[float]]],
    classification: Sequence[torch.Tensor],
    accuracy_weights: Sequence[float],
    section: GrpoSection,
    names: Sequence[Sequence[str]],
) -> list[torch.Tensor]:
    """Advantages [rollouts, names] of every group; a place that nobody wrote is 0."""
    num_names = max((len(each) for group in gains for each in group), default=0)
    # Group by group, place by place: what stands in one place of one patient's answers is compared.
    flat_names = [of_group for of_group in names for _ in range(num_names)]
    att = [
        torch.tensor([each[i] if i < len(each) else 0.0 for each in group], dtype=torch.float64)
        for group in gains
        for i in range(num_names)
    ]
    if section.scale_parts:
        att = _normalized(att, section, flat_names)
    mixed = []
    for number, each in enumerate(att):
        group = number // num_names
        weight = accuracy_weights[group]
        mixed.append(weigh_parts([classification[group], each], (weight, 1 - weight)))
    found = _normalized(mixed, section, flat_names)
    return [
        torch.stack(found[i * num_names : (i + 1) * num_names], dim=1)
        if num_names
        else torch.zeros(len(group), 0)
        for i, group in enumerate(gains)
    ]


def _normalized(
    values: Sequence[torch.Tensor], section: GrpoSection, names: Sequence[Sequence[str]]
) -> list[torch.Tensor]:
    if section.advantage_scale == "batch":
        return batch_advantages(values, names)
    return [group_advantages(*each) for each in zip(values, names, strict=True)]


def token_advantages(
    token_ids: Sequence[int], tokenizer: TextTokenizer, advantage: RolloutAdvantage
) -> list[float]:
    """A-hat of every token of a response, the caller's own included.

    A token with a character of the features block's contents is not behind it; without a block, no
    token is. In the block a token belongs to the name that it writes on or ends.
    """
    if advantage.whole == advantage.behind_features and not advantage.of_names:
        return [advantage.whole] * len(token_ids)
    text, spans = token_spans(token_ids, tokenizer)
    block = parse_trajectory(text).features_span
    written = name_spans(text[slice(*block)]) if block is not None else []

    def of_token(start: int, end: int) -> float:
        if block is None or end <= block[0]:
            return advantage.whole
        if start >= block[1]:
            return advantage.behind_features
        if not advantage.of_names:
            return advantage.whole
        number = sum(block[0] + name_start < end for name_start, _ in written)
        return advantage.of_names[min(max(number, 1), len(advantage.of_names)) - 1]

    return [of_token(start, end) for start, end in spans]
