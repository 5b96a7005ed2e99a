"""Guided answers of a small model through one CPU engine.

    python -m benchmarks.answers [--quick] [--json PATH]

vLLM's own choice on CPUs is a worker process beside the engine's core, which waits for each of its
steps in a loop. Ours is a worker inside the core's process (`services.engine`). Short answers with
names by a pattern, so many sequences together, alone and beside a process that computes on every
core, as a learner does.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median

from actors.case_prompts import case_prompt
from actors.rollouts import RolloutBatch, RolloutPlan, RolloutPrompt, RolloutSampler
from benchmarks.record import RESULTS, write_result
from ehr.cohorts.loaders import build_cohort
from ehr.language.prompts import PromptContext
from services.engine import VllmEngine
from services.environment import prepare_process
from services.models import load_tokenizer, resolve_model
from services.types import BASE_POLICY, Completion, GenerateRequest
from training.config.loading import load_config
from training.config.run import RunConfig
from training.reader.size import ReaderSize
from training.reader.train import write_reader
from training.run.progress import Display

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "planted_truth_reader.yaml"
VARIANTS = (
    ("worker process", 64),
    ("worker process", 256),
    ("in the core", 64),
    ("in the core", 256),
)
"""Where the worker lives, and how many sequences are decoded together."""
REPETITIONS = 3
GROUP_SIZE = 8
_BUSY_START_S = 10.0
"""Until a new process has imported torch."""

_BUSY = """
import torch
left, right = torch.randn(256, 128), torch.randn(128, 384)
while True:
    (left @ right).relu_()
"""


class _MeasuredEngine(VllmEngine):
    """An engine whose worker lives where the benchmark says."""

    in_core = True

    def _engine_arguments(self) -> dict[str, object]:
        arguments = super()._engine_arguments()
        if not self.in_core:
            arguments["distributed_executor_backend"] = "mp"
        return arguments


class _Directly:
    """The engine as a generator, without Serve between."""

    def __init__(self, engine: VllmEngine) -> None:
        self._engine = engine

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        return await self._engine.generate(request)


async def measure(config: RunConfig, in_core: bool, num_prompts: int, repetitions: int) -> dict:
    """Seconds until the engine answers, and answers a second alone and beside a busy process."""
    model = resolve_model(config.model)
    tokenizer = load_tokenizer(model.path)
    cohort = build_cohort(config.cohort)
    context = PromptContext.of(cohort, config.prompt)
    prompts = [
        case_prompt(cohort.cases[patient], "short_answer", context, tokenizer, model.chat)
        for patient in cohort.splits["test"][:num_prompts]
    ]
    batch = RolloutBatch(
        prompts=tuple(
            RolloutPrompt(patient_id=prompt.case.patient_id, token_ids=prompt.token_ids)
            for prompt in prompts
        ),
        group_size=GROUP_SIZE,
        least=BASE_POLICY,
        seed=0,
        max_in_flight=config.generator.max_num_seqs,
    )
    plan = RolloutPlan(
        format="guided",
        kind="short_answer",
        max_depth=1,
        max_new_tokens=config.grpo.max_new_tokens,
        temperature=1.0,
        feature_names=context.listed_names,
    )
    engine = _MeasuredEngine(model, config.model, config.generator)
    engine.in_core = in_core
    started = time.perf_counter()
    await engine.start()
    found: dict = {"start_s": time.perf_counter() - started, "alone": [], "beside": []}
    sampler = RolloutSampler(_Directly(engine), tokenizer, plan)
    await sampler.sample_groups(batch)  # memory and patterns
    with ExitStack() as stack:
        for name in ("alone", "beside"):
            if name == "beside":
                busy = stack.enter_context(subprocess.Popen([sys.executable, "-c", _BUSY]))
                stack.callback(busy.kill)
                await asyncio.sleep(_BUSY_START_S)
            for repetition in range(repetitions):
                started = time.perf_counter()
                groups = await sampler.sample_groups(replace(batch, seed=1 + repetition))
                seconds = time.perf_counter() - started
                found[name].append(sum(map(len, groups)) / seconds)
    engine.stop()
    return found


def _in_a_process_of_its_own(arguments: list[str]) -> dict:
    command = [sys.executable, "-m", "benchmarks.answers", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Runs the benchmark."""
    prepare_process(verbose=False)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two variants, one repetition")
    parser.add_argument("--json", type=Path, default=RESULTS / "answers.json")
    parser.add_argument(
        "--variant", nargs=3, metavar=("MODEL", "WHERE", "SEQUENCES"), help=argparse.SUPPRESS
    )
    given = parser.parse_args()
    repetitions, num_prompts = (1, 16) if given.quick else (REPETITIONS, 64)
    if given.variant is not None:
        model, where, sequences = given.variant
        config = load_config(
            [CONFIG], [f"model.name={model}", f"generator.max_num_seqs={sequences}"]
        )
        found = asyncio.run(measure(config, where == "in the core", num_prompts, repetitions))
        print(json.dumps(found))
        return
    rows = []
    quick = ["--quick"] if given.quick else []
    with tempfile.TemporaryDirectory(prefix="eag-rl-answers-") as folder:
        # Its weights say what the answers are, not how fast they come.
        size = ReaderSize(patients=512)
        write_reader(load_config([CONFIG], []), Path(folder), size, Display())
        for where, sequences in VARIANTS[::3] if given.quick else VARIANTS:
            found = _in_a_process_of_its_own([*quick, "--variant", folder, where, str(sequences)])
            rows.append({"worker": where, "sequences": sequences, **found})
            alone, beside = median(found["alone"]), median(found["beside"])
            print(
                f"{where}, {sequences} sequences: {alone:.0f} answers/s alone, {beside:.0f} beside "
                f"a busy process, start {found['start_s']:.0f} s",
                flush=True,
            )
    first, last = rows[0], rows[-1]
    ratios = {
        f"ours_vs_worker_process_64_{name}": median(last[name]) / median(first[name])
        for name in ("alone", "beside")
    }
    write_result(given.json, rows, ratios)


if __name__ == "__main__":
    main()
