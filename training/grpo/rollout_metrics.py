"""What is logged of a step's rollouts."""

import random
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

from ehr.catalogue.names import FeatureMatcher
from ehr.salience.agreement import excess_jaccard
from training.grpo.batch import (
    ScoredGroup,
)

_NUM_SAMPLES = 4
"""Rollouts of a step that are kept for a person to read."""


def rollout_metrics(
    groups: Sequence[ScoredGroup], matcher: FeatureMatcher, num_salient_features: int
) -> dict[str, Any]:
    """What a batch's rollouts say about the policy that wrote them."""
    scored = [each for group in groups for each in group.rollouts]
    totals = [each.reward.total for each in scored]
    failures = [each.reward.format_failure is not None for each in scored]
    jaccard = excess_jaccard(
        [matcher.canonical_set(each.parsed.features) for each in scored],
        [group.patient.context.salient_features for group in groups for _ in group.rollouts],
        num_salient_features,
    )
    written = [sum(each.rollout.model_written) for each in scored]
    return {
        "reward/mean": fmean(totals),
        "reward/std": pstdev(totals),
        "reward/cls_mean": fmean(each.reward.cls for each in scored),
        "reward/att_mean": fmean(each.reward.att for each in scored),
        "reward/excess": jaccard.excess,
        "rollout/dead_groups": sum(group.is_dead for group in groups),
        "rollout/groups": len(groups),
        "rollout/parse_failure_rate": fmean(failures),
        "rollout/truncated_rate": fmean(each.rollout.truncated for each in scored),
        "rollout/response_tokens": fmean(written),
        "tokens/prompt": sum(len(group.patient.prompt_token_ids) for group in groups),
        "tokens/response": sum(len(each.rollout.token_ids) for each in scored),
        "tokens/trained": sum(written),
    }


def rollout_samples(step: int, groups: Sequence[ScoredGroup]) -> list[dict[str, Any]]:
    """Some rollouts of a step with the parts of their rewards, for a person to read.

    Drawn evenly from all of them, seeded by the step: what the policy typically writes, neither its
    best nor its worst.
    """
    everything = [(group, index) for group in groups for index in range(len(group.rollouts))]
    drawn = random.Random(f"samples of step {step}").sample(
        range(len(everything)), min(_NUM_SAMPLES, len(everything))
    )
    samples = []
    for group, index in (everything[place] for place in sorted(drawn)):
        each = group.rollouts[index]
        samples.append(
            {
                "step": step,
                "patient_id": group.patient.patient_id,
                "rollout": index,
                "policy_version": each.rollout.newest_policy.version,
                "reward": each.reward.total,
                "reward_cls": each.reward.cls,
                "reward_att": each.reward.att,
                "probability": each.parsed.probability,
                "label": group.patient.context.label,
                "features": list(each.parsed.features),
                "format_failure": each.reward.format_failure,
                "is_dead_group": group.is_dead,
                "text": each.rollout.text,
            }
        )
    return samples
