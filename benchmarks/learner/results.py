"""The results of the learner's benchmark: rows that grow over several calls, and their ratios."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.learner.cell import Cell
from benchmarks.learner.flops import Flops

Rows = dict[str, dict[str, Any]]
"""Rows by `Cell.key`."""

_SAMPLES = ("train_seconds", "old_seconds", "matmul_rates")
OWN_ARMS = ("ours", "dense_rows", "dense_sdpa")
DENSE_ARMS = ("dense_rows", "dense_sdpa")
TRL_ARMS = ("trl", "trl_liger")


def read_rows(path: Path) -> Rows:
    """The rows of an earlier call; none where there is no file."""
    if not path.exists():
        return {}
    return {row["key"]: row for row in json.loads(path.read_text())["rows"]}


def row_of(cell: Cell, result: Mapping[str, Any], flops: Flops, code: str) -> dict[str, Any]:
    """What the results keep of a cell.

    Args:
        cell: what was measured.
        result: what its process said.
        flops: that the arm needs for the group, its own copies of the prompt included.
        code: what was measured: the project's commit, or another framework's version.
    """
    return {
        "key": cell.key,
        "arm": cell.arm,
        "model": cell.model_name,
        "device": cell.device,
        "prompt_tokens": cell.prompt_tokens,
        "answer_tokens": cell.answer_tokens,
        "group_size": cell.group_size,
        "micro_batch": cell.micro_batch,
        "checkpointing": cell.checkpointing,
        "code": code,
        "train_tflop": flops.total / 1e12,
        "old_tflop": flops.forward / 1e12,
        **result,
    }


def merged(rows: Rows, row: dict[str, Any]) -> dict[str, Any]:
    """A row with the repetitions that an earlier call measured of the same code.

    Of other code, or without repetitions on either side, the new row stands alone.
    """
    before = rows.get(row["key"])
    if before is not None and before["code"] == row["code"] and _is_timed(before, row):
        row = row | {name: before[name] + row[name] for name in _SAMPLES if name in row}
        row["peak_gib"] = max(before["peak_gib"], row["peak_gib"])
    return with_medians(row)


def with_medians(row: dict[str, Any]) -> dict[str, Any]:
    """The row with what follows from its repetitions."""
    if not _is_timed(row):
        return row
    useful = row["group_size"] * row["answer_tokens"]
    train_s, rate = median(row["train_seconds"]), median(row["matmul_rates"])
    row = row | {
        "train_s": train_s,
        "useful_tokens_per_s": useful / train_s,
        "matmul_tflops": rate / 1e12,
        "fraction_of_matmul_rate": row["train_tflop"] * 1e12 / train_s / rate,
    }
    if "old_seconds" in row:
        old_s = median(row["old_seconds"])
        row |= {
            "old_logprob_s": old_s,
            "group_s": old_s + train_s,
            "old_fraction_of_matmul_rate": row["old_tflop"] * 1e12 / old_s / rate,
            "mfu_of_group": (row["train_tflop"] + row["old_tflop"])
            * 1e12
            / (old_s + train_s)
            / rate,
        }
    return row


def ratios(rows: Rows) -> dict[str, float | None]:
    """What the documents quote: at groups of 8 and answers of 256, by length of the prompt.

    `vs_dense` and `vs_trl` compare seconds of forward and backward with the other side's best
    setting, `trl_peak_gib` is TRL's leanest setting that keeps half of its best speed.
    """
    found: dict[str, float | None] = {}
    on_cpu = [row for row in rows.values() if row["device"] == "cpu" and _is_standard(row)]
    for prompt in sorted({row["prompt_tokens"] for row in on_cpu if row["arm"] != "ours"}):
        found |= _ratios_at(f"_p{prompt}", [r for r in on_cpu if r["prompt_tokens"] == prompt])
    on_gpu = [row for row in rows.values() if row["device"] == "cuda"]
    if on_gpu:
        found |= _ratios_on_gpu(on_gpu)
    return found


def _is_timed(*rows: Mapping[str, Any]) -> bool:
    return all("train_seconds" in row for row in rows)


def _is_standard(row: Mapping[str, Any]) -> bool:
    return (
        row["outcome"] == "measured"
        and row["arm"] in (*OWN_ARMS, *TRL_ARMS)
        and (row["group_size"], row["answer_tokens"]) == (8, 256)
    )


def _ratios_at(suffix: str, rows: list[dict[str, Any]]) -> dict[str, float | None]:
    ours = _fastest(row for row in rows if row["arm"] == "ours" and not row["checkpointing"])
    lean = _fastest(row for row in rows if row["arm"] == "ours" and row["checkpointing"])
    dense = _fastest(row for row in rows if row["arm"] in DENSE_ARMS)
    trl = [row for row in rows if row["arm"] in TRL_ARMS]
    best = _fastest(trl)
    found: dict[str, float | None] = {}
    if ours is not None:
        found[f"fraction_of_matmul_rate{suffix}"] = ours["fraction_of_matmul_rate"]
        found[f"useful_tokens_per_s{suffix}"] = ours["useful_tokens_per_s"]
        found[f"peak_gib{suffix}"] = ours["peak_gib"]
        if dense is not None:
            found[f"vs_dense{suffix}"] = dense["train_s"] / ours["train_s"]
        if best is not None:
            found[f"vs_trl{suffix}"] = best["train_s"] / ours["train_s"]
    if lean is not None:
        found[f"peak_gib_checkpointed{suffix}"] = lean["peak_gib"]
        found[f"checkpointed_useful_tokens_per_s{suffix}"] = lean["useful_tokens_per_s"]
    if best is not None:
        half = [row for row in trl if row["train_s"] <= 2 * best["train_s"]]
        found[f"trl_useful_tokens_per_s{suffix}"] = best["useful_tokens_per_s"]
        found[f"trl_peak_gib{suffix}"] = min(row["peak_gib"] for row in half)
    return found


def _ratios_on_gpu(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    measured = [row for row in rows if row["outcome"] == "measured"]
    ours = _fastest((row for row in measured if row["arm"] == "ours"), "group_s")
    trl = _fastest((row for row in measured if row["arm"] in TRL_ARMS), "group_s")
    if ours is None:
        return {}
    found: dict[str, float | None] = {
        "gpu_group_s": ours["group_s"],
        "gpu_group_tflop_per_s": (ours["train_tflop"] + ours["old_tflop"]) / ours["group_s"],
        "gpu_mfu_of_matmul_rate": ours["mfu_of_group"],
        "gpu_peak_gib": ours["peak_gib"],
    }
    if trl is not None:
        found["gpu_vs_trl"] = trl["group_s"] / ours["group_s"]
    return found


def _fastest(rows: Iterable[dict[str, Any]], seconds: str = "train_s") -> dict[str, Any] | None:
    return min(rows, key=lambda row: row[seconds], default=None)


def line(row: Mapping[str, Any]) -> str:
    """A row as text."""
    size = "row" if row["micro_batch"] is None else f"mb {row['micro_batch']}"
    head = (
        f"{row['arm']:<10} {row['device']:<4} prompt {row['prompt_tokens']:>4} "
        f"G {row['group_size']:>2} {size:<4} {'checkpointing' if row['checkpointing'] else ''}"
    )
    if row["arm"] == "trl_reward" and row["outcome"] == "measured":
        return f"{row['arm']}: {row['seconds']} s, {row['steps']}"
    if row["outcome"] != "measured":
        return f"{head}: {row['outcome']} {row.get('reason', '')}".rstrip()
    text = (
        f"{head}: {row['train_s']:7.2f} s, {row['useful_tokens_per_s']:6.0f} answer tokens/s, "
        f"{row['peak_gib']:5.1f} GiB, {100 * row['fraction_of_matmul_rate']:4.1f} % of "
        f"{row['matmul_tflops']:.2f} TFLOP/s"
    )
    if "old_logprob_s" in row:
        text += f", old log-probabilities {row['old_logprob_s']:.2f} s"
    return f"{text} ({len(row['train_seconds'])} repetitions)"
