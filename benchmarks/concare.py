"""ConCare's batched recurrence against one `torch.nn.GRU` per feature, and members as one.

    python -m benchmarks.concare [--quick] [--json PATH]

The two sides of a pair take turns in one process on one thread; what counts is the median of the
ratios of a turn. On a CPU the seconds are CPU seconds, on a GPU they are those of CUDA events.
Both sides run the same weights, and their states are compared before anything is measured.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.profiler import ProfilerActivity, profile

from benchmarks.record import RESULTS, write_result
from ehr.expert.concare import ConCare, ConCareOutput, ConCareShape
from ehr.expert.recurrence import FeatureRecurrence

HIDDEN = 32
VISITS = 13
"""As many as the longest TJH patients have, about."""
FEATURES = (14, 35, 73)
"""PhysioNet 2012 (benchmark features and all of them) and TJH."""
BATCHES = (1, 64, 256)
MEMBERS = 10
MEMBER_BATCHES = (1, 8, 64)
"""A question to the expert service, the most patients that `ehr.expert` asks all members about
together, and a batch that it asks member after member about."""
TURNS = 5
TURN_S = 0.06
"""Seconds that one side runs for in one turn, at least one call."""
TOLERANCE = 2e-6

Call = Callable[[], object]


def main() -> None:
    """Runs the benchmark on every device of the machine."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few features, two batches, two turns")
    parser.add_argument("--json", type=Path, default=RESULTS / "concare.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    turns = 2 if arguments.quick else TURNS
    features, batches = FEATURES, sorted({*BATCHES, *MEMBER_BATCHES})
    if arguments.quick:
        features, batches = features[:1], batches[:2]
    rows: list[dict[str, Any]] = []
    for device in devices():
        for row in measure(device, features, batches, turns):
            print(line(row), flush=True)
            rows.append(row)
    write_result(arguments.json, rows, ratios(rows))


def devices() -> list[torch.device]:
    """The CPU, and a GPU where there is one."""
    return [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()


def measure(
    device: torch.device, features: tuple[int, ...], batches: Sequence[int], turns: int
) -> Iterator[dict[str, Any]]:
    """One row per pair: what is measured, at which size, both medians and the ratio."""
    for num_features in features:
        for batch in batches:
            pairs: list[tuple[str, Call, Call]] = []
            if batch in BATCHES:
                pairs += recurrence_pairs(device, num_features, batch)
            if batch in MEMBER_BATCHES:
                pairs += member_pairs(device, num_features, batch)
            for name, one_by_one, batched in pairs:
                slow, fast, ratio = compare(one_by_one, batched, device, turns)
                yield {
                    "measured": name,
                    "device": device_name(device),
                    "features": num_features,
                    "batch": batch,
                    "visits": VISITS,
                    "one_by_one_s": slow,
                    "batched_s": fast,
                    "times_as_fast": ratio,
                    "one_by_one_operators": num_operators(one_by_one),
                    "batched_operators": num_operators(batched),
                    "one_by_one_kernels": num_kernels(one_by_one, device),
                    "batched_kernels": num_kernels(batched, device),
                }


def recurrence_pairs(
    device: torch.device, num_features: int, batch: int
) -> Iterator[tuple[str, Call, Call]]:
    """A loop of `nn.GRU` and the batched recurrence: forward, and forward + backward."""
    module = FeatureRecurrence(num_features, HIDDEN).to(device)
    grus = [copy_of(module, feature).to(device) for feature in range(num_features)]
    values = torch.randn(batch, VISITS, num_features, device=device)

    def loop() -> Tensor:
        return torch.stack([gru(values[:, :, i : i + 1])[0] for i, gru in enumerate(grus)])

    torch.testing.assert_close(module(values).transpose(1, 2), loop(), atol=TOLERANCE, rtol=0)
    # Reading a third of the states, as attention does, gives every state a gradient of its own.
    weights = torch.randn(HIDDEN, device=device)
    yield "recurrence forward", inference(loop), inference(lambda: module(values))
    yield (
        "recurrence forward + backward",
        lambda: (loop() @ weights).square().sum().backward(),
        lambda: (module(values) @ weights).square().sum().backward(),
    )


def member_pairs(
    device: torch.device, num_features: int, batch: int
) -> Iterator[tuple[str, Call, Call]]:
    """Members of an ensemble one by one, and as one: their recurrence, and the whole network."""
    shape = ConCareShape(num_features=num_features, hidden_size=HIDDEN)
    networks = [ConCare(shape).to(device).eval() for _ in range(MEMBERS)]
    arguments = (
        torch.randn(batch, VISITS, num_features, device=device),
        torch.rand(batch, VISITS, device=device).cumsum(dim=1),
        torch.full((batch,), VISITS, device=device),
        torch.randn(batch, 2, device=device),
    )
    recurrences = [network.recurrence for network in networks]
    of_recurrences, _ = stack_module_state(recurrences)  # pyright: ignore[reportArgumentType]
    of_networks, _ = stack_module_state(networks)  # pyright: ignore[reportArgumentType]

    def states(member: dict[str, Tensor]) -> Tensor:
        return functional_call(recurrences[0], member, arguments[:1])

    def logit(member: dict[str, Tensor]) -> Tensor:
        output: ConCareOutput = functional_call(networks[0], member, arguments)
        return output.logit

    yield (
        f"recurrence of {MEMBERS} members, forward",
        inference(lambda: [module(arguments[0]) for module in recurrences]),
        inference(lambda: vmap(states)(of_recurrences)),
    )
    yield (
        f"network of {MEMBERS} members, forward",
        inference(lambda: [network(*arguments).logit for network in networks]),
        inference(lambda: vmap(logit)(of_networks)),
    )


def copy_of(module: FeatureRecurrence, feature: int) -> nn.GRU:
    """A `torch.nn.GRU` with the weights of one feature."""
    gru = nn.GRU(1, HIDDEN, batch_first=True)
    gru.weight_ih_l0.data = module.weight_input[feature].detach().unsqueeze(-1).clone()
    gru.weight_hh_l0.data = module.weight_hidden[feature].detach().t().contiguous()
    gru.bias_ih_l0.data = module.bias_input[feature].detach().clone()
    gru.bias_hh_l0.data = module.bias_hidden[feature].detach().clone()
    return gru


def inference(call: Call) -> Call:
    """The call without anything kept for a gradient."""

    def run() -> object:
        with torch.inference_mode():
            return call()

    return run


def compare(
    first: Call, second: Call, device: torch.device, turns: int
) -> tuple[float, float, float]:
    """Median seconds of both calls, and the median over turns of first / second."""
    pair = (first, second)
    for call in pair:
        call()
    repeats = [max(1, round(TURN_S / max(seconds(call, 1, device), 1e-6))) for call in pair]
    times = [
        [seconds(call, repeat, device) for call, repeat in zip(pair, repeats, strict=True)]
        for _ in range(turns)
    ]
    return (
        median(turn[0] for turn in times),
        median(turn[1] for turn in times),
        median(turn[0] / turn[1] for turn in times),
    )


def seconds(call: Call, repeats: int, device: torch.device) -> float:
    """Seconds of one call, averaged over some."""
    if device.type == "cpu":
        started = time.process_time()
        for _ in range(repeats):
            call()
        return (time.process_time() - started) / repeats
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1000 / repeats


def num_operators(call: Call) -> int:
    """Operators of one call that call no other operator: those that do the work, and views."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        call()
    return sum(not event.cpu_children for event in record.events() or ())


def num_kernels(call: Call, device: torch.device) -> int | None:
    """Kernels (and copies) that one call starts on a GPU; none on a CPU."""
    if device.type == "cpu":
        return None
    call()
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        call()
        torch.cuda.synchronize(device)
    return sum(event.count for event in record.key_averages())


def device_name(device: torch.device) -> str:
    """`cpu`, or the GPU's model."""
    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    return (
        f"{row['device']:<6} {row['measured']:<34} features {row['features']:>3} batch "
        f"{row['batch']:>3}: {row['one_by_one_s'] * 1e3:8.2f} -> {row['batched_s'] * 1e3:8.2f} ms "
        f"({row['times_as_fast']:.1f} times), operators {row['one_by_one_operators']} -> "
        f"{row['batched_operators']}"
    )


def ratios(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Lowest ratio of each pair by device, over all sizes and at batch 1."""
    lowest: dict[str, float | None] = {}
    for row in rows:
        name = f"{row['device']}: {row['measured']}"
        for key in (name, f"{name}, batch 1") if row["batch"] == 1 else (name,):
            lowest[key] = min(lowest.get(key) or row["times_as_fast"], row["times_as_fast"])
    return lowest


if __name__ == "__main__":
    main()
