"""Sampled risks beside expected ones: what they cost, and how well they rank.

    python -m benchmarks.risk_reading CONFIG [section.key=value ...] [--patients 400] [--turns 3]
        [--json PATH]

One engine, without Serve, is asked about the same test patients in three ways, which take turns:
eight sampled answers (`evaluate.num_samples=8 evaluate.reading=sampled`), one greedy answer whose
risk is expected (the default), and eight sampled answers with expected risks. The prefix cache is
empty before each. CONFIG names the model, such as configs/planted_truth_reader.yaml; it answers as
it is, without an adapter.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from actors.case_prompts import case_prompt
from actors.rollouts import (
    Reading,
    Rollout,
    RolloutBatch,
    RolloutPlan,
    RolloutPrompt,
    RolloutSampler,
    rollouts_in_flight,
)
from benchmarks.record import RESULTS, write_result
from ehr.cohorts.cohort import Cohort, choose_patients
from ehr.cohorts.loaders import build_cohort
from ehr.language.pieces import TextTokenizer
from ehr.language.prompts import PromptContext
from ehr.language.trajectory import parse_trajectory, parse_vanilla
from ehr.metrics import auroc, paired_difference
from services.engine import VllmEngine
from services.environment import prepare_process
from services.models import load_tokenizer, resolve_model
from services.risk_reading import RiskReader
from services.types import (
    BASE_POLICY,
    Completion,
    GenerateRequest,
    Policy,
    RiskReading,
    RiskRequest,
)
from training.config.loading import load_config
from training.config.run import RunConfig

_BASE = Policy(version=BASE_POLICY, adapter=None, scaling=0.0, checksum="")


@dataclass(frozen=True, slots=True)
class Way:
    """One way to ask."""

    name: str
    num_samples: int
    reading: Reading


WAYS = (
    Way("eight samples", 8, "sampled"),
    Way("one greedy answer, expected", 1, "expected"),
    Way("eight answers, expected", 8, "expected"),
)


@dataclass(slots=True)
class Measured:
    """What one way took and gave."""

    seconds: list[float] = field(default_factory=list)
    decoded_tokens: int = 0
    risks: list[float] = field(default_factory=list)
    """Of each patient: the mean over its answers."""


class CountingEngine:
    """An engine as a generator and a teller of risks, with its decoded tokens counted."""

    def __init__(self, engine: VllmEngine) -> None:
        self._engine = engine
        self._risks = RiskReader(engine.next_tokens)
        self.decoded_tokens = 0

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """The engine's completions."""
        completions = await self._engine.generate(request)
        self.decoded_tokens += sum(len(each.token_ids) for each in completions)
        return completions

    async def read_risk(self, request: RiskRequest) -> RiskReading:
        """The distribution of the risk that comes next."""
        found = await self._risks.read(request.prompt_token_ids)
        self.decoded_tokens += found.num_requests
        return RiskReading(
            probabilities=found.probabilities,
            policy_version=self._engine.version,
            num_requests=found.num_requests,
        )


async def measure(config: RunConfig, num_patients: int, turns: int) -> dict[str, Any]:
    """Labels of the patients, and what each way gave, after `turns` turns of all ways."""
    model = resolve_model(config.model)
    tokenizer = load_tokenizer(model.path)
    cohort = build_cohort(config.cohort)
    patients = choose_patients(cohort, "test", num_patients, balance=False, seed=0)
    context = PromptContext.of(cohort, config.prompt)
    prompts = tuple(
        RolloutPrompt(
            patient_id=patient,
            token_ids=case_prompt(
                cohort.cases[patient], config.prompt.kind, context, tokenizer, model.chat
            ).token_ids,
        )
        for patient in patients
    )
    engine = VllmEngine(model, config.model, config.generator)
    await engine.start()
    asking = Asking(engine, tokenizer, config, context.listed_names)
    found = {way.name: Measured() for way in WAYS}
    try:
        for way in WAYS:
            await asking.groups(way, prompts[:4], seed=0)  # patterns and memory
        for turn in range(turns):
            for way in WAYS:
                started = time.perf_counter()
                groups, decoded_tokens = await asking.groups(way, prompts, seed=turn)
                found[way.name].seconds.append(time.perf_counter() - started)
                if turn == 0:
                    found[way.name].decoded_tokens = decoded_tokens
                    found[way.name].risks = [_risk(group, cohort) for group in groups]
    finally:
        engine.stop()
    return {"labels": [cohort.labels[patient] for patient in patients], "ways": found}


@dataclass(frozen=True, slots=True)
class Asking:
    """Asks one engine."""

    engine: VllmEngine
    tokenizer: TextTokenizer
    config: RunConfig
    names: tuple[str, ...]
    """That answers may use."""

    async def groups(
        self, way: Way, prompts: tuple[RolloutPrompt, ...], seed: int
    ) -> tuple[list[list[Rollout]], int]:
        """Answers of all patients with an empty prefix cache, and the tokens decoded for them."""
        await self.engine.load_policy(_BASE)  # empties the cache
        section = self.config.evaluate
        plan = RolloutPlan(
            format="guided",
            kind=self.config.prompt.kind,
            max_depth=section.max_depth,
            max_new_tokens=section.max_new_tokens,
            temperature=0.0 if way.num_samples == 1 else 1.0,
            feature_names=self.names,
            reading=way.reading,
        )
        batch = RolloutBatch(
            prompts=prompts,
            group_size=way.num_samples,
            least=BASE_POLICY,
            seed=seed,
            max_in_flight=rollouts_in_flight(
                prompts, way.num_samples, plan.max_new_tokens, self.engine.cache_tokens
            ),
        )
        counting = CountingEngine(self.engine)
        sampler = RolloutSampler(counting, self.tokenizer, plan, counting)
        return await sampler.sample_groups(batch), counting.decoded_tokens


def _risk(group: Sequence[Rollout], cohort: Cohort) -> float:
    """A patient's risk: the mean over its answers, unreadable ones at the base rate."""
    train = cohort.splits["train"]
    base_rate = sum(cohort.labels[patient] for patient in train) / len(train)
    risks = []
    for each in group:
        if each.risk is not None:
            risks.append(each.risk.mean)
            continue
        parse = parse_vanilla if each.text.startswith("<Final answer>") else parse_trajectory
        written = parse(each.text).probability
        risks.append(base_rate if each.truncated or written is None else written)
    return float(np.mean(risks))


def main() -> None:
    """Runs the benchmark and prints its rows."""
    prepare_process(verbose=False)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("settings", nargs="*", metavar="section.key=value")
    parser.add_argument("--patients", type=int, default=400)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path, default=RESULTS / "risk_reading.json")
    given = parser.parse_args()
    config = load_config([given.config], given.settings)
    found = asyncio.run(measure(config, given.patients, given.turns))
    labels = np.array(found["labels"])
    ways: dict[str, Measured] = found["ways"]
    first = ways[WAYS[0].name]
    rows, ratios = [], {}
    for name, each in ways.items():
        risks = np.array(each.risks)
        difference = paired_difference(labels, risks, np.array(first.risks), "auroc")
        row = {
            "config": given.config.stem,
            "way": name,
            "patients": len(labels),
            "seconds": median(each.seconds),
            "decoded_tokens": each.decoded_tokens,
            "auroc": auroc(labels, risks),
            "minus_eight_samples": difference.difference,
            "low": difference.low,
            "high": difference.high,
        }
        rows.append(row)
        ratios[f"{name}: seconds"] = row["seconds"] / median(first.seconds)
        ratios[f"{name}: decoded tokens"] = each.decoded_tokens / first.decoded_tokens
        print(row, flush=True)
    print(ratios)
    write_result(given.json, rows, ratios)


if __name__ == "__main__":
    main()
