"""The pool of Ray actors that search a cohort's patients, and what it leaves on disk.

    RUN/search/requests/PATIENT.jsonl   every completion, logged before it was used
    RUN/search/patients/PATIENT.json    a finished patient: trajectories and counts
    RUN/search/trees/PATIENT.json       its tree, for the report
    RUN/search/trajectories.parquet, ledger.json

Patients are dealt out one by one, so that no tree waits for another. A dead actor is replaced and
its patients are searched again from their logs; a resumed run skips finished patients.
"""

import json
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from actors.case_prompts import case_prompt
from actors.config import SearchSection
from actors.formats import search_format
from actors.judge import RewardJudge
from actors.language_model import PromptedModel, SearchLimits
from actors.request_log import CallCounts, RequestLog
from actors.search import PatientSearch
from actors.search_prompts import patient_prompts
from actors.search_result import PatientResult
from actors.trajectories import SearchedTrajectory, trajectories_table
from ehr.chat import ChatFrame
from ehr.cohort import Cohort, PatientCase
from ehr.config import PromptSection, RewardSection
from ehr.errors import EagRlError, ResourceError, SearchError
from ehr.names import FeatureMatcher
from ehr.pieces import TextTokenizer
from ehr.prompts import PromptContext
from ehr.rewards import RewardContext, Salience
from services.types import Generator, PolicyVersion

logger = logging.getLogger(__name__)

AskSalience = Callable[[PatientCase], Awaitable[Salience]]
"""Asks for a patient's salient features, C_exp; `actors.salience.ServedSalience` is one."""

OnProgress = Callable[[float, float, str], None]
"""Called with patients done, patients in total and a short text."""

MIN_SCORES = 20
"""Scores before the share of invalid ones means anything."""

MAX_ATTEMPTS = 4
"""Actors that may die under a patient before the patient is held to be the cause."""

START_TIMEOUT_S = 300.0
"""How long an actor may take to start: it imports a few packages, on a busy machine."""

_POLL_S = 5.0
"""How often waiting for patients lets an interrupt through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSetup:
    """What every search actor gets."""

    search: SearchSection
    prompt: PromptSection
    reward: RewardSection
    max_model_len: int
    frame: ChatFrame
    least: PolicyVersion
    """The policy that is searched with."""
    make_generator: Callable[[], Generator]
    """Builds the generator client inside the actor."""
    make_tokenizer: Callable[[], TextTokenizer]
    make_ask_salience: Callable[[], AskSalience]
    """Builds what asks the expert, inside the actor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchedPatient:
    """A finished patient, as an actor hands it back."""

    result: PatientResult
    calls: CallCounts
    started_unix_s: float
    finished_unix_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """What a search stage found."""

    num_patients: int
    num_trajectories: int
    num_kept: int
    """Trajectories in the SFT set."""
    num_patients_without_kept: int
    ledger: dict[str, Any]


@ray.remote(max_restarts=0)  # the pool replaces a dead actor and deals its patients again
class SearchActor:
    """Searches patients, several at a time on one event loop."""

    def __init__(self, cohort: Cohort, setup: SearchSetup, out_dir: Path) -> None:
        self._cohort = cohort
        self._setup = setup
        self._out_dir = out_dir
        self._generator = setup.make_generator()
        self._tokenizer = setup.make_tokenizer()
        self._ask_salience = setup.make_ask_salience()
        self._context = PromptContext.of(cohort, setup.prompt)
        self._matcher = FeatureMatcher(cohort.features)
        self._layout = search_format(setup.prompt.format, self._tokenizer, setup.search)

    async def pid(self) -> int:
        """The actor's process id; answers once the actor is up."""
        return os.getpid()

    async def search(self, patient_id: str) -> SearchedPatient:
        """Searches one patient, continuing from its log."""
        started, setup = time.time(), self._setup
        case = self._cohort.cases[patient_id]
        prompt = case_prompt(
            case,
            "question_decomposition",
            self._context,
            self._tokenizer,
            setup.frame,
        )
        salience = await self._ask_salience(case)
        reward_context = RewardContext(
            patient_id=patient_id,
            label=self._cohort.labels[patient_id],
            salient_features=salience.features,
            stability=salience.stability,
        )
        with RequestLog(
            _file(self._out_dir, "requests", patient_id, "jsonl"), self._generator
        ) as log:
            prompts = patient_prompts(prompt, self._context, self._tokenizer, setup.frame)
            limits = SearchLimits(
                section=setup.search, max_model_len=setup.max_model_len, least=setup.least
            )
            model = PromptedModel(prompts, self._layout, log, limits)
            judge = RewardJudge(reward_context, setup.reward, self._matcher)
            result = await PatientSearch(prompts, model, judge, setup.search).run()
        return SearchedPatient(
            result=result, calls=log.counts, started_unix_s=started, finished_unix_s=time.time()
        )


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
        on_progress: told after every patient.

    Raises:
        SearchError: if too many usefulness scores are unreadable, or a patient kills its actors.
        ResourceError: if an actor does not start.
    """
    board = _Board(list(dict.fromkeys(patient_ids)), out_dir, setup.search, on_progress)
    board.load_finished()
    if board.waiting:
        _run_pool(cohort, setup, out_dir, board)
    return board.merge()


class _Board:
    """Which patients are done, and what they add up to; everything finished is on disk."""

    def __init__(
        self,
        patient_ids: list[str],
        out_dir: Path,
        section: SearchSection,
        on_progress: OnProgress,
    ) -> None:
        self._patient_ids = patient_ids
        self._out_dir = out_dir
        self._section = section
        self._on_progress = on_progress
        self._finished: dict[str, dict[str, Any]] = {}
        self.waiting: deque[str] = deque(patient_ids)

    def load_finished(self) -> None:
        """Takes over the patients that an earlier attempt finished."""
        for patient_id in self._patient_ids:
            path = _file(self._out_dir, "patients", patient_id, "json")
            if path.exists():
                self._finished[patient_id] = json.loads(path.read_text())
                self.waiting.remove(patient_id)
        self._report()

    def add(self, patient: SearchedPatient) -> None:
        """Writes a finished patient to disk and counts it.

        Raises:
            SearchError: if too many usefulness scores are unreadable by now.
        """
        patient_id = patient.result.patient_id
        tree = {"patient_id": patient_id, "nodes": [asdict(node) for node in patient.result.nodes]}
        record = {
            "patient_id": patient_id,
            "trajectories": [asdict(row) for row in patient.result.trajectories],
            "search": asdict(patient.result.counts),
            "calls": asdict(patient.calls),
            "started_unix_s": patient.started_unix_s,
            "finished_unix_s": patient.finished_unix_s,
        }
        _write_json(_file(self._out_dir, "trees", patient_id, "json"), tree)
        # The patient's file comes last: it says that the patient is finished.
        _write_json(_file(self._out_dir, "patients", patient_id, "json"), record)
        self._finished[patient_id] = record
        self._report()

    def merge(self) -> SearchResult:
        """Writes the table and the ledger."""
        records = [self._finished[patient_id] for patient_id in self._patient_ids]
        rows = [_trajectory(row) for record in records for row in record["trajectories"]]
        table = trajectories_table(rows)
        path = self._out_dir / "trajectories.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        table.to_parquet(partial, index=False)
        os.replace(partial, path)
        ledger = _ledger(records)
        _write_json(self._out_dir / "ledger.json", ledger)
        with_kept = {row.patient_id for row in rows if row.kept}
        return SearchResult(
            num_patients=len(records),
            num_trajectories=len(rows),
            num_kept=sum(row.kept for row in rows),
            num_patients_without_kept=len(records) - len(with_kept),
            ledger=ledger,
        )

    def _report(self) -> None:
        ledger = _ledger(self._finished.values())
        scores, invalid = ledger["scores"], ledger["invalid_scores"]
        if scores >= MIN_SCORES and invalid > self._section.max_invalid_scores * scores:
            raise SearchError(
                f"expected at most {self._section.max_invalid_scores:.0%} unreadable usefulness "
                f"scores, got {invalid} of {scores}: this model does not write the number it is "
                "asked for; use prompt.format=guided, another model, or raise "
                "search.max_invalid_scores (an unreadable score counts as 50)"
            )
        self._on_progress(
            len(self._finished), len(self._patient_ids), f"{ledger['requests']} requests"
        )


@dataclass(slots=True)
class _Worker:
    actor: ActorHandle
    patients: dict[ray.ObjectRef, str] = field(default_factory=dict)


def _run_pool(cohort: Cohort, setup: SearchSetup, out_dir: Path, board: _Board) -> None:
    section = setup.search
    shared = ray.put(cohort), ray.put(setup)
    num_actors = min(section.num_actors, len(board.waiting))
    deaths: Counter[str] = Counter()
    workers: list[_Worker] = []
    try:
        workers += [_Worker(_start_actor(shared, out_dir, section)) for _ in range(num_actors)]
        _wait_started(workers)
        while board.waiting or any(worker.patients for worker in workers):
            for worker in workers:
                _deal(worker, board.waiting, section.trees_in_flight)
            refs = [ref for worker in workers for ref in worker.patients]
            for ref in ray.wait(refs, num_returns=1, timeout=_POLL_S)[0]:
                worker = next(worker for worker in workers if ref in worker.patients)
                finished = _collect(ref, worker, deaths)
                if finished is not None:
                    board.add(finished)
                    del worker.patients[ref]
                else:
                    board.waiting.extendleft(worker.patients.values())
                    ray.kill(worker.actor)
                    replacement = _Worker(_start_actor(shared, out_dir, section))
                    workers[workers.index(worker)] = replacement
                    _wait_started([replacement])
    finally:
        for worker in workers:
            ray.kill(worker.actor)


def _start_actor(shared: tuple[ray.ObjectRef, ...], out_dir: Path, section: SearchSection) -> Any:
    return SearchActor.options(
        num_cpus=section.cpus_per_actor, max_concurrency=section.trees_in_flight + 1
    ).remote(*shared, out_dir)


def _wait_started(workers: list[_Worker]) -> None:
    try:
        ray.get([worker.actor.pid.remote() for worker in workers], timeout=START_TIMEOUT_S)
    except GetTimeoutError:
        raise ResourceError(
            f"expected {len(workers)} search actors to start within {START_TIMEOUT_S:.0f} s; the "
            "cluster lacks CPUs for them: lower search.num_actors or search.cpus_per_actor, or "
            "raise cluster.num_cpus"
        ) from None
    except RayActorError as error:
        raise SearchError(f"expected search actors to start; the first one said: {error}") from None


def _deal(worker: _Worker, waiting: deque[str], trees_in_flight: int) -> None:
    while waiting and len(worker.patients) < trees_in_flight:
        patient_id = waiting.popleft()
        worker.patients[worker.actor.search.remote(patient_id)] = patient_id


def _collect(ref: ray.ObjectRef, worker: _Worker, deaths: Counter[str]) -> SearchedPatient | None:
    """A finished patient, or None if its actor died.

    Raises:
        SearchError: if one patient was at hand in too many deaths.
    """
    try:
        return ray.get(ref)
    except RayTaskError as error:
        raise _cause(error) from None
    except RayActorError:
        deaths.update(worker.patients.values())
        patient_id, num_deaths = deaths.most_common(1)[0]
        logger.warning("search actor died patients=%d", len(worker.patients))
        if num_deaths >= MAX_ATTEMPTS:
            raise SearchError(
                f"expected search actors to live, {num_deaths} died while they searched patient "
                f"{patient_id!r}; see the actors' logs in Ray's session folder (memory?)"
            ) from None
        return None


def _cause(error: RayTaskError) -> Exception:
    return error.cause if isinstance(error.cause, EagRlError) else error


def _ledger(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What finished patients cost together; the contract's keys, then more detail."""
    records = list(records)
    calls: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    search: Counter[str] = Counter()
    for record in records:
        kinds.update(record["calls"]["by_kind"])
        calls.update({k: v for k, v in record["calls"].items() if k != "by_kind"})
        search.update(record["search"])
    rows = [row for record in records for row in record["trajectories"]]
    return {
        "patients": len(records),
        **{name: calls[name] for name in asdict(CallCounts()) if name != "by_kind"},
        "seconds": round(_busy_seconds(records), 2),
        "invalid_scores": search.pop("invalid_scores", 0),
        "scores": search.pop("scores", 0),
        "requests_by_kind": dict(sorted(kinds.items())),
        "trajectories": len(rows),
        "kept": sum(row["kept"] for row in rows),
        "patients_without_kept": sum(
            not any(row["kept"] for row in record["trajectories"]) for record in records
        ),
        **dict(sorted(search.items())),
    }


def _busy_seconds(records: Iterable[dict[str, Any]]) -> float:
    """Time in which at least one patient was searched: a pause before a resume is none."""
    spans = sorted((record["started_unix_s"], record["finished_unix_s"]) for record in records)
    seconds, end = 0.0, float("-inf")
    for start, finish in spans:
        seconds += max(0.0, finish - max(start, end))
        end = max(end, finish)
    return seconds


def _trajectory(row: dict[str, Any]) -> SearchedTrajectory:
    sequences = ("token_ids", "prompt_token_ids", "model_written", "features")
    return SearchedTrajectory(**{**row, **{name: tuple(row[name]) for name in sequences}})


def _file(out_dir: Path, folder: str, patient_id: str, suffix: str) -> Path:
    """A patient's file; ids may hold any characters, file names may not."""
    return out_dir / folder / f"{quote(patient_id, safe='')}.{suffix}"


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, allow_nan=False) + "\n")
    os.replace(partial, path)
