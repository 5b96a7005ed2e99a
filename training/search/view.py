"""What a person sees of a running search: lines under the bar, Ray metrics, a last line."""

from collections.abc import Mapping
from typing import Any

import ray
from ray.util.metrics import Gauge

from actors.search_totals import SearchProgress
from training.run.progress import OnProgress

GAUGES: Mapping[str, tuple[str, str]] = {
    "num_finished": ("eag_rl_search_patients_done", "Patients whose search is finished"),
    "num_rollouts": ("eag_rl_search_rollouts", "Simulations done"),
    "rollouts_per_s": ("eag_rl_search_rollouts_per_s", "Simulations per second, last minute"),
    "decode_tokens": ("eag_rl_search_decode_tokens", "Tokens that the engines wrote"),
    "decode_tokens_per_s": (
        "eag_rl_search_decode_tokens_per_s",
        "Tokens that the engines wrote per second, last minute",
    ),
    "cache_hit_rate": ("eag_rl_search_cache_hit_rate", "Share of prompt tokens found in a cache"),
    "invalid_score_rate": (
        "eag_rl_search_invalid_score_rate",
        "Share of usefulness scores that could not be read",
    ),
    "best_reward": ("eag_rl_search_best_reward", "Best R of a readable trajectory so far"),
    "num_trees": ("eag_rl_search_trees_in_flight", "Trees that grow"),
    "num_held": ("eag_rl_search_trees_held", "Trees that wait for room in the engines' cache"),
}
"""Field of `SearchProgress`, name of the Ray metric and what it says."""


class SearchView:
    """Shows where a search stands.

    Args:
        run_id: of the run; tags the Ray metrics.
        on_progress: moves the stage's bar.
    """

    def __init__(self, run_id: str, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._tags = {"run": run_id, "stage": "search"}
        self._gauges: dict[str, Gauge] = {}

    def __call__(self, progress: SearchProgress) -> None:
        """The search stands here now."""
        self._on_progress(
            progress.num_rollouts, progress.num_rollouts_wanted, "\n".join(search_lines(progress))
        )
        if not ray.is_initialized():
            return
        for name, (metric, description) in GAUGES.items():
            value = getattr(progress, name)
            if value is None:
                continue
            if name not in self._gauges:
                self._gauges[name] = Gauge(metric, description, tag_keys=tuple(self._tags))
            self._gauges[name].set(value, self._tags)


def search_lines(progress: SearchProgress) -> list[str]:
    """The state: what the bar counts, then three lines of under 80 characters."""
    trees = f"trees in flight {progress.num_trees}"
    if progress.num_held:
        trees += f" ({progress.num_held} wait for the engines' cache)"
    elif not progress.num_actors and progress.num_finished < progress.num_patients:
        trees = "search actors start"
    return [
        "rollouts",
        f"{progress.num_finished}/{progress.num_patients} patients done, "
        f"{progress.rollouts_per_s:.2f} rollouts/s, "
        f"{progress.decode_tokens_per_s:,.0f} decoded tokens/s, "
        f"cache hits {_share(progress.cache_hit_rate)}",
        f"{trees}, best {_value_name(progress.value)} {_number(progress.best_reward)}, "
        f"invalid scores {_share(progress.invalid_score_rate)}",
        f"{progress.trajectories:,} trajectories, {progress.requests:,} requests, "
        f"{progress.decode_tokens:,} decoded tokens",
    ]


def search_result_line(ledger: Mapping[str, Any]) -> str:
    """The totals of a finished search in one line."""
    prefill, computed = ledger["prefill_tokens"], ledger["prefill_computed_tokens"]
    hits = 1 - computed / prefill if prefill else None
    invalid = ledger["invalid_scores"] / ledger["scores"] if ledger["scores"] else None
    method = " (samples)" if ledger.get("method") == "samples" else ""
    return (
        f"search{method}: {ledger['patients']:,} patients, {ledger['rollouts']:,} rollouts, "
        f"{ledger['trajectories']:,} trajectories, {ledger['kept']:,} kept, best "
        f"{_value_name(ledger['value'])} {_number(ledger['best_reward'])}, "
        f"{ledger['requests']:,} requests "
        f"({ledger['replayed_requests']:,} from logs), {ledger['decode_tokens']:,} decoded tokens, "
        f"cache hits {_share(hits)}, invalid scores {_share(invalid)}"
    )


def _value_name(value: str) -> str:
    return "label-free value" if value == "label_free" else "R"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
