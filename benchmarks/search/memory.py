"""Memory of the search's driver and actors over finished patients, with a scripted model."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from actors.pool import run_search
from actors.search_actor import SearchSetup
from actors.search_totals import SearchProgress
from benchmarks.search.patients import Sizes, make_no_expert, patients_of
from benchmarks.search.script import make_scripted
from ehr.config import PromptSection, RewardSection
from services.config import ModelSection
from services.models import load_tokenizer, resolve_model
from services.types import BASE_POLICY

PATIENTS, QUICK_PATIENTS = 600, 80
_ACTOR = "SearchActor"


class _Samples:
    """Resident memory of driver and actors while patients are finished."""

    def __init__(self) -> None:
        self._driver = psutil.Process()
        self._actors: list[psutil.Process] = []
        self.patients: list[float] = []
        self.driver_mib: list[float] = []
        self.actors_mib: list[float] = []

    def take(self, progress: SearchProgress) -> None:
        """Called by the pool about once a second and after every patient."""
        if not self._actors:
            self._actors = _actors()
        self.patients.append(float(progress.num_finished))
        self.driver_mib.append(_mib(self._driver))
        self.actors_mib.append(sum(map(_mib, self._actors)))


def measure_memory(folder: Path, *, quick: bool) -> dict[str, Any]:
    """KiB that driver and actors grow by for each patient of the run's second half; a row."""
    num = QUICK_PATIENTS if quick else PATIENTS
    sizes = Sizes(
        patients=num,
        prompt_tokens=1500,
        num_rollouts=4,
        num_candidates=3,
        max_depth=5,
        trees_in_flight=8,
    )
    model = resolve_model(ModelSection())
    cohort = patients_of(num)
    section = sizes.section().model_copy(update={"num_actors": 1, "cpus_per_actor": 0.1})
    setup = SearchSetup(
        search=section,
        prompt=PromptSection(format="guided", max_prompt_tokens=sizes.prompt_tokens),
        reward=RewardSection(),
        max_model_len=sizes.max_model_len,
        frame=model.chat,
        least=BASE_POLICY,
        make_generator=make_scripted,
        make_tokenizer=partial(load_tokenizer, model.path),
        make_ask_salience=make_no_expert,
    )
    samples = _Samples()
    result = run_search(cohort, sorted(cohort.cases), setup, folder, samples.take)
    driver, actors = (
        _growth_kib(samples.patients, each) for each in (samples.driver_mib, samples.actors_mib)
    )
    return {
        "arm": "memory",
        "patients": num,
        "trees_in_flight": sizes.trees_in_flight,
        "requests": result.ledger["requests"],
        "driver_mib": samples.driver_mib[-1],
        "actor_mib": samples.actors_mib[-1],
        "driver_kib_per_patient": driver,
        "actor_kib_per_patient": actors,
        "ratios": {"driver_kib_per_patient": driver, "actor_kib_per_patient": actors},
    }


def _growth_kib(patients: list[float], mib: list[float]) -> float:
    """Slope over the second half: the first one fills caches that stay as they are."""
    half = len(patients) // 2
    return 1024 * float(np.polyfit(patients[half:], mib[half:], 1)[0])


def _mib(process: psutil.Process) -> float:
    return process.memory_info().rss / 2**20


def _actors() -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(_ACTOR in part for part in process.info["cmdline"] or ())
    ]
