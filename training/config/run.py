"""Configuration sections of the training stages, and the tree of all sections."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from actors.config import SearchSection
from ehr.base import Section, Seed
from ehr.config import CohortSection, ExpertSection, PromptSection, RewardSection
from ehr.language.feature_order import FeatureOrder
from services.config import ClusterSection, GeneratorSection, ModelSection, ServeSection
from training.config.checks import TAG_TOKENS, contradictions

RECORDED = {"recorded": True}
"""Validation context of a configuration that a run was made with: it is no longer asked for, and
stays readable whatever is refused today."""

MAX_NAME_BYTES = 100
"""Of `run.name`: it becomes part of longer file names."""


def _require_each_once(name: str, values: Sequence[object]) -> None:
    if len(set(values)) < len(values):
        raise ValueError(f"{name} must name each once, got {list(values)}")


def _listed(value: Any) -> Any:
    """A single value as a list of one."""
    return value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)


class LearnerSection(Section):
    """What SFT and GRPO share: LoRA, DeepSpeed, placement."""

    lora_rank: int = Field(default=64, ge=1)
    """LoRA rank, on all linear layers."""
    lora_alpha: float = Field(default=32, gt=0)
    """LoRA scaling factor; the adapter is scaled by alpha / rank."""
    num_workers: int = Field(default=1, ge=1)
    """Ray Train workers (learner ranks)."""
    cpus_per_worker: float = Field(default=1, gt=0)
    """Logical CPUs of a rank."""
    gpus_per_worker: float = Field(default=0, ge=0)
    """GPUs of a rank."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of a rank; null = the machine's cores divided by the ranks."""
    zero_stage: Literal[1, 2] = 2
    """DeepSpeed ZeRO stage."""
    max_row_tokens: int = Field(default=4096, ge=128)
    """Token budget of one packed row (micro-batch): a group's prompt once and its responses."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    gradient_clip: float = Field(default=1.0, gt=0)
    """Global gradient-norm clip."""
    max_failures: int = Field(default=1, ge=0)
    """Restarts of a failed worker group before the stage fails."""
    start_timeout_s: float = Field(default=600, gt=0)
    """How long a rank may wait for its next batch before it gives up."""


class FineTuneSection(Section):
    """What both kinds of supervised fine-tuning share."""

    epochs: int = Field(default=2, ge=1)
    """Passes over the examples."""
    batch_size: int = Field(default=16, ge=1)
    """Answers (of Stage-1: trajectories) per optimizer step."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """Peak learning rate (paper-sized models: 1e-4)."""
    warmup_fraction: float = Field(default=0.03, ge=0, lt=1)
    """Share of steps with linear warm-up, cosine afterwards."""
    reduction: Literal["token_mean", "sum"] = "token_mean"
    """Mean over answers of the token mean, or Eq. 8 literally."""
    validation_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of patients that are not trained on: their loss is measured after every epoch. Where
    that is fewer than 4 patients there are none."""
    checkpoint_steps: int = Field(default=20, ge=1)
    """A checkpoint is written after so many steps, and after every epoch."""
    seed: Seed = 13
    """Seeds the choice and the order of examples, and LoRA's initial weights."""


class SftSection(FineTuneSection):
    """Trajectory-level supervised fine-tuning (Stage 1), Eq. 8."""

    enabled: bool = True
    """false = no Stage-1 (`without_stage1`)."""


class DirectSftSection(FineTuneSection):
    """The `sft` row: fine-tuning on direct predictions; runs where `evaluate.methods` has `sft`."""

    num_predictions: int = Field(default=1000, ge=2)
    """Predictions to train on, half of them about positives."""
    replay: bool = False
    """Take the patients of a class again until its half is full (the paper, for TJH); false = no
    patient twice, and of both classes as many as the smaller one has."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the predictions."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate (paper-sized models: 1e-4)."""


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
    credit: Literal["trajectory", "reward_to_go", "by_name"] = "trajectory"
    """What a token's advantage is made of: the whole R for every token (Eq. 14), or what the token
    can still change: behind the features block R_att is settled and R_cls alone counts. `by_name`:
    also, each name of the block counts what it adds to R_att itself."""
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


class EvaluateSection(Section):
    """Which rows of the result table, on how many test patients."""

    methods: tuple[
        Literal[
            "vanilla",
            "think_then_answer",
            "think_then_answer_json",
            "question_decomposition",
            "short_answer",
            "sft",
            "stage1",
            "stage2",
            "concare",
            "logistic_regression",
            "gradient_boosting",
        ],
        ...,
    ] = ("vanilla", "question_decomposition", "stage1", "stage2", "concare", "logistic_regression")
    """Rows; Think-then-Answer has two forms, tags and JSON; `stage2` appears under `grpo.method`'s
    name, `sft` trains an adapter of its own (`direct_sft`)."""
    other_cohort: CohortSection | None = None
    """Another cohort (settings as in the section `cohort`, of the same task) whose test patients
    every row answers for as well: language models in that cohort's own schema, models of the record
    through a map of features. null = none."""
    num_patients: int | None = Field(default=16, ge=4)
    """Test patients for the language model rows (balanced if `balance`); null = all."""
    balance: bool = False
    """Half positives among those test patients; false = a seeded random sample."""
    num_samples: int = Field(default=1, ge=1)
    """Answers to each question: 1 = greedy; more = the mean probability of so many samples at
    temperature 1 (two written digits tie heavily). The text that is kept is that of the first."""
    seed: Seed = 19
    """Seeds the sample of test patients, sampled answers and the bootstrap."""
    num_resamples: int = Field(default=1000, ge=100)
    """Bootstrap resamples of patients behind the intervals."""
    max_depth: int = Field(default=3, ge=1)
    """T: depth at which the final is forced."""
    max_new_tokens: int = Field(default=256, ge=32)
    """Most model-written tokens of an answer."""
    faithfulness_patients: int = Field(default=8, ge=0)
    """Of the test patients, the first so many are asked about twice more by each language model row
    that names features: without one named and without one unnamed feature. 0 = off."""
    feature_order_shuffle: Annotated[
        tuple[Annotated[float, Field(ge=0, le=1)], ...], BeforeValidator(_listed)
    ] = ()
    """Shares p of the features that stand at another place of the test prompts (EXP#2; the paper:
    [0, 0.25, 0.5, 0.75, 1]), or one p: each language model row is asked about all its test patients
    again for every p above 0 and every seed. Nobody is trained on another order. Empty = off."""
    feature_order_seed: Annotated[tuple[Seed, ...], BeforeValidator(_listed)] = Field(
        default=(23,), min_length=1
    )
    """Seeds of those orders, or one seed; with the patient's id it says what moves, and where to
    (EXP#2 has five)."""

    @property
    def feature_orders(self) -> tuple[FeatureOrder, ...]:
        """The orders of features to ask about beside the cohort's own."""
        return tuple(
            FeatureOrder(share=share, seed=seed)
            for share in self.feature_order_shuffle
            if share > 0
            for seed in self.feature_order_seed
        )

    @model_validator(mode="after")
    def _unique(self) -> "EvaluateSection":
        for name in ("methods", "feature_order_shuffle", "feature_order_seed"):
            _require_each_once(f"evaluate.{name}", getattr(self, name))
        if not self.methods:
            raise ValueError("evaluate.methods must name at least one row, such as [vanilla]")
        return self


class LearnSection(Section):
    """The experiment of `eag-rl learn`: which arms, over which seeds."""

    arms: tuple[
        Literal[
            "vanilla",
            "think_then_answer",
            "think_then_answer_json",
            "untrained",
            "sft",
            "stage1",
            "stage1_grpo",
            "stage1_dapo",
            "eag_rl",
            "shuffled_salience",
            "rare_features",
            "eag_rl_selected",
            "without_attention_reward",
            "without_adaptive_clip",
            "without_stage1",
        ],
        ...,
    ] = (
        "vanilla",
        "untrained",
        "sft",
        "stage1",
        "stage1_grpo",
        "stage1_dapo",
        "eag_rl",
        "shuffled_salience",
        "without_attention_reward",
        "without_adaptive_clip",
    )
    """Arms, all from one shared Stage 1; `untrained` is the untrained model asked as `prompt.kind`
    says."""
    seeds: tuple[Seed, ...] = Field(default=(17, 18, 19), min_length=1)
    """Seeds of the arms' own training (patients, rollouts, mini-batches, LoRA's initial weights);
    arms with the same seed are compared in pairs. Arms without training of their own are asked
    once."""

    train_patients: tuple[Annotated[int, Field(ge=4)] | None, ...] = ()
    """Numbers of training patients (`cohort.train_patients`; null = all): an experiment of its own
    for each, in RUN/train-N, and a curve over them beside regression, boosting and ConCare on the
    same patients. Empty = one experiment, as the cohort says."""

    @model_validator(mode="after")
    def _unique(self) -> "LearnSection":
        named = {"arms": self.arms, "seeds": self.seeds, "train_patients": self.train_patients}
        for name, values in named.items():
            _require_each_once(f"learn.{name}", values)
        if not self.arms:
            raise ValueError("learn.arms must name at least one arm, such as [stage1, eag_rl]")
        return self


class RunSection(Section):
    """The run as a whole."""

    name: str | None = None
    """Name of the run, and of its folder below runs/; null = the first configuration's file
    name."""
    verbose: bool = False
    """Show the logs of Ray, vLLM and DeepSpeed on the terminal."""
    data_origin: str | None = None
    """Where the cohort's files were copied from, such as a mirror and its commit; a note that
    report and tables repeat."""

    @model_validator(mode="after")
    def _plain_name(self, info: ValidationInfo) -> "RunSection":
        name = self.name
        if name is None or info.context is RECORDED:
            return self
        if not (
            name == name.strip()
            and name not in ("", ".", "..")
            and name.isprintable()
            and not set(name) & set("/\\")
            and len(name.encode()) <= MAX_NAME_BYTES
        ):
            raise ValueError(
                f"run.name must be the name of a folder below runs/: printable, without / and \\, "
                f"at most {MAX_NAME_BYTES} bytes, got {name!r}; set run.name=NAME (the default is "
                "the first configuration's file name), and --run-dir for a folder elsewhere"
            )
        return self


class RunConfig(Section):
    """Everything a run reads, resolved."""

    run: RunSection = RunSection()
    cluster: ClusterSection = ClusterSection()
    cohort: CohortSection = CohortSection()
    prompt: PromptSection = PromptSection()
    reward: RewardSection = RewardSection()
    model: ModelSection = ModelSection()
    generator: GeneratorSection = GeneratorSection()
    expert: ExpertSection = ExpertSection()
    search: SearchSection = SearchSection()
    learner: LearnerSection = LearnerSection()
    sft: SftSection = SftSection()
    direct_sft: DirectSftSection = DirectSftSection()
    grpo: GrpoSection = GrpoSection()
    evaluate: EvaluateSection = EvaluateSection()
    learn: LearnSection = LearnSection()
    serve: ServeSection = ServeSection()

    @property
    def thought_tokens(self) -> int:
        """Most tokens of a guided Think-then-Answer's reasoning; 0 where no row asks for it."""
        thinks = any(name.startswith("think_then_answer") for name in self.evaluate.methods)
        return self.prompt.think_budget_tokens if thinks and self.prompt.format == "guided" else 0

    @model_validator(mode="after")
    def _trained_trajectories(self) -> "RunConfig":
        if self.search.value == "label_free" and self.sft.enabled:
            raise ValueError(
                "search.value is 'label_free', whose trajectories are for inference: Stage 1 "
                "trains on rewarded ones only; set sft.enabled=false, or search.value=reward"
            )
        return self

    @model_validator(mode="after")
    def _teacher(self) -> "RunConfig":
        if (
            self.prompt.kind == "short_answer"
            and self.search.method == "tree"
            and (self.sft.enabled or self.search.value == "label_free")
        ):
            raise ValueError(
                "prompt.kind is 'short_answer', which has no steps to search over; set "
                "search.method=samples, or sft.enabled=false"
            )
        return self

    @model_validator(mode="after")
    def _one_weighting(self) -> "RunConfig":
        if self.grpo.rare_features and self.reward.attention_weighting != "none":
            raise ValueError(
                "grpo.rare_features weighs the features of C_exp, and so does "
                f"reward.attention_weighting={self.reward.attention_weighting}; set one of them"
            )
        return self

    @model_validator(mode="after")
    def _same_task(self) -> "RunConfig":
        other = self.evaluate.other_cohort
        if other is not None and other.task is not self.cohort.task:
            raise ValueError(
                f"evaluate.other_cohort.task must be cohort.task, {str(self.cohort.task)!r}, got "
                f"{str(other.task)!r}: models trained for one task are asked about it"
            )
        if other is not None and other.horizon_days != self.cohort.horizon_days:
            raise ValueError(
                f"evaluate.other_cohort.horizon_days must be cohort.horizon_days, "
                f"{self.cohort.horizon_days}, got {other.horizon_days}: risks within one horizon "
                "are not risks within another"
            )
        return self

    @model_validator(mode="after")
    def _context_length(self) -> "RunConfig":
        # Caller-written tags and the chat frame come on top of what the model writes.
        overhead = TAG_TOKENS
        longest = max(
            self.grpo.max_new_tokens if self.grpo.enabled else 0,
            self.evaluate.max_new_tokens,
            self.thought_tokens,
        )
        needed = self.prompt.max_prompt_tokens + longest + overhead
        if needed > self.model.max_model_len:
            raise ValueError(
                f"model.max_model_len is {self.model.max_model_len}, but prompt.max_prompt_tokens "
                f"+ the longest answer + {overhead} for tags is {needed}; raise the first or "
                "lower the others"
            )
        return self

    @model_validator(mode="after")
    def _no_contradiction(self, info: ValidationInfo) -> "RunConfig":
        if info.context is not RECORDED and (problems := contradictions(self)):
            raise ValueError("; ".join(problems[:5]))
        return self
