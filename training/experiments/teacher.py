"""Search as teacher: its best trajectories against the best of plain answers at the same cost.

    eag-rl teacher SEARCH_RUN SAMPLES_RUN [--json PATH]

Both are run folders about the same training patients, one with `search.method: tree`, the other
with `samples` and more of them than the search's budget pays for (docs/experiments.md). Where both
have gone on to Stage 1 and evaluation, the two policies are compared on the same test patients.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from actors.search_folder import SearchFolder
from ehr.errors import RunFolderError
from ehr.metrics import auroc, paired_difference
from ehr.rewards import worst_classification_reward
from ehr.seeds import holm
from ehr.tables import column
from training.config.run import RunConfig
from training.evaluation.results import unreadable_shares
from training.experiments.best_of import Answer, Searched, comparison
from training.run.folder import RunFolder

COSTS = ("decode_tokens", "requests")
SHARES = (0.125, 0.25, 0.5, 1.0, 2.0)
"""Budgets of plain answers, as shares of what the patient's search cost."""

_SAME = (
    "search.num_patients",
    "search.balance",
    "search.seed",
    "search.num_kept_trajectories",
    "search.max_depth",
    "cohort",
    "model",
    "prompt",
    "reward",
)
"""Settings in which the two runs must agree."""


def compare(search_run: Path, samples_run: Path) -> list[dict[str, Any]]:
    """Rows of the result: each teacher, the comparisons at equal cost, the two policies.

    Raises:
        RunFolderError: if a run has no finished search, or the two cannot be compared.
    """
    config = _config(search_run, "tree")
    _refuse_other_settings(config, _config(samples_run, "samples"))
    _refuse_other_experts(search_run, samples_run)
    searched, sampled = read_searched(search_run), read_sampled(samples_run)
    if set(searched) != set(sampled):
        only = sorted(set(searched) ^ set(sampled))
        raise RunFolderError(
            f"expected the same patients in {search_run} and {samples_run}, {len(only)} are in one "
            f"only ({only[:5]}); let both take the same cohort and expert"
        )
    # R of a format failure (ehr.rewards.reward).
    floor = config.reward.accuracy_weight * worst_classification_reward(config.reward)
    k = config.search.num_kept_trajectories
    rows = [_about("search", search_run, searched), _about("samples", samples_run, sampled)]
    for cost in COSTS:
        rows += [
            {"kind": "curve", **comparison(searched, sampled, cost, k, floor, share)}
            for share in SHARES
        ]
        if k > 1:
            rows.append({"kind": "best", **comparison(searched, sampled, cost, 1, floor)})
    policies = compare_policies(search_run, samples_run, config)
    if policies is not None:
        # Fine-tuning took the best of all answers, whatever they cost.
        spent = {f"{cost}_ratio": rows[1][cost] / rows[0][cost] for cost in COSTS}
        rows.append({**policies, **spent})
    compared = [row for row in rows if "p" in row]
    for row, p in zip(compared, holm([row["p"] for row in compared]), strict=True):
        row["p_holm"] = p  # for all comparisons of the two runs
    return rows


def read_searched(run_dir: Path) -> dict[str, Searched]:
    """A finished tree search by patient."""
    folder = SearchFolder(run_dir / "search")
    found = {}
    for patient_id, rows in _trajectories(run_dir).groupby("patient_id"):
        summary = folder.finished(str(patient_id))
        if summary is None:
            raise RunFolderError(f"{folder.path} lacks the summary of patient {patient_id!r}")
        found[str(patient_id)] = Searched(
            answers=tuple(
                Answer(text=text, reward=reward, readable=readable, costs={})
                for text, reward, readable in zip(
                    rows["text"], rows["reward"], rows["readable"], strict=True
                )
            ),
            costs={cost: int(summary.calls[cost]) for cost in COSTS},
        )
    return found


def read_sampled(run_dir: Path) -> dict[str, tuple[Answer, ...]]:
    """Plain answers by patient, in the order of their numbers, those of one text included.

    The table has each text once; the record of one level has every answer, the log what it cost.
    """
    folder = SearchFolder(run_dir / "search")
    found = {}
    for patient_id, rows in _trajectories(run_dir).groupby("patient_id"):
        readable = dict(zip(rows["text"], rows["readable"], strict=True))
        log = folder.requests(str(patient_id))
        costs = logged_costs(log)
        record = json.loads((folder.path / "trees" / log.with_suffix(".json").name).read_text())
        found[str(patient_id)] = tuple(
            Answer(
                text=node["answer"],
                reward=node["reward"],
                readable=bool(readable[node["answer"]]),
                costs=costs[node["path"][0]],
            )
            for node in record["nodes"]
            if node["path"]
        )
    return found


def logged_costs(path: Path) -> dict[int, dict[str, int]]:
    """Decoded tokens and requests of each plain answer, by its number."""
    costs: dict[int, dict[str, int]] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        cost = costs.setdefault(int(entry["key"].split(":")[0]), dict.fromkeys(COSTS, 0))
        cost["decode_tokens"] += sum(len(each["token_ids"]) for each in entry["completions"])
        cost["requests"] += 1
    return costs


def compare_policies(
    search_run: Path, samples_run: Path, config: RunConfig
) -> dict[str, Any] | None:
    """AUROC of the two Stage-1 policies, paired by test patient; None before both have one.

    Raises:
        RunFolderError: if they were asked about different patients.
    """
    tables = []
    for run_dir in (search_run, samples_run):
        path = run_dir / "evaluate" / "predictions.parquet"
        if not RunFolder(run_dir).stage("evaluate").done:
            return None
        rows = pd.read_parquet(path)
        tables.append(rows[rows["method"] == "stage1"].set_index("patient_id").sort_index())
    first, second = tables
    if first.empty or second.empty:
        return None
    if list(first.index) != list(second.index):
        raise RunFolderError(
            f"expected {search_run} and {samples_run} to be evaluated on the same test patients; "
            "use the same evaluate.num_patients, balance and seed for both"
        )
    labels = first["label"].to_numpy(int)
    p, q = (table["probability"].to_numpy(float) for table in tables)
    found = paired_difference(labels, p, q, "auroc", config.evaluate.num_resamples)
    return {
        "kind": "policies",
        "num_patients": len(labels),
        "num_positives": int(np.sum(labels)),
        "search": auroc(labels, p),
        "samples": auroc(labels, q),
        "parse_failures": [float(unreadable_shares(each).mean()) for each in tables],
        **asdict(found),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows as plain lines."""
    lines = []
    for row in rows:
        match row["kind"]:
            case "search" | "samples":
                lines.append(
                    f"{row['kind']}: {row['num_patients']} patients, each "
                    f"{row['decode_tokens']:.0f} decoded tokens, {row['requests']:.1f} requests, "
                    f"{row['unique']:.1f} unique answers; readable {row['readable']:.2f}, mean R "
                    f"of unique answers {row['mean_reward']:.3f}, their spread within a patient "
                    f"{row['spread']:.3f}"
                )
            case "curve" | "best":
                short = f"; budget not spent for {row['num_short']}" if row["num_short"] else ""
                lines.append(
                    f"top {row['num_kept']} by R, samples at {row['share']:g} of the search's "
                    f"{row['equal']} ({row['num_samples']:.1f} answers): search "
                    f"{row['search']:.3f}, samples {row['samples']:.3f}, difference "
                    f" {_interval(row)}{short}"
                )
            case _:
                lines.append(
                    f"AUROC after Stage 1, {row['num_patients']} test patients "
                    f"({row['num_positives']} positive): search {_number(row['search'])}, samples "
                    f"{_number(row['samples'])}, difference {_interval(row)} "
                    "over patients (one search and one training of each); samples had "
                    f"{row['decode_tokens_ratio']:.2f} of the search's decoded tokens"
                )
    return lines


def ratios(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Search minus samples by R at equal cost, and in AUROC where both policies exist."""
    found = {
        f"top_k_difference_equal_{row['equal']}": row["difference"]
        for row in rows
        if row["kind"] == "curve" and row["share"] == 1.0
    }
    policies = (row["difference"] for row in rows if row["kind"] == "policies")
    return {**found, "auroc_difference": next(policies, None)}


def _about(
    kind: str, run_dir: Path, answers: Mapping[str, Searched] | Mapping[str, Sequence[Answer]]
) -> dict[str, Any]:
    """What a teacher cost a patient, and how good and how different its answers are."""
    table = _trajectories(run_dir)
    ledger = json.loads((run_dir / "search" / "ledger.json").read_text())
    readable = table[table["readable"]]
    spread = readable.groupby("patient_id")["reward"].std(ddof=0)
    return {
        "kind": kind,
        "num_patients": len(answers),
        **{cost: ledger[cost] / len(answers) for cost in COSTS},
        "requests_by_kind": ledger["requests_by_kind"],
        "rollouts": ledger["rollouts"] / len(answers),
        "unique": len(table) / len(answers),
        "readable": float(column(table, "readable").mean()),
        "mean_reward": float(column(table, "reward").mean()),
        "spread": fmean(spread) if len(spread) else 0.0,
        "steps": float(column(table, "num_steps").mean()),
    }


def _trajectories(run_dir: Path) -> pd.DataFrame:
    if not RunFolder(run_dir).stage("search").done:
        raise RunFolderError(
            f"expected a finished search in {run_dir}; run `eag-rl search CONFIG --run-dir "
            f"{run_dir}` first"
        )
    return pd.read_parquet(run_dir / "search" / "trajectories.parquet")


def _config(run_dir: Path, method: str) -> RunConfig:
    config = RunFolder(run_dir).read_config()
    if config.search.method != method or config.search.value != "reward":
        raise RunFolderError(
            f"expected search.method {method!r} and search.value 'reward' in {run_dir}, got "
            f"{config.search.method!r} and {config.search.value!r}; name the search first, then "
            "the plain answers"
        )
    return config


def _refuse_other_settings(first: RunConfig, second: RunConfig) -> None:
    trees = first.model_dump(mode="json"), second.model_dump(mode="json")
    for name in _SAME:
        section, _, field = name.partition(".")
        ours, theirs = (tree[section][field] if field else tree[section] for tree in trees)
        if ours != theirs:
            raise RunFolderError(
                f"expected the same {name} in both runs, got {ours!r} and {theirs!r}; the two "
                "teachers must differ in their method only"
            )


def _refuse_other_experts(first: Path, second: Path) -> None:
    outputs = [
        (RunFolder(run).stage("expert").read() or {}).get("output") for run in (first, second)
    ]
    if outputs[0] != outputs[1]:
        raise RunFolderError(
            f"expected {first} and {second} to have the same trained expert, whose C_exp is in R; "
            "copy the folders cohort and expert of one into the other before its search"
        )


def _interval(row: Mapping[str, Any]) -> str:
    return (
        f"{_number(row['difference'])} [{_number(row['low'])}, {_number(row['high'])}], "
        f"detectable {_number(row['minimal_detectable'])}, p by Holm {_number(row['p_holm'])}"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
