"""Which patients of a search are done, and what all of them have come to."""

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence

from actors.search_actor import ActorProgress, SearchSetup
from actors.search_folder import PatientSummary, SearchFolder
from actors.search_totals import RateMeter, SearchProgress, SearchTotals
from ehr.errors import SearchError

OnProgress = Callable[[SearchProgress], None]
"""Called about once a second, and whenever a patient is finished."""

MIN_SCORES = 20
"""Scores before the share of invalid ones means anything."""


class SearchBoard:
    """Which patients are done, and what they add up to; nothing of their trees is kept."""

    def __init__(
        self,
        patient_ids: Sequence[str],
        folder: SearchFolder,
        setup: SearchSetup,
        on_progress: OnProgress,
    ) -> None:
        self.num_patients = len(patient_ids)
        self.waiting: deque[str] = deque()
        self._section = setup.search
        self._on_progress = on_progress
        self._totals = SearchTotals()
        self._meter = RateMeter()
        for patient_id in patient_ids:
            summary = folder.finished(patient_id)
            if summary is None:
                self.waiting.append(patient_id)
            else:
                self._totals.add(summary)
        self.tell([], (), 0)
        self._check_scores()

    @property
    def num_finished(self) -> int:
        """Patients whose files are complete."""
        return self._totals.patients

    def add(self, patient: PatientSummary) -> None:
        """Counts a patient that has been written.

        Raises:
            SearchError: if too many usefulness scores are unreadable by now.
        """
        self._totals.add(patient)
        self._check_scores()

    def tell(self, known: Sequence[ActorProgress], busy: Collection[str], num_actors: int) -> None:
        """Hands on where the search stands, as far as the actors have said.

        Args:
            known: what each actor said last.
            busy: patients that are with an actor now.
            num_actors: actors that are up.
        """
        # What a finished patient had come to when its actor was last asked is counted already.
        trees = [tree for each in known for tree in each.trees if tree.patient_id in busy]
        totals = self._totals.with_growing(trees)
        if known:  # not while the actors start: that is no slow search
            self._meter.add(
                time.monotonic(),
                {
                    "rollouts": sum(each.new_rollouts for each in known),
                    "decode_tokens": sum(each.new_decode_tokens for each in known),
                },
            )
        self._on_progress(
            SearchProgress(
                num_patients=self.num_patients,
                num_finished=self._totals.patients,
                num_rollouts=totals.rollouts,
                num_rollouts_wanted=self.num_patients * self._section.num_rollouts,
                rollouts_per_s=self._meter.rate("rollouts"),
                decode_tokens=totals.calls("decode_tokens"),
                decode_tokens_per_s=self._meter.rate("decode_tokens"),
                requests=totals.calls("requests"),
                prefill_tokens=totals.calls("prefill_tokens"),
                prefill_computed_tokens=totals.calls("prefill_computed_tokens"),
                scores=totals.search("scores"),
                invalid_scores=totals.search("invalid_scores"),
                trajectories=totals.trajectories,
                best_reward=totals.best_reward,
                num_trees=len(trees),
                num_held=sum(each.num_held for each in known),
                num_actors=num_actors,
            )
        )

    def _check_scores(self) -> None:
        scores, invalid = self._totals.search("scores"), self._totals.search("invalid_scores")
        if scores >= MIN_SCORES and invalid > self._section.max_invalid_scores * scores:
            raise SearchError(
                f"expected at most {self._section.max_invalid_scores:.0%} unreadable usefulness "
                f"scores, got {invalid} of {scores}: this model does not write the number it is "
                "asked for; use prompt.format=guided, another model, or raise "
                "search.max_invalid_scores (an unreadable score counts as 50)"
            )
