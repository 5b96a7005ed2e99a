"""Rows and ratios of the search's benchmark."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.record import write_result
from benchmarks.search.patients import Sizes
from training.run.versions import commit

Row = dict[str, Any]

SIZE_KEYS = ("prompt_tokens", "num_rollouts", "num_candidates", "max_depth")
"""What two arms must have in common to be compared."""


class Results:
    """The growing results file: rows of what is not run stay, each with its commit."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: list[Row] = json.loads(path.read_text())["rows"] if path.exists() else []

    def add(self, row: Row) -> None:
        """Puts a row in the place of the one about the same thing, and writes the file."""
        self.rows = [each for each in self.rows if key(each) != key(row)]
        self.rows.append({**row, "commit": commit()})
        self.rows.sort(key=lambda each: str(key(each)))
        write_result(self._path, self.rows, ratios(self.rows))
        print(line(row), flush=True)


def key(row: Row) -> tuple[Any, ...]:
    """What a row is about."""
    names = ("arm", "patients", "replicas", "prompt_tokens", "num_rollouts", "num_candidates")
    return tuple(row.get(name) for name in (*names, "max_depth", "trees_in_flight"))


def arm_row(arm: str, sizes: Sizes, turns: Sequence[Mapping[str, Any]], **more: Any) -> Row:
    """An arm at one size: its turns, and the medians of their figures."""
    patients = [turn.get("patients", sizes.patients) for turn in turns]
    requests = [turn["requests"] for turn in turns]
    return {
        "arm": arm,
        "patients": sizes.patients,
        **{name: getattr(sizes, name) for name in SIZE_KEYS},
        "trees_in_flight": sizes.trees_in_flight,
        **more,
        "wall_s": median(turn["wall_s"] for turn in turns),
        "patients_per_s": median(p / t["wall_s"] for p, t in zip(patients, turns, strict=True)),
        "tokens_per_s": median(turn["decode_tokens"] / turn["wall_s"] for turn in turns),
        "requests_per_patient": median(r / p for r, p in zip(requests, patients, strict=True)),
        "resample_requests_per_patient": mean(_extra(turn, "resample_requests") for turn in turns),
        "retry_requests_per_patient": mean(_extra(turn, "retry_requests") for turn in turns),
        "prefill_tokens_per_patient": median(
            t["prefill_tokens"] / p for p, t in zip(patients, turns, strict=True)
        ),
        "computed_prefill_tokens_per_patient": median(
            t["computed_prefill_tokens"] / p for p, t in zip(patients, turns, strict=True)
        ),
        "decode_tokens_per_patient": median(
            t["decode_tokens"] / p for p, t in zip(patients, turns, strict=True)
        ),
        "prefix_hit_rate": median(
            1 - turn["computed_prefill_tokens"] / turn["prefill_tokens"] for turn in turns
        ),
        "mean_sequences": median(turn["mean_sequences"] for turn in turns),
        "pool_cpu_ms_per_request": median(
            1000 * turn["pool_cpu_s"] / turn["requests"] for turn in turns
        ),
        "pool_peak_mib": median(turn["pool_peak_mib"] for turn in turns),
        "turns": [dict(turn) for turn in turns],
    }


def _extra(turn: Mapping[str, Any], name: str) -> float:
    return turn.get("counts", {}).get(name, 0) / max(1, turn.get("patients", 1))


def ratios(rows: Iterable[Row]) -> dict[str, float | None]:
    """What the documents quote, each of the largest search that both its sides have."""
    rows = list(rows)
    found: dict[str, float | None] = {}
    if pair := _largest(rows, "ours", "lockstep"):
        ours, lockstep = pair
        walls = zip(ours["turns"], lockstep["turns"], strict=False)
        found["wall_vs_lockstep"] = median(b["wall_s"] / a["wall_s"] for a, b in walls)
        found["tokens_per_s_vs_lockstep"] = ours["tokens_per_s"] / lockstep["tokens_per_s"]
    if pair := _largest(rows, "serial", "ours", same_patients=False):
        serial, ours = pair
        computed = "computed_prefill_tokens_per_patient"
        found["computed_prefill_serial_over_ours"] = serial[computed] / ours[computed]
        found["patients_per_s_vs_serial"] = ours["patients_per_s"] / serial["patients_per_s"]
    for arm, name in (
        ("engine", "fraction_of_engine_rate"),
        ("engine_warm", "fraction_of_engine_rate_warm"),
    ):
        if pair := _largest(rows, "ours", arm):
            found[name] = pair[0]["tokens_per_s"] / pair[1]["tokens_per_s"]
    if ours := _by_size([row for row in rows if row["arm"] == "ours"]):
        extra = ours["resample_requests_per_patient"] + ours["retry_requests_per_patient"]
        found["requests_per_patient"] = ours["requests_per_patient"] - extra
    if replicas := [row for row in rows if row["arm"] == "replicas"]:
        found["prefix_hit_rate_two_replicas"] = replicas[-1]["prefix_hit_rate"]
    linear = sorted((r for r in rows if r["arm"] == "linear"), key=lambda row: row["patients"])
    if len(linear) > 1:
        few, many = linear[0], linear[-1]
        found["seconds_per_patient_many_over_few"] = (many["wall_s"] / many["patients"]) / (
            few["wall_s"] / few["patients"]
        )
    for row in rows:
        found |= row.get("ratios", {})
    return found


def _by_size(rows: list[Row]) -> Row | None:
    return max(rows, key=_work, default=None)


def _work(row: Row) -> tuple[float, ...]:
    return row["num_rollouts"] * row["max_depth"], row["prompt_tokens"], row["patients"]


def _largest(
    rows: list[Row], left: str, right: str, *, same_patients: bool = True
) -> tuple[Row, Row] | None:
    """The largest two rows of two arms that differ in nothing else."""
    names = (*SIZE_KEYS, "patients") if same_patients else SIZE_KEYS
    pairs = [
        (a, b)
        for a in rows
        for b in rows
        if a["arm"] == left and b["arm"] == right and all(a[name] == b[name] for name in names)
    ]
    return max(pairs, key=lambda pair: (_work(pair[0]), _work(pair[1])), default=None)


def line(row: Row) -> str:
    """A row as it is printed."""
    shown = {name: value for name, value in row.items() if name not in ("turns", "ratios")}
    return ", ".join(f"{name} {_short(value)}" for name, value in shown.items())


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
