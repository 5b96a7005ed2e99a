"""The arms of an experiment: what each changes in a configuration, and what it has of its own.

An arm is a row of the paper's Table 1 or of its ablations. All of an experiment's arms start from
the same Stage 1; one that trains has a run folder of its own for every seed.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ehr.errors import ConfigurationError
from training.config.evaluate import EvaluateSection
from training.config.grpo import GrpoSection
from training.config.loading import validated
from training.config.run import RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One arm, whatever the seed."""

    name: str
    text: str
    """What it is, in a few words."""
    own_stage: Literal["grpo", "direct_sft"] | None = None
    """What it trains for itself; None = it is asked once, whatever the seeds."""
    needs_stage1: bool = False
    """It starts from, or is, the shared Stage 1."""
    changes: Mapping[str, Mapping[str, Any]]
    """Settings that it sets, by section."""


_STAGE2: dict[str, Any] = {"methods": ("stage2",)}
_FIXED_CLIP = {"clip_high_min": 0.2, "clip_high_max": 0.2}
_CLASSIFICATION_ONLY = {"accuracy_weight": 1.0}


def _stage2(name: str, text: str, settings: Mapping[str, Any], needs_stage1: bool = True) -> Arm:
    changes: dict[str, Mapping[str, Any]] = {
        "grpo": {"enabled": True, "method": name, **settings},
        "evaluate": _STAGE2,
        "sft": {"enabled": needs_stage1},
    }
    return Arm(name=name, text=text, own_stage="grpo", needs_stage1=needs_stage1, changes=changes)


def _asked(name: str, text: str, method: str, *, needs_stage1: bool = False) -> Arm:
    changes: dict[str, Mapping[str, Any]] = {
        "grpo": {"enabled": False},
        "evaluate": {"methods": (method,)},
        "sft": {"enabled": needs_stage1},
    }
    return Arm(name=name, text=text, needs_stage1=needs_stage1, changes=changes)


_UNTRAINED = "untrained"

ARMS: Mapping[str, Arm] = {
    arm.name: arm
    for arm in (
        _asked("vanilla", "the untrained model asked for the probability only", "vanilla"),
        _asked(
            "think_then_answer",
            "the untrained model asked to think, then answer",
            "think_then_answer",
        ),
        _asked(
            "think_then_answer_json",
            "the same in JSON, with units and reference ranges",
            "think_then_answer_json",
        ),
        _asked(_UNTRAINED, "the untrained model asked as the trained ones are", _UNTRAINED),
        Arm(
            name="sft",
            text="fine-tuned on direct predictions",
            own_stage="direct_sft",
            changes={
                "grpo": {"enabled": False},
                "evaluate": {"methods": ("sft",)},
                "sft": {"enabled": False},
            },
        ),
        _asked("stage1", "fine-tuned on the best trajectories", "stage1", needs_stage1=True),
        _stage2(
            "stage1_grpo",
            "Stage 1, then GRPO on the classification reward, fixed clip",
            {**_CLASSIFICATION_ONLY, "clip_low": 0.2, **_FIXED_CLIP},
        ),
        _stage2(
            "stage1_dapo",
            "Stage 1, then DAPO on the classification reward",
            {
                **_CLASSIFICATION_ONLY,
                "clip_low": 0.2,
                "clip_high_min": 0.28,
                "clip_high_max": 0.28,
                "aggregation": "token_mean",
                "dynamic_sampling": True,
            },
        ),
        _stage2("eag_rl", "Stage 1, then attention-aligned policy optimization", {}),
        _stage2(
            "shuffled_salience",
            "EAG-RL rewarded with another patient's salient features",
            {"shuffle_salience": True},
        ),
        _stage2(
            "rare_features",
            "EAG-RL rewarded by how rarely a salient feature is salient",
            {"rare_features": True},
        ),
        _stage2(
            "eag_rl_selected",
            "EAG-RL, its step chosen on the validation patients",
            {"select": "validation"},
        ),
        _stage2(
            "without_attention_reward",
            "EAG-RL on the classification reward alone",
            _CLASSIFICATION_ONLY,
        ),
        _stage2("without_adaptive_clip", "EAG-RL with a fixed clip", _FIXED_CLIP),
        _stage2("without_stage1", "EAG-RL from the untrained model", {}, needs_stage1=False),
    )
}
"""All arms, in the order of a result table."""

PARTS = (
    ("without_adaptive_clip", "stage1_grpo"),
    ("without_attention_reward", "stage1_grpo"),
)
"""Arms that differ in one of the two parts of EAG-RL alone: the attention reward; the clip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One arm with one seed: the unit of work of an experiment."""

    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """Such as `eag_rl/seed-17`: its folder below RUN/arms."""
        return f"{self.arm.name}/seed-{self.seed}"


def units_of(config: RunConfig, made: Collection[Unit] = ()) -> list[Unit]:
    """The units of `learn`, seed by seed, so that a stopped experiment has whole pairs.

    An arm without training of its own is one unit: that which is there already, or else one at the
    first seed.

    Args:
        config: the experiment.
        made: units that its folder has.
    """
    section = config.learn
    chosen = [arm for name, arm in ARMS.items() if name in section.arms]
    asked_at: dict[str, int] = {}
    for unit in made:
        if unit.arm.own_stage is None:
            asked_at.setdefault(unit.arm.name, unit.seed)
    return [
        Unit(arm=arm, seed=seed if arm.own_stage else asked_at.get(arm.name, seed))
        for place, seed in enumerate(section.seeds)
        for arm in chosen
        if place == 0 or arm.own_stage is not None
    ]


def unit_config(config: RunConfig, unit: Unit) -> RunConfig:
    """The configuration of a unit: the experiment's with the arm's changes and the unit's seed.

    The seed is that of the arm's own training. The cohort, Stage 1, the test patients and the
    sampling of their answers stay: arms are compared on the same ones.

    Raises:
        ConfigurationError: if the arm's changes do not fit the experiment's settings.
    """
    tree = config.model_dump()
    for section, settings in unit.arm.changes.items():
        tree[section] |= settings
    if tree["evaluate"]["methods"] == (_UNTRAINED,):
        tree["evaluate"]["methods"] = (config.prompt.kind,)
    if unit.arm.own_stage is not None:
        tree[unit.arm.own_stage]["seed"] = unit.seed
    try:
        return validated(tree)
    except ConfigurationError as error:
        raise ConfigurationError(f"arm {unit.arm.name} of learn.arms: {error}") from None


def shared_config(config: RunConfig) -> RunConfig:
    """The configuration of what all arms share: with Stage 1 exactly where an arm needs it.

    Raises:
        ConfigurationError: if that, or what an arm changes in it, does not fit.
    """
    units = units_of(config)
    needy = [unit.arm.name for unit in units if unit.arm.needs_stage1]
    tree = config.model_dump()
    if config.sft.enabled is not bool(needy):
        tree["sft"]["enabled"] = bool(needy)
        # Rows and their names are the arms' own; those of the settings fit another Stage 1.
        tree["evaluate"]["methods"] = EvaluateSection().methods
        if not config.grpo.shuffle_salience:  # its one name fits Stage 1 and none
            tree["grpo"]["method"] = GrpoSection().method
    try:
        shared = validated(tree)
    except ConfigurationError as error:
        reason = f"{', '.join(needy)} need Stage 1" if needy else "no arm needs Stage 1"
        raise ConfigurationError(f"learn.arms ({reason}): {error}") from None
    for unit in units:
        unit_config(shared, unit)
    return shared
