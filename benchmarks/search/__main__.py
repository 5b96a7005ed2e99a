"""The search: serial, lockstep and ours on one engine, and what its control plane costs.

    python -m benchmarks.search [--quick] [--json PATH] [--arms ARM ...] [--patients N] ...

SmolLM2 in vLLM behind Ray Serve, patients of the synthetic cohort, every turn in a pool process of
its own that starts with an empty prefix cache; turns of `ours` and `lockstep` alternate.

`serial`    one tree, one request at a time, one request a sample, eager answers, scores of up to 40
            tokens, no prefix cache; a patient a turn
`lockstep`  the same calls as ours; requests wait until every growing tree waits for one, are sent
            together, and their answers are released together
`ours`      the search as the pool runs it
`engine`    the very requests of the last turn of `ours`, in their order, without a search between
            them: another is sent whenever fewer sequences are in flight than `ours` had on average;
            once from an empty prefix cache, once more with all prompts in it (`engine_warm`)
`linear`    ours at 8, 16 and 32 patients with 8 trees in flight, at N 2, T 3
`replicas`  ours on two engines of 1 GiB cache each
`memory`    the pool with a scripted model: memory of driver and actors over finished patients
`core`      CPU of search, prompts and log in one process: scripted model, no Ray
`control`   CPU a request costs caller and replica: an engine that answers at once behind Serve;
            with `core` it gives the pool processes that replicas need, by a model of a GPU replica

Completions differ between arms (a CPU engine rounds by batch), so tokens a second stand beside the
seconds. Rows of what is not run stay in the JSON file, each with the commit it was measured at.
"""

import argparse
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.record import RESULTS
from benchmarks.search.patients import Sizes
from benchmarks.search.results import Results, arm_row
from benchmarks.search.scale import scale_row
from services.environment import prepare_process

if TYPE_CHECKING:
    from benchmarks.search.engines import Deployed

ARMS = ("core", "control", "memory", "ours", "lockstep", "engine", "linear", "replicas", "serial")
QUICK_ARMS = ("core", "control", "memory", "ours", "lockstep", "engine")
"""One start of an engine."""
TURN_LIMIT_S = 3600.0
SERIAL_PATIENTS = 2
LINEAR_PATIENTS = (8, 16, 32)
REPLICA_PATIENTS = 8


def main() -> None:
    """Runs the chosen arms; what is finished is on disk."""
    arguments = parse()
    prepare_process()
    results = Results(arguments.json)
    folder = Path(tempfile.mkdtemp(prefix="eag-search-", dir="/tmp"))  # Ray's paths are short
    try:
        if "core" in arguments.arms:
            from benchmarks.search.core import measure_core

            results.add(measure_core(folder / "core", quick=arguments.quick))
        if set(arguments.arms) - {"core"}:
            with_ray(arguments, results, folder)
        if {"core", "control"} & set(arguments.arms) and (row := scale_row(results.rows)):
            results.add(row)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def parse() -> argparse.Namespace:
    """The command line's choices."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few tiny trees of each arm")
    parser.add_argument("--json", type=Path, default=RESULTS / "search.json")
    parser.add_argument("--arms", nargs="+", choices=ARMS, metavar="ARM", help="all of them")
    parser.add_argument("--patients", type=int, help="of ours, lockstep and engine (32)")
    parser.add_argument("--prompt-tokens", type=int, help="largest case prompt (1500)")
    parser.add_argument("--num-rollouts", type=int, help="N (8)")
    parser.add_argument("--num-candidates", type=int, help="d (3)")
    parser.add_argument("--max-depth", type=int, help="T (7)")
    parser.add_argument("--trees-in-flight", type=int, help="trees at a time (all patients)")
    parser.add_argument("--turns", type=int, default=1, help="turns of ours and lockstep")
    parser.add_argument("--cache-gib", type=float, default=6.0, help="KV cache of one engine")
    arguments = parser.parse_args()
    arguments.arms = arguments.arms or list(QUICK_ARMS if arguments.quick else ARMS)
    return arguments


def sizes_of(arguments: argparse.Namespace) -> Sizes:
    """The sizes of the arms with an engine."""
    quick = arguments.quick
    patients = arguments.patients or (6 if quick else 32)
    sizes = Sizes(
        patients=patients,
        prompt_tokens=arguments.prompt_tokens or (700 if quick else 1500),
        num_rollouts=arguments.num_rollouts or (2 if quick else 8),
        num_candidates=arguments.num_candidates or (2 if quick else 3),
        max_depth=arguments.max_depth or (3 if quick else 7),
        trees_in_flight=arguments.trees_in_flight or patients,
    )
    return replace(sizes, question_tokens=24, answer_tokens=32) if quick else sizes


def with_ray(arguments: argparse.Namespace, results: Results, folder: Path) -> None:
    """The arms that need Ray."""
    from benchmarks.sync.__main__ import start_ray

    cluster = start_ray(folder / "ray")
    try:
        if "control" in arguments.arms:
            from benchmarks.search.control import measure_control

            for row in measure_control(folder / "control", quick=arguments.quick):
                results.add(row)
        if "memory" in arguments.arms:
            from benchmarks.search.memory import measure_memory

            results.add(measure_memory(folder / "memory", quick=arguments.quick))
        with_engines(arguments, results, folder)
    finally:
        cluster.close()


def with_engines(arguments: argparse.Namespace, results: Results, folder: Path) -> None:
    """The arms that need a model."""
    from benchmarks.search.engines import deployed

    sizes, arms = sizes_of(arguments), set(arguments.arms)
    if arms & {"ours", "lockstep", "engine", "linear"}:
        with deployed(
            folder, sizes, cache_gib=arguments.cache_gib, limit_s=TURN_LIMIT_S
        ) as engines:
            one_engine(arguments, results, engines, sizes)
    if "replicas" in arms:
        few = replace(sizes, patients=2 if arguments.quick else REPLICA_PATIENTS)
        few = replace(few, trees_in_flight=few.patients)
        with deployed(folder, few, replicas=2, cache_gib=1.0, limit_s=TURN_LIMIT_S) as engines:
            results.add(arm_row("replicas", few, [engines.turn("ours", few)], replicas=2))
    if "serial" in arms:
        one = replace(sizes, patients=1, trees_in_flight=1)
        with deployed(
            folder, one, cache_gib=1.0, prefix_cache=False, limit_s=TURN_LIMIT_S
        ) as engines:
            turns = []
            for number in range(1 if arguments.quick else SERIAL_PATIENTS):
                turns.append(engines.turn("serial", replace(one, first_patient=number)))
                results.add(arm_row("serial", one, turns))


def one_engine(
    arguments: argparse.Namespace, results: Results, engines: "Deployed", sizes: Sizes
) -> None:
    """Ours and lockstep in turns, then the engine by itself, then ours at several sizes."""
    arms = set(arguments.arms)
    record = str(engines.folder / "requests.pickle")
    turns: dict[str, list[dict]] = {"ours": [], "lockstep": []}
    for number in range(arguments.turns):
        # The first one of a pair is not always the same.
        pair = ("ours", "lockstep") if number % 2 == 0 else ("lockstep", "ours")
        for arm in pair:
            if arm in arms or (arm == "ours" and "engine" in arms):
                started = time.monotonic()
                turns[arm].append(engines.turn(arm, sizes, record=record))
                print(f"{arm} turn {number + 1}: {time.monotonic() - started:.0f} s", flush=True)
                results.add(arm_row(arm, sizes, turns[arm]))
    if "engine" in arms:
        sequences = max(1, round(turns["ours"][-1]["mean_sequences"]))
        again = {"record": record, "sequences": sequences}
        results.add(arm_row("engine", sizes, [engines.turn("engine", sizes, **again)]))
        warm = engines.turn("engine", sizes, **again, keep_cache=True)
        results.add(arm_row("engine_warm", sizes, [warm]))
    if "linear" in arms:
        counts = (2, 4) if arguments.quick else LINEAR_PATIENTS
        for patients in counts:
            some = replace(
                sizes,
                patients=patients,
                num_rollouts=min(2, sizes.num_rollouts),
                max_depth=min(3, sizes.max_depth),
                trees_in_flight=counts[0],
            )
            results.add(arm_row("linear", some, [engines.turn("ours", some)]))


if __name__ == "__main__":
    main()
