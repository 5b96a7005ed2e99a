"""A step's metrics for people who watch: a table of the last steps, or one line a step.

Both say the same in the same order; a row whose keys no step has is left out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from training.readable import finite_number

Line = Mapping[str, Any]
"""One object of a `metrics.jsonl`."""

MISSING = "-"

_MOST_STEPS = 8
_COLUMN_GAP = 3  # characters between columns in the box chosen below


def _number(value: float) -> str:
    return f"{value:.3g}"


def _share(value: float) -> str:
    return f"{100 * value:.1f}%"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.1f}"


def _seconds(value: float) -> str:
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """Some metrics that are read together."""

    label: str
    keys: tuple[str, ...]
    """In `metrics.jsonl`, in the order of the label's words."""
    shown: Callable[[float], str] = _number

    def cell(self, line: Line) -> str:
        """The step's values, `-` for those that it lacks."""
        values = [finite_number(line.get(key)) for key in self.keys]
        return "/".join(MISSING if value is None else self.shown(value) for value in values)


STEP_ROWS: tuple[StepRow, ...] = (
    StepRow(label="epoch", keys=("epoch",), shown=_whole),
    StepRow(label="loss", keys=("sft/loss",)),
    StepRow(label="validation loss", keys=("sft/validation_loss",)),
    StepRow(label="learning rate", keys=("sft/learning_rate",)),
    StepRow(
        label="policy sampled by/published",
        keys=("policy_version", "policy_version_out"),
        shown=_whole,
    ),
    StepRow(
        label="staleness/straddled/refused",
        keys=("rollout/staleness", "rollout/straddled", "rollout/refused"),
        shown=_whole,
    ),
    StepRow(label="reward R/cls/att", keys=("reward/mean", "reward/cls_mean", "reward/att_mean")),
    StepRow(label="att above best constant", keys=("reward/excess",)),
    StepRow(
        label="format failures/cut off",
        keys=("rollout/parse_failure_rate", "rollout/truncated_rate"),
        shown=_share,
    ),
    StepRow(label="groups dead/all", keys=("rollout/dead_groups", "rollout/groups"), shown=_whole),
    StepRow(label="entropy salient/all", keys=("entropy/salient_mean", "entropy/all_mean")),
    StepRow(
        label="clipped low/high/adaptive",
        keys=("clip/low_share", "clip/high_share", "clip/adaptive_share"),
        shown=_share,
    ),
    StepRow(label="policy loss", keys=("loss",)),
    StepRow(label="gradient norm", keys=("grad/norm",)),
    StepRow(
        label="mismatch k3/mean/max",
        keys=("mismatch/k3", "mismatch/mean_abs", "mismatch/max_abs"),
    ),
    StepRow(
        label="canary k3/mean/max",
        keys=("canary/k3", "canary/mean_abs", "canary/max_abs"),
    ),
    StepRow(label="served share/trained change", keys=("sync/served_share", "sync/trained_change")),
    StepRow(label="useful tokens/s", keys=("tokens/useful_per_s",), shown=_rate),
    StepRow(label="seconds", keys=("time/step_s",), shown=_seconds),
    StepRow(label="seconds validation", keys=("time/validation_s",), shown=_seconds),
    StepRow(
        label="seconds rollout/waited/old/train/sync",
        keys=(
            "time/rollout_s",
            "time/rollout_wait_s",
            "time/old_logprob_s",
            "time/train_s",
            "time/sync_s",
        ),
        shown=_seconds,
    ),
)
"""Rows of every stage with steps, in order."""


def step_table(lines: Sequence[Line], width: int) -> Table:
    """The last steps side by side, as many as fit into `width` characters."""
    shown = lines[-_MOST_STEPS:]
    while len(shown) > 1 and _width(shown) > width:
        shown = shown[1:]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("step", no_wrap=True)
    for line in shown:
        table.add_column(f"{line.get('step', MISSING)}", justify="right", no_wrap=True)
    for row in _rows_of(shown):
        table.add_row(row.label, *(row.cell(line) for line in shown))
    return table


def step_line(line: Line, num_steps: float) -> str:
    """A step in one line, for logs."""
    parts = [f"{row.label} {row.cell(line)}" for row in _rows_of([line])]
    return f"step {line.get('step', MISSING)}/{num_steps:g}: " + ", ".join(parts)


def _width(lines: Sequence[Line]) -> int:
    rows = _rows_of(lines)
    columns = [[str(line.get("step")), *(row.cell(line) for row in rows)] for line in lines]
    labels = [row.label for row in rows]
    return sum(max(map(len, column), default=0) + _COLUMN_GAP for column in [labels, *columns])


def _rows_of(lines: Sequence[Line]) -> list[StepRow]:
    return [
        row
        for row in STEP_ROWS
        if any(finite_number(line.get(key)) is not None for line in lines for key in row.keys)
    ]
