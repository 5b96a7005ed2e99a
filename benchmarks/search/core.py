"""CPU of a search itself: trees, prompts, tokenisation and log, without Ray and without a model."""

import asyncio
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.search.patients import PatientSearches, Sizes
from benchmarks.search.script import ScriptedModel
from services.config import ModelSection
from services.models import load_tokenizer, resolve_model
from services.types import BASE_POLICY

PATIENTS, QUICK_PATIENTS = 8, 2
TURNS = 3


def measure_core(folder: Path, *, quick: bool) -> dict[str, Any]:
    """CPU milliseconds a request at N 8, d 3, T 7; a row of the result."""
    patients = QUICK_PATIENTS if quick else PATIENTS
    sizes = Sizes(
        patients=patients,
        prompt_tokens=1500,
        num_rollouts=8,
        num_candidates=3,
        max_depth=7,
        trees_in_flight=patients,
    )
    model = resolve_model(ModelSection())
    tokenizer = load_tokenizer(model.path)
    cpu_ms, requests, case_tokens = [], 0, 0
    for turn in range(TURNS):
        searches = PatientSearches(sizes, tokenizer, model.chat, folder / str(turn))
        started = time.process_time()
        asyncio.run(searches.run(ScriptedModel(), BASE_POLICY))
        seconds = time.process_time() - started
        requests = sum(searches.done.by_kind.values())
        case_tokens = searches.done.prompt_tokens // patients
        cpu_ms.append(1000 * seconds / requests)
    return {
        "arm": "core",
        "patients": patients,
        "case_tokens": case_tokens,
        "requests_per_patient": requests / patients,
        "core_cpu_ms_per_request": median(cpu_ms),
        "all_cpu_ms_per_request": cpu_ms,
        "ratios": {"core_cpu_ms_per_request": median(cpu_ms)},
    }
