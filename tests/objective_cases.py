"""A random rollout batch, its loss by `training.objective`, and by a reference of twenty lines."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from training.config.grpo import GrpoSection
from training.objective.advantage import group_advantages
from training.objective.clip import min_max_clip_high
from training.objective.entropy import mean_salient_entropy
from training.objective.importance import generator_log_ratio, truncated_importance_weights
from training.objective.loss import LossDenominators, LossParts, SampledTokens, policy_loss


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sequences of whole groups, one after the other; tensors [sequences, tokens] if not said."""

    group_size: int
    rewards: Tensor
    """[sequences]"""
    logp: Tensor
    old_logp: Tensor
    generator_logp: Tensor
    entropy: Tensor
    mask: Tensor
    salient: Tensor
    constrained: Tensor

    def taken(self, order: Tensor) -> "Case":
        """The sequences of `order`."""
        fields = {name: value for name, value in vars(self).items() if name != "group_size"}
        return replace(self, **{name: value[order] for name, value in fields.items()})


def random_case(seed: int, num_groups: int = 2, group_size: int = 4, tokens: int = 7) -> Case:
    """A float64 case in which tokens meet both sides of every clip."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_groups * group_size, tokens)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    def chance(share: float) -> Tensor:
        return torch.rand(shape, generator=generator) < share

    rewards, old_logp = normal(shape[0]), -3 * normal(*shape).abs()
    logp, mask, salient = old_logp + 0.4 * normal(*shape), chance(0.8), chance(0.5)
    mask[1] = False  # the caller wrote everything
    salient[2] = False  # no readable features block
    # The best trajectory rose and the worst fell beyond every clip, freely sampled.
    best, worst = int(rewards[:group_size].argmax()), int(rewards[:group_size].argmin())
    mask[[best, worst], 0] = True
    logp[best, 0], logp[worst, 0] = old_logp[best, 0] + 1, old_logp[worst, 0] - 1
    return Case(
        group_size=group_size,
        rewards=rewards,
        logp=logp,
        old_logp=old_logp,
        generator_logp=old_logp + 0.7 * normal(*shape),
        entropy=normal(*shape).abs(),
        mask=mask,
        salient=salient & mask,
        constrained=chance(0.3),
    )


def loss_inputs(case: Case, section: GrpoSection) -> dict[str, Any]:
    """What `policy_loss` takes of a case, for one optimizer step."""
    groups = [case.taken(part) for part in torch.arange(len(case.rewards)).split(case.group_size)]
    bounds = []
    for group in groups:
        entropy, valid = mean_salient_entropy(group.entropy, group.salient)
        bounds.append(
            min_max_clip_high(entropy, valid, section.clip_high_min, section.clip_high_max)
        )
    weights = None
    if section.importance_cap is not None:
        measured = case.mask & ~case.constrained
        log_ratio = generator_log_ratio(case.old_logp, case.generator_logp, measured)
        weights = truncated_importance_weights(log_ratio, section.importance_cap)
    return {
        "logp": case.logp,
        "old_logp": case.old_logp,
        "advantage": torch.cat([group_advantages(group.rewards) for group in groups]),
        "mask": case.mask,
        "clip_low": section.clip_low,
        "clip_high": torch.cat(bounds),
        "aggregation": section.aggregation,
        "denominators": LossDenominators(
            num_sequences=len(case.rewards), num_tokens=max(1, int(case.mask.sum()))
        ),
        "clip_high_min": section.clip_high_min,
        "importance_weight": weights,
    }


def flat_policy_loss(
    logp: Tensor, old_logp: Tensor, advantage: Tensor, mask: Tensor, *rest: Any, **named: Any
) -> LossParts:
    """`policy_loss` with what is fixed of a batch as arguments of their own."""
    fixed = {key: named.pop(key) for key in ("importance_weight", "sample_ids") if key in named}
    sampled = SampledTokens(old_logp=old_logp, advantage=advantage, mask=mask, **fixed)
    return policy_loss(logp, sampled, *rest, **named)


def micro_batch(inputs: dict[str, Any], part: Tensor) -> dict[str, Any]:
    """The sequences `part` of `loss_inputs`, under the same denominators."""
    return {k: v[part] if isinstance(v, Tensor) else v for k, v in inputs.items()}


def our_loss(case: Case, section: GrpoSection) -> tuple[LossParts, Tensor]:
    """Loss by `training.objective`, and its gradient with respect to `case.logp`."""
    logp = case.logp.clone().requires_grad_()
    parts = flat_policy_loss(**loss_inputs(replace(case, logp=logp), section))
    return parts, torch.autograd.grad(parts.loss, logp)[0]


def reference_loss(case: Case, section: GrpoSection) -> tuple[float, Tensor]:
    """Eq. 9-18 and the importance weights token by token, with the gradient worked out by hand."""
    loss, gradient, size = 0.0, torch.zeros_like(case.logp), case.group_size
    for first in range(0, len(case.rewards), size):
        group = range(first, first + size)
        rewards = [float(case.rewards[i]) for i in group]
        mean = sum(rewards) / size
        deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / size)
        dead = max(rewards) - min(rewards) <= 1e-6
        h = {
            i: float(case.entropy[i][case.salient[i]].mean())
            for i in group
            if case.salient[i].any()
        }
        span = max(h.values(), default=0.0) - min(h.values(), default=0.0)
        for i in group:
            a = 0.0 if dead else (float(case.rewards[i]) - mean) / deviation
            share = (h[i] - min(h.values())) / span if i in h and span > 1e-6 else 0.0
            high = section.clip_high_min + (section.clip_high_max - section.clip_high_min) * share
            for t in case.mask[i].nonzero()[:, 0].tolist():
                ratio = math.exp(case.logp[i, t] - case.old_logp[i, t])
                bounded = max(1 - section.clip_low, min(ratio, 1 + high))
                weight = 1.0
                if section.importance_cap is not None and not case.constrained[i, t]:
                    difference = float(case.old_logp[i, t] - case.generator_logp[i, t])
                    weight = min(math.exp(difference), section.importance_cap)
                weight /= {
                    "sequence_mean": len(case.rewards) * int(case.mask[i].sum()),
                    "token_mean": int(case.mask.sum()),
                    "sum": len(case.rewards),
                }[section.aggregation]
                loss -= min(ratio * a, bounded * a) * weight
                gradient[i, t] = -ratio * a * weight if ratio * a <= bounded * a else 0.0
    return loss, gradient
