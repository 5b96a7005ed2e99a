"""The pool of Ray actors that search a cohort's patients.

Patients are dealt out one by one, so that no tree waits for another. A dead actor is replaced while
the others work on, and its patients are searched again from their logs; a resumed run skips
finished patients. What is on disk is `actors.search_folder`'s; the driver keeps sums.
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.search_actor import ActorProgress, SearchActor, SearchSetup
from actors.search_board import OnProgress, SearchBoard
from actors.search_folder import PatientSummary, SearchFolder
from actors.search_totals import SearchTotals
from ehr.cohorts.cohort import Cohort
from ehr.errors import EagRlError, ResourceError, SearchError, reason_text

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 4
"""Actors that may die under a patient before the patient is held to be the cause, and actors that
may die one after the other while they start."""

START_TIMEOUT_S = 300.0
"""How long an actor may take to start: it imports a few packages, on a busy machine."""

HALT_TIMEOUT_S = 60.0
"""How long a failing search waits for requests that are under way, to log their answers."""

_LOOK_S = 1.0
"""How often actors are asked for their progress; waiting also lets an interrupt through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """What a search stage found."""

    num_patients: int
    num_trajectories: int
    num_kept: int
    """Trajectories in the SFT set."""
    num_patients_without_kept: int
    ledger: dict[str, Any]


def run_search(
    cohort: Cohort,
    patient_ids: Sequence[str],
    setup: SearchSetup,
    out_dir: Path,
    on_progress: OnProgress,
) -> SearchResult:
    """Searches the patients with a pool of actors and writes the search's folder.

    Args:
        cohort: cases and labels.
        patient_ids: who is searched.
        setup: sections, model facts and how to reach the services.
        out_dir: RUN/search, absolute.
        on_progress: told where the search stands.

    Raises:
        SearchError: if too many usefulness scores are unreadable, or a patient kills its actors.
        ResourceError: if no actor starts.
        EagRlError: what a patient's search raised. It then says how many patients are affected
            and what is on disk; the other trees have logged what was under way.
    """
    patient_ids = list(dict.fromkeys(patient_ids))
    folder = SearchFolder(out_dir)
    board = SearchBoard(patient_ids, folder, setup, on_progress)
    if board.waiting:
        _Pool(ray.put(cohort), setup, folder, board).run()
    # From the files and in the patients' order: the same whoever finished first.
    totals = SearchTotals()
    for patient_id in patient_ids:
        summary = folder.finished(patient_id)
        if summary is None:
            raise SearchError(
                f"expected the files of finished patient {patient_id!r} in {out_dir}/patients, "
                "they are gone or unreadable; the same command searches it again from its log"
            )
        totals.add(summary)
    folder.merge(patient_ids)
    method, value = setup.search.method, setup.search.value
    ledger = {"method": method, "value": value, **totals.ledger()}
    folder.write_ledger(ledger)
    return SearchResult(
        num_patients=totals.patients,
        num_trajectories=totals.trajectories,
        num_kept=totals.kept,
        num_patients_without_kept=totals.patients_without_kept,
        ledger=ledger,
    )


@dataclass(slots=True, eq=False)
class _Worker:
    """An actor, and what is asked of it."""

    actor: Any  # the handle; its methods are made by `ray.remote`
    starting: ray.ObjectRef | None
    """Answered when the actor is up; None from then on."""
    start_by: float
    patients: dict[ray.ObjectRef, str] = field(default_factory=dict)
    looking: ray.ObjectRef | None = None
    """The progress that is asked for."""
    progress: ActorProgress | None = None

    @property
    def is_up(self) -> bool:
        """Whether it takes patients."""
        return self.starting is None

    def has_room(self, trees_in_flight: int) -> bool:
        """Whether it takes another patient: the cache may hold back what it has."""
        if self.progress is not None and self.progress.num_held:
            trees_in_flight = min(trees_in_flight, len(self.progress.trees) + 1)
        return self.is_up and len(self.patients) < trees_in_flight

    def refs(self) -> list[ray.ObjectRef]:
        """Everything that is waited for."""
        return [*self.patients, *(ref for ref in (self.starting, self.looking) if ref is not None)]


class _Pool:
    """Deals patients to actors until none is left."""

    def __init__(
        self, cohort: ray.ObjectRef, setup: SearchSetup, folder: SearchFolder, board: SearchBoard
    ) -> None:
        section = setup.search
        self._section = section
        self._num_actors = min(section.num_actors, len(board.waiting))
        share = None if setup.cache_tokens is None else setup.cache_tokens // self._num_actors
        self._arguments = (cohort, ray.put(setup), folder, share)
        self._folder = folder
        self._board = board
        self._deaths: Counter[str] = Counter()
        self._failed_starts = 0
        self._workers: list[_Worker] = []

    def run(self) -> None:
        """Returns when every patient is finished."""
        try:
            for _ in range(self._num_actors):
                self._start_actor()
            self._work()
        except EagRlError as error:
            raise type(error)(self._halted(error)) from error
        finally:
            for worker in self._workers:
                ray.kill(worker.actor)

    def _work(self) -> None:
        looked = time.monotonic()
        while self._board.waiting or any(worker.patients for worker in self._workers):
            self._deal()
            refs = [ref for worker in self._workers for ref in worker.refs()]
            for ref in ray.wait(refs, num_returns=1, timeout=_LOOK_S)[0]:
                self._take(ref)
            self._give_up_on_late_starts()
            if time.monotonic() - looked >= _LOOK_S:
                looked = time.monotonic()
                self._tell()
                for worker in self._workers:
                    if worker.is_up and worker.looking is None:
                        worker.looking = worker.actor.progress.remote()

    def _tell(self) -> None:
        self._board.tell(
            [worker.progress for worker in self._workers if worker.progress is not None],
            {patient for worker in self._workers for patient in worker.patients.values()},
            sum(worker.is_up for worker in self._workers),
        )

    def _start_actor(self) -> None:
        section = self._section
        actor_class: Any = SearchActor  # Ray's decorator hides what it adds
        actor = actor_class.options(
            num_cpus=section.cpus_per_actor,
            # Beside the trees: start, progress, halt.
            max_concurrency=section.trees_in_flight + 3,
        ).remote(*self._arguments)
        self._workers.append(_Worker(actor, actor.pid.remote(), time.monotonic() + START_TIMEOUT_S))

    def _deal(self) -> None:
        """Patients to whoever has fewest, so that a few are spread over all actors."""
        while self._board.waiting:
            free = [each for each in self._workers if each.has_room(self._section.trees_in_flight)]
            if not free:
                return
            worker = min(free, key=lambda each: len(each.patients))
            patient_id = self._board.waiting.popleft()
            worker.patients[worker.actor.search.remote(patient_id)] = patient_id

    def _take(self, ref: ray.ObjectRef) -> None:
        """Uses what an actor has answered."""
        worker = next(each for each in self._workers if ref in each.refs())
        try:
            answer = ray.get(ref)
        except RayTaskError as error:
            # The actor lives: this is the failure of what it was asked.
            if ref == worker.looking:
                logger.exception("a search actor could not say how far it is")
                worker.looking = None
                return
            raise _cause(error, worker.patients.get(ref)) from error
        except RayActorError as error:
            self._replace(worker, error)
            return
        if ref == worker.starting:
            worker.starting = None
            self._failed_starts = 0
        elif ref == worker.looking:
            worker.looking, worker.progress = None, answer
        else:
            del worker.patients[ref]
            self._board.add(answer)
            self._tell()

    def _replace(self, worker: _Worker, error: RayActorError) -> None:
        """Starts another actor for one that died; its patients wait for whoever is free.

        Raises:
            SearchError: if one patient was at hand in too many deaths, or actors cannot start.
        """
        self._workers.remove(worker)
        # One that is only out of reach must not write the same logs as its replacement.
        ray.kill(worker.actor)
        self._board.waiting.extendleft(worker.patients.values())
        if worker.is_up:
            logger.warning("search actor died patients=%d", len(worker.patients))
            self._deaths.update(worker.patients.values())
            patient_id, num_deaths = max(
                self._deaths.items(), key=lambda each: each[1], default=("", 0)
            )
            if num_deaths >= MAX_ATTEMPTS:
                raise SearchError(
                    f"expected search actors to live, {num_deaths} died while they searched "
                    f"patient {patient_id!r}; see the actors' logs in Ray's session folder "
                    "(memory?)"
                ) from error
        else:
            self._failed_starts += 1
            if getattr(error, "actor_init_failed", False) or self._failed_starts >= MAX_ATTEMPTS:
                raise SearchError(f"expected search actors to start; one said: {error}") from error
        self._start_actor()

    def _give_up_on_late_starts(self) -> None:
        """Goes on without actors that nobody has room for, if there is another one."""
        late = [
            each for each in self._workers if not each.is_up and time.monotonic() > each.start_by
        ]
        if late and len(late) == len(self._workers):
            raise ResourceError(
                f"expected {len(late)} search actors to start within {START_TIMEOUT_S:.0f} s; the "
                "cluster lacks CPUs for them: lower search.num_actors or search.cpus_per_actor, "
                "or raise cluster.num_cpus"
            )
        for worker in late:
            logger.warning(
                "a search actor did not start seconds=%.0f actors=%d",
                START_TIMEOUT_S,
                len(self._workers) - 1,
            )
            self._workers.remove(worker)
            ray.kill(worker.actor)

    def _halted(self, error: EagRlError) -> str:
        """Lets requests that are under way be answered and logged; says what is safe, then."""
        asked = [worker.actor.halt.remote() for worker in self._workers if worker.is_up]
        trees: list[PatientSummary] = []
        if asked:
            for ref in ray.wait(asked, num_returns=len(asked), timeout=HALT_TIMEOUT_S)[0]:
                try:
                    trees += ray.get(ref)
                except (RayTaskError, RayActorError):
                    logger.warning("a search actor died while the search was ended")
        # A last answer may have finished a patient.
        begun = {patient for worker in self._workers for patient in worker.patients.values()}
        finished = {patient for patient in begun if self._folder.finished(patient) is not None}
        num_finished = self._board.num_finished + len(finished)
        num_begun = len(begun - finished)
        num_logged = sum(tree.calls["requests"] for tree in trees)
        num_waiting = self._board.num_patients - num_finished - num_begun
        return (
            f"{str(error).rstrip('.')}. The search stopped with {num_finished} of "
            f"{self._board.num_patients} patients finished, {num_begun} begun ({num_logged} "
            f"answered requests of theirs are logged) and {num_waiting} waiting. All of that is "
            f"safe in {self._folder.path}: the same command goes on from there"
        )


def _cause(error: RayTaskError, patient_id: str | None) -> EagRlError:
    if isinstance(error.cause, EagRlError):
        return error.cause
    return SearchError(f"the search of patient {patient_id!r} failed: {reason_text(error.cause)}")
