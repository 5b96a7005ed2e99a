"""Settings of Stage 2."""

from typing import Literal

from pydantic import Field, model_validator

from ehr.base import Section, Seed


class GrpoSection(Section):
    """Attention-aligned policy optimization (Stage 2), Eq. 9-18."""

    enabled: bool = True
    """false = no Stage-2."""
    method: Literal[
        "eag_rl",
        "stage1_grpo",
        "stage1_dapo",
        "without_stage1",
        "without_attention_reward",
        "without_adaptive_clip",
        "shuffled_salience",
        "rare_features",
        "eag_rl_selected",
    ] = "eag_rl"
    """Name of this row in the result tables."""
    steps: int = Field(default=2, ge=1)
    """Steps; a step is one rollout batch, its updates, one commit and one sync."""
    patients_per_step: int = Field(default=2, ge=1)
    """Groups in a rollout batch."""
    group_size: int = Field(default=8, ge=2)
    """G: rollouts per patient."""
    updates_per_step: int = Field(default=2, ge=1)
    """M: optimizer updates per rollout batch (mini-batches of groups, shuffled by class)."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Adam learning rate (the paper: 3e-6); with a schedule, its peak."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate behind the warm-up: as it is (the paper names none), or falling towards 0 over
    `steps`."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up up to the learning rate."""
    accuracy_weight: float | None = Field(default=None, ge=0, le=1)
    """Overrides reward.accuracy_weight in Stage-2 only; 1 = without the attention reward."""
    advantage_scale: Literal["group", "batch"] = "group"
    """What a reward's difference from its group's mean is divided by: the group's deviation
    (Eq. 14, which makes predicted risks overconfident), or one deviation for the whole batch."""
    scale_parts: bool = False
    """Bring R_cls and R_att to deviation 1 (of `advantage_scale`) before lambda weighs them (not in
    the paper); false = Eq. 7, where the part that varies more decides nearly alone."""
    credit: Literal["trajectory", "reward_to_go", "by_name", "exact_risk"] = "trajectory"
    """What a token's advantage is made of: the whole R for every token (Eq. 14), or what the token
    can still change: behind the features block R_att is settled and R_cls alone counts. `by_name`:
    also, each name of the block counts what it adds to R_att itself. `exact_risk`: as
    `reward_to_go`, and the written number counts by the mean R_cls of all hundred that could stand
    there (`prompt.format: guided`, and a tokenizer with a token for each digit)."""
    shuffle_salience: bool = False
    """Give each patient another patient's C_exp (a control)."""
    rare_features: bool = False
    """Count a feature of C_exp by how rarely it is salient, 1 minus its share of the training
    patients, so that names which fit everybody teach little (not in the paper). Stage-2 only;
    evaluation shows the Jaccard of Eq. 6."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """epsilon of Eq. 16."""
    clip_high_min: float = Field(default=0.2, gt=0)
    """Smallest upper clip, epsilon_min of Eq. 10."""
    clip_high_max: float = Field(default=0.4, gt=0)
    """Largest upper clip; equal to the smallest = a fixed clip."""
    clip_least_span: float = Field(default=0.0, ge=0)
    """Entropies (nats) of a group that lie closer together than this take only their share of the
    range of upper clips; 0 = Eq. 10, which stretches any difference, noise too, over all of it."""
    aggregation: Literal["sequence_mean", "token_mean", "sum"] = "sequence_mean"
    """Loss aggregation: Eq. 18 (mean of sequence means), DAPO's token mean, or Eq. 12's sum."""
    # 2 as in verl and OpenRLHF: a token at which learner and generator agree within rounding weighs
    # about 1 whatever the cap, and no single token counts more than twice.
    importance_cap: float | None = Field(default=2.0, ge=1)
    """C: a freely sampled token's surrogate is multiplied by min(pi_old / pi_generator, C), learner
    over generator; null = off (Eq. 15 as it stands)."""
    salient_tokens: Literal["features_block", "feature_mentions"] = "features_block"
    """Tokens whose entropy steers the clip: the last features block, or names anywhere."""
    dynamic_sampling: bool = False
    """DAPO: replace groups whose rewards are all equal, up to `max_refills` batches."""
    max_refills: int = Field(default=2, ge=0)
    """Extra rollout batches a step may draw to replace dead groups."""
    max_staleness: int = Field(default=0, ge=0, le=1)
    """Versions by which the policy that sampled may be behind the one that a step starts from: 0
    alternates rollouts and updates, 1 samples the next batch while the learner trains this one
    (needs `importance_cap`)."""
    max_depth: int = Field(default=3, ge=1)
    """T of a rollout: depth at which the final is forced."""
    max_new_tokens: int = Field(default=160, ge=32)
    """Most model-written tokens of a rollout; a truncated rollout is a format failure."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature of rollouts; must be 1, or the ratios would be off-policy."""
    balance: bool = True
    """Half positives in each rollout batch (CPU presets); false = as they come (the paper)."""
    select: Literal["last", "validation"] = "last"
    """Which step's policy the stage keeps. `last`: the last one. `validation` (the paper): the best
    by AUROC on the validation patients, asked greedily; equal ones by their mean R. With fewer than
    50 of them in the rarer class a step's score is pooled with its neighbours'."""
    select_every: int = Field(default=1, ge=1)
    """With `select: validation`: every so many steps one is looked at, and the last."""
    seed: Seed = 17
    """Seeds patients, sampling and mini-batches."""
    canary_tolerance: float = Field(default=0.25, gt=0)
    """Largest mean |log-probability difference| of the canary prompt, learner against generator;
    behind version 0 three times the difference found there, where that is more."""
    served_share_warning: float = Field(default=0.1, gt=0)
    """How far the share of the trained change that is served (`sync/served_share`) may be from 1
    before it is warned about."""
    served_share_tolerance: float = Field(default=0.3, gt=0)
    """How far from 1 that share may be at all, after every sync and for every policy that is
    evaluated; beyond it the run stops."""

    @model_validator(mode="after")
    def _clip(self) -> "GrpoSection":
        if self.clip_high_max < self.clip_high_min:
            raise ValueError("grpo.clip_high_max must be at least grpo.clip_high_min")
        if self.updates_per_step < 2 and self.clip_high_min < self.clip_high_max:
            raise ValueError(
                "grpo.updates_per_step must be at least 2 for an adaptive clip: with one update "
                "per rollout batch every ratio is 1 and the clip is inert"
            )
        if self.updates_per_step > self.patients_per_step:
            raise ValueError(
                "grpo.updates_per_step must not exceed grpo.patients_per_step: each update takes "
                "whole groups"
            )
        if self.warmup_steps > self.steps:
            raise ValueError(
                f"grpo.warmup_steps must not exceed grpo.steps, got {self.warmup_steps} of "
                f"{self.steps}: the learning rate would never be reached"
            )
        if self.max_staleness > 0 and self.importance_cap is None:
            raise ValueError(
                "grpo.max_staleness=1 needs grpo.importance_cap (2.0): it weighs what the updates "
                "changed between the policy that sampled and the one that is trained"
            )
        if self.temperature != 1.0:
            raise ValueError(
                "grpo.temperature must be 1: the learner's probabilities are those at temperature "
                f"1, and ratios to others would be wrong; got {self.temperature!r}"
            )
        return self
