"""The stages of a run, in order: what each reads, needs and writes. The one list of them.

What a stage does is in its own room and is bound in `training.main_job`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line reads this list before anything else is imported
    from training.config.run import RunConfig
    from training.run.progress import OnProgress

StageWork = Callable[[Any, "OnProgress"], None]
"""Does a stage's work, given the session and a progress callback; must be able to resume."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of the main job."""

    name: str
    sections: tuple[str, ...]
    """Configuration it reads: whole sections, or single `section.field`s."""
    needs: tuple[str, ...]
    """Stages whose output it reads."""
    outputs: tuple[str, ...]
    """Files or folders in RUN/NAME whose bytes are its output."""
    says: str = ""
    """For `--help`."""
    needs_cluster: bool = True
    """Whether it asks Ray or a model for anything."""
    has_steps: bool = False
    """It writes `metrics.jsonl`, an object a step, which is shown and copied while it grows."""
    when: "Callable[[RunConfig], bool]" = lambda config: True
    """Whether the configuration wants it at all."""


STAGES = (
    Stage(
        name="cohort",
        says="build the cohort and its splits",
        needs_cluster=False,
        sections=("cohort",),
        needs=(),
        outputs=("summary.json",),
    ),
    Stage(
        name="expert",
        says="train the ConCare ensembles and store their salience",
        sections=("expert",),
        needs=("cohort",),
        outputs=("salience.parquet", "checkpoint"),
    ),
    Stage(
        name="search",
        says="expert-guided Monte Carlo tree search for trajectories",
        sections=("search", "prompt", "reward", "model"),
        needs=("cohort", "expert"),
        outputs=("trajectories.parquet",),
        when=lambda config: config.sft.enabled or config.search.value == "label_free",
    ),
    Stage(
        name="sft",
        says="Stage 1: fine-tune on the best trajectories",
        sections=("sft", "learner", "model"),
        needs=("search",),
        outputs=("adapter",),
        has_steps=True,
        when=lambda config: config.sft.enabled,
    ),
    Stage(
        name="grpo",
        says="Stage 2: attention-aligned policy optimization",
        sections=("grpo", "learner", "prompt", "reward", "model", "generator.sync"),
        needs=("cohort", "expert", "search", "sft"),
        outputs=("adapter",),
        has_steps=True,
        when=lambda config: config.grpo.enabled,
    ),
    Stage(
        name="direct_sft",
        says="fine-tune on direct predictions, where evaluate.methods has sft",
        sections=("direct_sft", "learner", "prompt", "model"),
        needs=("cohort",),
        outputs=("adapter",),
        has_steps=True,
        when=lambda config: "sft" in config.evaluate.methods,
    ),
    Stage(
        name="evaluate",
        says="ask every method about test patients and compare them",
        sections=("evaluate", "prompt", "model", "grpo.method"),
        needs=("cohort", "expert", "sft", "grpo", "direct_sft"),
        outputs=("results.json",),
    ),
    Stage(
        name="report",
        says="write report.html, after all other stages",
        needs_cluster=False,
        sections=(),
        needs=("cohort", "expert", "search", "sft", "grpo", "direct_sft", "evaluate"),
        outputs=(),
    ),
)
"""The main job in order."""
