"""What a search's patients add up to: the ledger, and what a person sees while it runs."""

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from actors.request_log import CallCounts
from actors.search_folder import PatientSummary

RATE_WINDOW_S = 60.0
"""Rates are means over the last so many seconds: a rollout of a slow engine takes several."""

_CALL_NAMES = tuple(field.name for field in fields(CallCounts) if field.name != "by_kind")


class SearchTotals:
    """Sums over patients. Nothing of a patient stays but its summary's numbers."""

    def __init__(self) -> None:
        self.patients = 0
        self.rollouts = 0
        self.trajectories = 0
        self.kept = 0
        self.patients_without_kept = 0
        self.best_reward: float | None = None
        self._calls: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()
        self._search: Counter[str] = Counter()
        self._spans: list[tuple[float, float]] = []

    @classmethod
    def of(cls, summaries: Iterable[PatientSummary]) -> "SearchTotals":
        """The totals of these patients."""
        totals = cls()
        for summary in summaries:
            totals.add(summary)
        return totals

    def add(self, patient: PatientSummary) -> None:
        """Counts a finished patient."""
        self.patients += 1
        self.patients_without_kept += int(patient.kept == 0)
        self._spans.append((patient.started_unix_s, patient.finished_unix_s))
        self._sum(patient)

    def with_growing(self, trees: Iterable[PatientSummary]) -> "SearchTotals":
        """These totals and what trees that still grow have come to; `self` stays as it is."""
        both = SearchTotals()
        both.patients, both.patients_without_kept = self.patients, self.patients_without_kept
        both.rollouts, both.trajectories, both.kept = self.rollouts, self.trajectories, self.kept
        both.best_reward = self.best_reward
        both._calls, both._kinds = self._calls.copy(), self._kinds.copy()
        both._search = self._search.copy()
        for tree in trees:
            both._sum(tree)
        return both

    def calls(self, name: str) -> int:
        """A sum of `CallCounts`."""
        return self._calls[name]

    def search(self, name: str) -> int:
        """A sum of `SearchCounts`."""
        return self._search[name]

    def ledger(self) -> dict[str, Any]:
        """What the patients cost: the contract's keys, then more detail.

        The same whatever the order in which patients finished, but for `seconds`.
        """
        search = dict(self._search)
        return {
            "patients": self.patients,
            **{name: self._calls[name] for name in _CALL_NAMES},
            "seconds": round(_covered_seconds(self._spans), 2),
            "invalid_scores": search.pop("invalid_scores", 0),
            "scores": search.pop("scores", 0),
            "requests_by_kind": dict(sorted(self._kinds.items())),
            "rollouts": self.rollouts,
            "trajectories": self.trajectories,
            "kept": self.kept,
            "patients_without_kept": self.patients_without_kept,
            "best_reward": self.best_reward,
            **dict(sorted(search.items())),
        }

    def _sum(self, patient: PatientSummary) -> None:
        self.rollouts += patient.rollouts
        self.trajectories += patient.trajectories
        self.kept += patient.kept
        if patient.best_reward is not None:
            best = self.best_reward
            self.best_reward = (
                patient.best_reward if best is None else max(best, patient.best_reward)
            )
        self._kinds.update(patient.calls["by_kind"])
        self._calls.update({k: v for k, v in patient.calls.items() if k != "by_kind"})
        self._search.update(patient.search)


def _covered_seconds(spans: Iterable[tuple[float, float]]) -> float:
    """Time in which at least one patient was searched: a pause before a resume is none."""
    seconds, end = 0.0, float("-inf")
    for start, finish in sorted(spans):
        seconds += max(0.0, finish - max(start, end))
        end = max(end, finish)
    return seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchProgress:
    """Where a running search stands: finished patients and trees that grow."""

    num_patients: int
    num_finished: int
    num_rollouts: int
    """Simulations done."""
    num_rollouts_wanted: int
    rollouts_per_s: float
    """Of this attempt, over the last minute; what a log replays is not counted."""
    decode_tokens: int
    decode_tokens_per_s: float
    requests: int
    prefill_tokens: int
    prefill_computed_tokens: int
    scores: int
    invalid_scores: int
    trajectories: int
    best_reward: float | None
    value: str
    """What that is: `search.value`, the reward R or the label-free value."""
    num_trees: int
    """Trees that grow."""
    num_held: int
    """Patients whose trees wait for room in the engines' cache."""
    num_actors: int
    """Search actors that are up."""

    @property
    def cache_hit_rate(self) -> float | None:
        """Share of prompt tokens that the prefix cache had; None before the first request."""
        if not self.prefill_tokens:
            return None
        return 1 - self.prefill_computed_tokens / self.prefill_tokens

    @property
    def invalid_score_rate(self) -> float | None:
        """Share of usefulness scores that could not be read; None before the first."""
        return self.invalid_scores / self.scores if self.scores else None


class RateMeter:
    """Rates of counters that only grow, over the last minute.

    Args:
        window_s: length of the window.
    """

    def __init__(self, window_s: float = RATE_WINDOW_S) -> None:
        self._window_s = window_s
        self._samples: deque[tuple[float, Mapping[str, float]]] = deque()

    def add(self, time_s: float, counters: Mapping[str, float]) -> None:
        """A look at the counters."""
        self._samples.append((time_s, counters))
        # The newest sample before the window stays: the window begins there.
        while len(self._samples) > 2 and self._samples[1][0] <= time_s - self._window_s:
            self._samples.popleft()

    def rate(self, name: str) -> float:
        """Rate per second over the window; 0.0 before the second look."""
        if len(self._samples) < 2:
            return 0.0
        (start_s, before), (end_s, after) = self._samples[0], self._samples[-1]
        # What a dead actor had counted is gone: no rate is negative.
        return max(0.0, after[name] - before[name]) / (end_s - start_s) if end_s > start_s else 0.0
