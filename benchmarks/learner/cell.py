"""What a cell of the learner's benchmark is given, and how it measures; torch and no more.

Cells of other frameworks run in an environment of their own, where the project's dependencies need
not be.
"""

import gc
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

RESULT = "RESULT "
"""How the line begins in which a cell says what it measured."""
OUT_OF_MEMORY = "out of memory"
_RATE_SIZE = {"cpu": 2048, "cuda": 8192}
"""Side of the square product by which the machine's rate is measured."""
_RATE_REPEATS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One arm at one size."""

    arm: str
    """`ours`, `dense_rows`, `dense_sdpa`, `trl`, `trl_liger` or `trl_reward`."""
    model_name: str
    """As the results call it."""
    model_path: str
    """Folder in transformers' format."""
    device: str = "cpu"
    prompt_tokens: int
    answer_tokens: int = 256
    group_size: int = 8
    micro_batch: int | None = None
    """Sequences of one forward pass; None where a group is one row."""
    checkpointing: bool = False
    lora_rank: int = 64
    turns: int = 5
    """Most repetitions."""
    seconds: float = 60.0
    """No repetition begins after that many seconds of them."""

    @property
    def key(self) -> str:
        """The cell's place in the results."""
        return "|".join(
            str(each)
            for each in (
                self.arm,
                self.model_name,
                self.device,
                self.prompt_tokens,
                self.answer_tokens,
                self.group_size,
                self.micro_batch,
                self.checkpointing,
            )
        )

    def to_json(self) -> str:
        """The cell as a command-line argument."""
        return json.dumps(asdict(self))


def cell_of(text: str) -> Cell:
    """The cell that `Cell.to_json` wrote."""
    return Cell(**json.loads(text))


def at(cell: Cell, **changes: Any) -> Cell:
    """The cell with other values."""
    return replace(cell, **changes)


def tokens_of(cell: Cell, vocabulary: int) -> tuple[list[int], list[list[int]]]:
    """A prompt and its answers, the same for every arm: ids drawn with a fixed seed."""
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> list[int]:
        # The first ids of a vocabulary are special tokens.
        return torch.randint(100, vocabulary, (count,), generator=generator).tolist()

    return draw(cell.prompt_tokens), [draw(cell.answer_tokens) for _ in range(cell.group_size)]


def advantages_of(cell: Cell) -> list[float]:
    """Advantages of a group whose rewards are all different: mean 0, standard deviation 1."""
    values = torch.arange(cell.group_size, dtype=torch.float64)
    return ((values - values.mean()) / values.std(correction=0)).tolist()


def seconds_of(call: Callable[[], object], device: str) -> float:
    """Wall-clock seconds of a call, the device's work included."""
    _finish(device)
    started = time.perf_counter()
    call()
    _finish(device)
    return time.perf_counter() - started


def matmul_rate(device: str) -> float:
    """FLOP/s of a large square bf16 product, the best of some: what a kernel could reach here."""
    size = _RATE_SIZE[device]
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = [seconds_of(lambda: left @ right, device) for _ in range(_RATE_REPEATS)]
    return 2 * size**3 / min(times[1:])


def turns_of(cell: Cell, turn: Callable[[], dict[str, float]]) -> Iterator[dict[str, float]]:
    """Repetitions of a turn, at least one, the machine's rate measured before each."""
    started = time.perf_counter()
    for _ in range(cell.turns):
        rate = matmul_rate(cell.device)
        yield {"matmul_rate": rate} | turn()
        if time.perf_counter() - started > cell.seconds:
            return


def peak_bytes(device: str) -> int:
    """The most memory held so far: the process's on a CPU, torch's on a GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_cell(measure: Callable[[Cell], dict[str, Any]]) -> None:
    """Measures the cell of the command line and prints the result for the parent process."""
    cell = cell_of(sys.argv[1])
    try:
        result = measure(cell)
    except torch.OutOfMemoryError:
        result = {"outcome": OUT_OF_MEMORY}
    print(RESULT + json.dumps(result), flush=True)


def summary(
    cell: Cell, turns: list[dict[str, float]], first_s: float, loaded_bytes: int
) -> dict[str, Any]:
    """What a cell reports: one number a turn, and the peak of the whole process."""
    gc.collect()
    result: dict[str, Any] = {
        "outcome": "measured",
        "first_s": round(first_s, 3),
        "loaded_gib": round(loaded_bytes / 2**30, 2),
        "peak_gib": round(peak_bytes(cell.device) / 2**30, 2),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__},
    }
    for name in turns[0]:
        result[f"{name}s"] = [turn[name] for turn in turns]
    return result


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
