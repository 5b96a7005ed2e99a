"""Figures of SFT and GRPO: curves over steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.readable import finite_number, format_number
from training.report.chart import (
    ACCENT,
    GREEN,
    GREY,
    PURPLE,
    RED,
    WARM,
    Axis,
    Chart,
    Figure,
    LegendEntry,
    padded_range,
    step_axis,
)

CURVE_COLOURS = (ACCENT, WARM, GREEN, PURPLE, RED, GREY)

Steps = Sequence[Mapping[str, Any]]
"""Objects of a `metrics.jsonl`, one a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Curves that share a picture."""

    title: str
    curves: tuple[tuple[str, str], ...]
    """Key in `metrics.jsonl` and label of each curve; keys that a run lacks are left out."""
    note: str = ""
    is_share: bool = False
    """The axis starts at 0 and is at least a tenth long: a share, or a count."""


USEFUL_TOKENS = Panel(
    title="Useful tokens per second",
    curves=(("tokens/useful_per_s", "trained tokens"),),
    note="Tokens in the loss per second of the learner.",
    is_share=True,
)

SFT_PANELS = (
    Panel(
        title="Loss",
        curves=(("sft/loss", "training"), ("sft/validation_loss", "held-out patients")),
        note="Mean over answers of the token mean; held-out patients at the end of an epoch.",
    ),
    Panel(title="Learning rate", curves=(("sft/learning_rate", "learning rate"),)),
    Panel(title="Gradient norm", curves=(("grad/norm", "before clipping"),)),
    USEFUL_TOKENS,
)

GRPO_PANELS = (
    Panel(
        title="Reward",
        curves=(
            ("reward/mean", "R"),
            ("reward/cls_mean", "R_cls"),
            ("reward/att_mean", "R_att"),
        ),
        note="Means over a step's rollouts.",
    ),
    Panel(
        title="R_att above the best constant set",
        curves=(("reward/excess", "excess"),),
        note="Above 0 the answers name features of the patient, not of everybody.",
    ),
    Panel(
        title="Answers that count as failures",
        curves=(
            ("rollout/parse_failure_rate", "format failures"),
            ("rollout/truncated_rate", "of which cut off"),
        ),
        is_share=True,
    ),
    Panel(
        title="Groups",
        curves=(("rollout/groups", "all"), ("rollout/dead_groups", "dead")),
        note="A dead group has equal rewards: it teaches nothing.",
        is_share=True,
    ),
    Panel(
        title="Entropy",
        curves=(("entropy/salient_mean", "salient tokens"), ("entropy/all_mean", "all tokens")),
        note="Nats per token under the policy that sampled.",
    ),
    Panel(
        title="Tokens where the clip decided",
        curves=(
            ("clip/high_share", "upper bound"),
            ("clip/low_share", "lower bound"),
            ("clip/adaptive_share", "entropy moved the bound"),
        ),
        is_share=True,
    ),
    Panel(
        title="Learner against generator",
        curves=(
            ("mismatch/mean_abs", "rollouts"),
            ("canary/mean_abs", "canary prompt"),
        ),
        note="Mean |difference| of log-probabilities.",
    ),
    Panel(
        title="Largest difference",
        curves=(
            ("mismatch/max_abs", "any token of the rollouts"),
            ("canary/max_abs", "any token of the canary"),
        ),
        note="|difference| of log-probabilities, learner against generator.",
    ),
    Panel(
        title="Learner against generator, KL",
        curves=(("mismatch/k3", "k3 estimate, rollouts"), ("canary/k3", "canary")),
        note="Nats per token; 0 if both are the same policy.",
    ),
    Panel(
        title="Served share of the trained change",
        curves=(("sync/served_share", "canary prompt"),),
        note="Slope of the served on the trained change of log-probabilities since version 0; 1 if "
        "what is served is what was trained. Shown where the change is above the noise.",
    ),
    Panel(
        title="Change since version 0",
        curves=(
            ("sync/trained_change", "trained, root mean square"),
            ("sync/change_mean_abs", "served minus trained, mean"),
        ),
        note="Nats per token of the canary.",
    ),
    Panel(title="Loss", curves=(("loss", "loss"),)),
    Panel(title="Gradient norm", curves=(("grad/norm", "before clipping"),)),
    USEFUL_TOKENS,
    Panel(
        title="Seconds of rollouts",
        curves=(("time/rollout_s", "sampled for"), ("time/rollout_wait_s", "waited for")),
        note="The second is below the first where rollouts run beside updates.",
        is_share=True,
    ),
    Panel(
        title="Policy version",
        curves=(("policy_version", "sampled by"), ("policy_version_out", "published")),
    ),
)

SELECTION_PANEL = Panel(
    title="Validation patients",
    curves=(("auroc", "AUROC"), ("score", "score that chooses")),
    note="The step with the highest score is kept; where validation is small, scores are pooled "
    "with those of the steps beside.",
)

TIME_PARTS = (
    ("time/rollout_s", "rollouts"),
    ("time/old_logprob_s", "old log-probabilities"),
    ("time/train_s", "updates"),
    ("time/sync_s", "sync"),
    ("time/canary_s", "canary"),
)
"""Keys and labels of a GRPO step's phases."""

_WAIT = ("time/rollout_wait_s", "waiting for rollouts")

SFT_TIME_PARTS = (("time/step_s", "update"), ("time/validation_s", "validation"))
"""Keys and labels of a fine-tuning step's phases."""


def curves_figure(panel: Panel, steps: Steps) -> Figure | None:
    """A panel's curves over the steps; None if the run has none of its keys."""
    curves = [
        (label, points) for key, label in panel.curves if (points := curve_points(key, steps))
    ]
    if not curves:
        return None
    values = [value for _, points in curves for _, value in points]
    low, high = padded_range(values, include=[0.0] if panel.is_share else [])
    chart = Chart(
        label=f"{panel.title} over the steps",
        x=step_axis([step for _, points in curves for step, _ in points]),
        y=Axis(low=low, high=max(high, 0.1) if panel.is_share else high),
        width=340,
        height=220,
        left=52,
    )
    legend: list[LegendEntry] = []
    for (label, points), colour in zip(curves, CURVE_COLOURS, strict=False):
        # dots hide each other on long runs
        radius = 3.5 if len(points) <= 60 else 0.0
        chart.line(points, colour)
        for step, value in points if radius else []:
            tip = f"step {step:g}: {label} {format_number(value, 4)}"
            chart.dot(step, value, colour, radius=radius, tip=tip)
        legend.append(LegendEntry(label=label, colour=colour))
    return Figure(title=panel.title, svg=chart.render(), legend=tuple(legend), note=panel.note)


def grpo_time_parts(steps: Steps) -> Sequence[tuple[str, str]]:
    """The phases that add up to a GRPO step.

    Rollouts count with what the learner waited for them, where the run says it: they may run beside
    updates.
    """
    says_wait = any(finite_number(step.get(_WAIT[0])) is not None for step in steps)
    return (_WAIT, *TIME_PARTS[1:]) if says_wait else TIME_PARTS


def step_time_figure(steps: Steps, phases: Sequence[tuple[str, str]] = TIME_PARTS) -> Figure | None:
    """Seconds of each step's phases as stacked bars; None if the run does not say."""
    parts = [(label, dict(points)) for key, label in phases if (points := curve_points(key, steps))]
    if not parts:
        return None
    numbers = sorted({step for _, seconds in parts for step in seconds})
    totals = [sum(seconds.get(step, 0.0) for _, seconds in parts) for step in numbers]
    _, high = padded_range(totals, include=[0.0])
    axis = step_axis(numbers)
    chart = Chart(
        label="Seconds per step and phase",
        x=Axis(low=min(numbers) - 0.6, high=max(numbers) + 0.6, label="step", ticks=axis.ticks),
        y=Axis(low=0, high=high, label="s"),
        width=340,
        height=220,
        left=52,
    )
    for step in numbers:
        base = 0.0
        for (label, seconds), colour in zip(parts, CURVE_COLOURS, strict=False):
            top = base + seconds.get(step, 0.0)
            tip = f"step {step:g}: {label} {format_number(seconds.get(step), 1)} s"
            chart.bar((step - 0.35, step + 0.35), (base, top), colour, tip=tip)
            base = top
    legend = tuple(
        LegendEntry(label=label, colour=colour)
        for (label, _), colour in zip(parts, CURVE_COLOURS, strict=False)
    )
    return Figure(title="Seconds per step", svg=chart.render(), legend=legend)


def curve_points(key: str, steps: Steps) -> list[tuple[float, float]]:
    """Step and value wherever both are numbers; steps without a number count from 1."""
    points: list[tuple[float, float]] = []
    for index, row in enumerate(steps, start=1):
        step, value = finite_number(row.get("step", index)), finite_number(row.get(key))
        if step is not None and value is not None:
            points.append((step, value))
    return sorted(points)
