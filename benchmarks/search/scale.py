"""How many pool processes replicas need: measured CPU a request against a model of a GPU replica.

The model is arithmetic, not a measurement: a decode step reads the weights and every sequence's
cache once, computed prefill runs at a share of the GPU's products, and both take turns.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

REPLICAS = (1, 2, 4, 8, 16, 32)
SEQUENCES = (64, 256)
CONTEXT_TOKENS = 2000
"""Mean prompt and answer of a sequence at a case of 1,500 tokens."""
DECODED_TOKENS, COMPUTED_TOKENS = 5800 / 198, 9300 / 198
"""Of one request at N 8, d 3, T 7."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReplica:
    """A 7B model in bf16 on one H100: shapes of Qwen2.5-7B, the card's published rates."""

    parameters: float = 7.6e9
    cache_bytes_per_token: float = 2 * 28 * 4 * 128 * 2
    """Keys and values, 28 layers, 4 heads of 128, bf16."""
    bytes_per_s: float = 3.35e12
    flops_per_s: float = 989e12
    share_of_bandwidth: float = 0.6
    """Assumed, as are the next two."""
    share_of_flops: float = 0.4
    step_overhead_s: float = 0.002

    def requests_per_s(self, sequences: int) -> float:
        """Search requests a second with so many sequences always in flight."""
        read = 2 * self.parameters + sequences * CONTEXT_TOKENS * self.cache_bytes_per_token
        step_s = read / (self.share_of_bandwidth * self.bytes_per_s) + self.step_overhead_s
        prefill_s = 2 * self.parameters * COMPUTED_TOKENS / (self.share_of_flops * self.flops_per_s)
        return 1 / (DECODED_TOKENS * step_s / sequences + prefill_s)


def scale_row(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Pool processes by replicas, from the rows of `core` and `control`; None without them."""
    rows = list(rows)
    cores = [row["core_cpu_ms_per_request"] for row in rows if row["arm"] == "core"]
    callers = [row for row in rows if row["arm"] == "control" and row["prompt_tokens"] == 1500]
    if not cores or not callers:
        return None
    # Several replicas have the router by session; more of them only fill this machine's cores.
    control = min(callers, key=lambda row: (row["replicas"] == 1, row["replicas"]))
    caller, core = control["caller_cpu_ms"], cores[0]
    pool_rate = 1000 / (caller + core)
    replica = GpuReplica()
    needed = {
        str(sequences): {
            "replica_requests_per_s": replica.requests_per_s(sequences),
            "pool_processes": {
                str(num): ceil(num * replica.requests_per_s(sequences) / pool_rate)
                for num in REPLICAS
            },
        }
        for sequences in SEQUENCES
    }
    return {
        "arm": "scale",
        "caller_cpu_ms": caller,
        "core_cpu_ms": core,
        "pool_requests_per_s": pool_rate,
        "by_sequences": needed,
        "ratios": {"pool_requests_per_s": pool_rate},
    }
