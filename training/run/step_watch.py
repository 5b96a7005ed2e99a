"""Follows a stage's `metrics.jsonl` while it grows and hands new steps on.

`metrics.jsonl` is what a run knows of its steps; TensorBoard files and Ray metrics are copies for
tools that read nothing else. The driver makes them, so that no rank or actor waits for a disk or a
dashboard.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import ray
from ray.util.metrics import Gauge

from training.readable import finite_number
from training.run.folder import RunFolder
from training.run.metrics_file import MetricsFile
from training.run.step_table import Line

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

GAUGES: dict[str, tuple[str, str]] = {
    "step": ("eag_rl_step", "Last finished step of the stage"),
    "policy_version_out": ("eag_rl_policy_version", "Policy version that the generators serve"),
    "reward/mean": ("eag_rl_reward_mean", "Mean reward R of the step's rollouts"),
    "reward/cls_mean": ("eag_rl_reward_cls_mean", "Mean classification reward"),
    "reward/att_mean": ("eag_rl_reward_att_mean", "Mean attention reward"),
    "reward/excess": ("eag_rl_reward_excess", "Attention reward above the best constant set"),
    "rollout/parse_failure_rate": (
        "eag_rl_parse_failure_rate",
        "Share of rollouts that count as format failures",
    ),
    "rollout/dead_groups": ("eag_rl_dead_groups", "Groups whose rewards are all equal"),
    "entropy/salient_mean": ("eag_rl_entropy_salient", "Entropy on salient tokens, nats"),
    "entropy/all_mean": ("eag_rl_entropy_all", "Entropy on all trained tokens, nats"),
    "mismatch/k3": ("eag_rl_mismatch_k3", "KL estimate, generator against learner, per token"),
    "mismatch/mean_abs": (
        "eag_rl_mismatch_mean_abs",
        "Mean absolute difference of log-probabilities, generator against learner",
    ),
    "canary/k3": ("eag_rl_canary_k3", "The same KL estimate on the canary's response"),
    "sync/served_share": (
        "eag_rl_served_share",
        "Served share of the trained change of the canary's log-probabilities",
    ),
    "sft/loss": ("eag_rl_sft_loss", "Loss of the last step"),
    "sft/validation_loss": ("eag_rl_sft_validation_loss", "Loss of held-out patients"),
    "grad/norm": ("eag_rl_grad_norm", "Gradient norm before clipping"),
    "tokens/useful_per_s": (
        "eag_rl_useful_tokens_per_s",
        "Trained tokens per second of the learner",
    ),
}
"""Key in `metrics.jsonl`, name of the Ray metric and what it says."""


class StepSink(Protocol):
    """Takes steps in their order."""

    def update(self, lines: Sequence[Line], num_known: int) -> None:
        """There are new steps.

        Args:
            lines: all steps of the stage so far.
            num_known: the first so many are as they were at the last call; later ones that had been
                handed over before are void.
        """
        ...

    def close(self) -> None:
        """No more steps."""
        ...


class StepWatch:
    """Reads a stage's steps whenever it is asked to.

    Args:
        path: a `metrics.jsonl`, which may not be there yet.
        sinks: who gets the steps.
    """

    def __init__(self, path: Path, sinks: Sequence[StepSink] = ()) -> None:
        self._path = path
        self._file = MetricsFile(path)
        self._sinks = sinks
        self._stamp: tuple[int, int] | None = None
        self.lines: list[Line] = []
        """All steps at the last look."""

    def refresh(self) -> Sequence[Line]:
        """Look again; steps that are new, or that were done again, come back."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return []
        # A file that replaces another has another inode, even within one tick of the clock.
        stamp = (found.st_ino, found.st_mtime_ns)
        if stamp == self._stamp:
            return []
        lines: list[Line] = list(self._file.lines())
        pairs = zip(self.lines, lines, strict=False)
        num_known = next(
            (number for number, (old, new) in enumerate(pairs) if old != new),
            min(len(self.lines), len(lines)),
        )
        is_changed = num_known < max(len(lines), len(self.lines))
        self._stamp, self.lines = stamp, lines
        if is_changed:
            for sink in self._sinks:
                sink.update(lines, num_known)
        return lines[num_known:]

    def close(self) -> None:
        """Hand over what is there, and end."""
        self.refresh()
        for sink in self._sinks:
            sink.close()


class TensorBoardLog:
    """TensorBoard event files with every number of every step, each step once.

    The files are a copy: where steps are done again, or a stage is resumed, they are written anew.

    Args:
        folder: of this stage alone; event files in it are replaced.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None
        self._remove_files()

    def update(self, lines: Sequence[Line], num_known: int) -> None:
        """Write the new steps, or all if some that were written are void."""
        if self._writer is not None and num_known < self._num_written:
            self.close()
            self._remove_files()
        if self._writer is None:
            from tensorboardX import SummaryWriter  # takes a while, and most commands need none

            self._writer = SummaryWriter(logdir=str(self._folder))
        for line in lines[self._num_written :]:
            for key, value in line.items():
                number = finite_number(value)
                if key != "step" and number is not None:
                    self._writer.add_scalar(key, number, global_step=int(line["step"]))
        self._writer.flush()
        self._num_written = len(lines)

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _remove_files(self) -> None:
        self._num_written = 0
        for file in self._folder.glob("events.out.tfevents.*"):
            file.unlink()


class RayGauges:
    """The last step as Ray metrics, tagged with run and stage.

    Args:
        run_id: of the run.
        stage: whose steps they are.
    """

    def __init__(self, run_id: str, stage: str) -> None:
        self._tags = {"run": run_id, "stage": stage}
        self._gauges: dict[str, Gauge] = {}

    def update(self, lines: Sequence[Line], num_known: int) -> None:
        """Set every gauge that the last step has a number for."""
        if not lines or not ray.is_initialized():
            return  # a stage that is resumed looks at its file before Ray is up
        for key, (name, description) in GAUGES.items():
            number = finite_number(lines[-1].get(key))
            if number is None:
                continue
            if key not in self._gauges:
                self._gauges[key] = Gauge(name, description, tag_keys=tuple(self._tags))
            self._gauges[key].set(number, self._tags)

    def close(self) -> None:
        """The last values stay until the driver ends."""


def watch_steps(folder: RunFolder, stage: str) -> StepWatch:
    """Follows a stage's `metrics.jsonl` into `RUN/tensorboard/STAGE` and Ray's metrics."""
    return StepWatch(
        folder.path / stage / "metrics.jsonl",
        [TensorBoardLog(folder.path / "tensorboard" / stage), RayGauges(folder.run_id, stage)],
    )
