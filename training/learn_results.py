"""What an experiment found: every seed of every arm, means with intervals, paired differences.

Intervals are of a two-way bootstrap: test patients and, where an arm has several, seeds are drawn
with replacement, the same for all arms. They cover who was tested and how the arm's own training
fell out, not another cohort, expert or Stage 1. With three seeds the second part is coarse.
"""
# pandas annotates results of indexing too widely for the checker.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from ehr.agreement import best_constant_set, mean_jaccard
from ehr.cohort import Cohort, load_cohort
from ehr.config import RewardSection
from ehr.metrics import (
    Bootstrap,
    Metric,
    auprc,
    auroc,
    bootstrap,
    bootstrap_mean,
    brier,
    ece,
    excess_jaccard,
)
from ehr.rewards import MIN_PROBABILITY, classification_reward
from ehr.truth import true_risks, true_sets
from training.arms import ARMS
from training.config import RunConfig
from training.evaluation import EXPERT_METHODS
from training.metrics_file import MetricsFile
from training.run_folder import RunFolder, write_json

REFERENCE = "eag_rl"
"""The arm that all others are taken from."""

RESULTS_FILE = "results.json"
"""In RUN/learn."""

_OWN_STAGES = ("grpo", "direct_sft", "evaluate")
_RANKING = {"auroc": auroc, "auprc": auprc}

PAIRED = ("auroc", "auprc", "reward", "reward_cls", "reward_att", "true_overlap")
"""Measures with an interval, of which differences between arms are taken. A difference in R_att is
one in its excess: the best constant set is that of the same patients."""

MEASURES = (*PAIRED, "brier", "ece", "reward_att_excess", "parse_failure_rate")
"""All measures of a unit's answers; lower is better from `brier` on, except the excess."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UnitAnswers:
    """A finished unit's answers, in the order of the patients' ids."""

    arm: str
    seed: int
    patients: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    means: Mapping[str, np.ndarray]
    """Of each patient: reward, reward_cls, and where features are named reward_att and, in a
    generated cohort, true_overlap."""
    salient: tuple[frozenset[str], ...]
    """C_exp of each patient; empty where answers name no features."""
    row: Mapping[str, Any]
    """The measures, seconds, and what evaluation found about grounding and faithfulness."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnfinishedUnit:
    """A unit that has begun, or only has its folder."""

    arm: str
    seed: int
    steps: int
    """Steps that Stage 2 has committed."""


def write_learn_results(run_dir: Path) -> dict[str, Any]:
    """Writes RUN/learn/results.json from all units that are there; returns what it holds.

    Keys: `units` (a row each), `arms` (means over seeds with intervals), `differences` (the
    reference arm minus each other), `references` (models that read the record, and what is known
    of a generated cohort, on the same patients), `unfinished`, `model`, `patients`.
    """
    found = learn_results(run_dir)
    write_json(run_dir / "learn" / RESULTS_FILE, found)
    return found


def learn_results(run_dir: Path) -> dict[str, Any]:
    """What `write_learn_results` writes."""
    has_cohort = (run_dir / "cohort" / "summary.json").exists()
    cohort = load_cohort(run_dir / "cohort") if has_cohort else None
    finished: list[UnitAnswers] = []
    unfinished: list[UnfinishedUnit] = []
    config = RunFolder(run_dir).read_config()
    for arm in ARMS:
        for folder in sorted((run_dir / "arms" / arm).glob("seed-*"), key=_seed_of):
            if cohort is not None and RunFolder(folder).stage("evaluate").done:
                finished.append(_answers(arm, folder, cohort))
            else:
                steps = len(MetricsFile(folder / "grpo" / "metrics.jsonl").lines())
                unfinished.append(UnfinishedUnit(arm=arm, seed=_seed_of(folder), steps=steps))
    return {
        "model": _model(run_dir),
        "patients": _counts(finished),
        "units": [dict(unit.row) for unit in finished],
        "arms": arm_rows(finished, config),
        "differences": difference_rows(finished, REFERENCE, config),
        "references": _references(run_dir, finished, cohort, config),
        "unfinished": [
            {"arm": unit.arm, "seed": unit.seed, "steps": unit.steps} for unit in unfinished
        ],
    }


def arm_rows(units: Sequence[UnitAnswers], config: RunConfig) -> list[dict[str, Any]]:
    """A row an arm: the mean over its seeds of every measure, with intervals of the paired ones."""
    rows = []
    for arm, chosen in _by_arm(units).items():
        row: dict[str, Any] = {"arm": arm, "seeds": [unit.seed for unit in chosen]}
        for name in MEASURES:
            values = [unit.row[name] for unit in chosen]
            known = [value for value in values if value is not None]
            row[name] = fmean(known) if len(known) == len(values) else None
        for name in PAIRED:
            draws = _resampled(chosen, name, config)
            interval = Bootstrap(values=draws, num_skipped=0).interval() if len(draws) else ()
            row[f"{name}_low"], row[f"{name}_high"] = interval or (None, None)
        rows.append(row)
    return rows


def difference_rows(
    units: Sequence[UnitAnswers], reference: str, config: RunConfig
) -> list[dict[str, Any]]:
    """The reference arm minus every other, on the patients and seeds that both have.

    An arm that is asked once is compared with every seed of the reference.
    """
    arms = _by_arm(units)
    rows = []
    for arm, theirs in arms.items():
        if reference not in arms or arm == reference:
            continue
        ours, theirs = _pairs(arms[reference], theirs, arm)
        if not ours:
            continue
        for name in PAIRED:
            first, second = ([unit.row[name] for unit in side] for side in (ours, theirs))
            if None in first or None in second:
                continue
            values = _resampled(ours, name, config) - _resampled(theirs, name, config)
            drawn = Bootstrap(values=values, num_skipped=0)
            low, high = drawn.interval()
            rows.append(
                {
                    "arm": reference,
                    "minus": arm,
                    "measure": name,
                    "difference": fmean(a - b for a, b in zip(first, second, strict=True)),
                    "low": low,
                    "high": high,
                    "minimal_detectable": drawn.minimal_detectable(),
                    "by_seed": [a - b for a, b in zip(first, second, strict=True)],
                    "seeds": [unit.seed for unit in ours],
                    "n": len(ours[0].patients),
                }
            )
    return rows


def _by_arm(units: Sequence[UnitAnswers]) -> dict[str, list[UnitAnswers]]:
    """Units of each arm by seed; of patients that other units were not asked about, none."""
    arms: dict[str, list[UnitAnswers]] = {}
    for unit in sorted(units, key=lambda unit: (list(ARMS).index(unit.arm), unit.seed)):
        if unit.patients == units[0].patients:
            arms.setdefault(unit.arm, []).append(unit)
    return arms


def _pairs(
    ours: Sequence[UnitAnswers], theirs: Sequence[UnitAnswers], arm: str
) -> tuple[list[UnitAnswers], list[UnitAnswers]]:
    if ARMS[arm].own_stage is None:
        return list(ours), [theirs[0]] * len(ours)
    by_seed = {unit.seed: unit for unit in theirs}
    both = [unit for unit in ours if unit.seed in by_seed]
    return both, [by_seed[unit.seed] for unit in both]


def _resampled(
    units: Sequence[UnitAnswers], name: str, config: RunConfig
) -> Float[np.ndarray, " resamples"]:
    """The mean over drawn seeds of a measure on drawn patients; nothing where it is unknown.

    The draws are those of every other arm with as many seeds: their differences are paired.
    """
    if any(unit.row[name] is None for unit in units):
        return np.array([])
    num, seed = config.evaluate.num_resamples, config.evaluate.seed
    of_each = np.stack(
        [
            bootstrap(unit.labels, unit.probabilities, Metric(name), num, seed).values
            if name in _RANKING
            else bootstrap_mean(unit.means[name], num, seed).values
            for unit in units
        ]
    )
    drawn = np.random.default_rng(seed).integers(len(units), size=of_each.shape)
    return np.take_along_axis(of_each, drawn, axis=0).mean(axis=0)


def _answers(arm: str, folder: Path, cohort: Cohort) -> UnitAnswers:
    config = RunFolder(folder).read_config()
    table = pd.read_parquet(folder / "evaluate" / "predictions.parquet")
    table = table.sort_values("patient_id", ignore_index=True)
    evaluated = json.loads((folder / "evaluate" / "results.json").read_text())[0]
    patients = tuple(table["patient_id"].astype(str))
    labels = table["label"].to_numpy(int)
    probabilities = table["probability"].to_numpy(float)
    named = bool(table["reward_att"].notna().all())
    means = _rewards(table, config.reward, named=named)
    size = config.expert.num_salient_features
    answered = [frozenset(names) for names in table["features"]] if named else []
    salient = tuple(frozenset(names) for names in table["salient"]) if named else ()
    excess = excess_jaccard(answered, salient, size).excess if named else None
    if named and cohort.truth is not None:
        truth = true_sets(cohort, patients, size)
        means["true_overlap"] = np.array(
            [mean_jaccard([own], [true]) for own, true in zip(answered, truth, strict=True)]
        )
    row: dict[str, Any] = {
        "arm": arm,
        "seed": _seed_of(folder),
        "n": len(patients),
        **{name: metric(labels, probabilities) for name, metric in _RANKING.items()},
        **{
            name: float(means[name].mean()) if name in means else None
            for name in PAIRED
            if name not in _RANKING
        },
        "brier": brier(labels, probabilities),
        "ece": ece(labels, probabilities),
        "reward_att_excess": excess,
        "parse_failure_rate": float(table["parse_failed"].mean()),
        "grounding_error_rate": evaluated.get("grounding_error_rate"),
        "faithfulness": (evaluated.get("faithfulness") or {}).get("difference"),
        **_cost(folder),
    }
    return UnitAnswers(
        arm=arm,
        seed=row["seed"],
        patients=patients,
        labels=labels,
        probabilities=probabilities,
        means=means,
        salient=salient,
        row=row,
    )


def _rewards(table: pd.DataFrame, section: RewardSection, *, named: bool) -> dict[str, np.ndarray]:
    """R of Eq. 7 and its parts for every answer; a format failure has the floor."""
    floor = math.log(MIN_PROBABILITY)
    cls = np.array(
        [
            floor if failed else classification_reward(probability, label, section)
            for probability, label, failed in zip(
                table["probability"], table["label"], table["parse_failed"], strict=True
            )
        ]
    )
    if not named:
        return {"reward_cls": cls}
    weight, att = section.accuracy_weight, table["reward_att"].to_numpy(float)
    return {"reward_cls": cls, "reward_att": att, "reward": weight * cls + (1 - weight) * att}


def _cost(folder: Path) -> dict[str, Any]:
    records = {stage: RunFolder(folder).stage(stage).read() for stage in _OWN_STAGES}
    seconds = {f"{stage}_s": (record or {}).get("seconds") for stage, record in records.items()}
    steps = MetricsFile(folder / "grpo" / "metrics.jsonl").lines()
    return {
        "seconds": sum(value for value in seconds.values() if value is not None),
        **seconds,
        "steps": len(steps),
        "learner_tokens": sum(step.get("tokens/learner") or 0 for step in steps),
        "adaptive_share": _mean(step.get("clip/adaptive_share") for step in steps),
        "commit": (records["evaluate"] or {}).get("commit"),
    }


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _references(
    run_dir: Path, units: Sequence[UnitAnswers], cohort: Cohort | None, config: RunConfig
) -> list[dict[str, Any]]:
    """What the arms' figures are read against, on the same patients."""
    if not units or cohort is None:
        return []
    patients, labels = list(units[0].patients), units[0].labels
    stored = pd.read_parquet(run_dir / "expert" / "predictions.parquet")
    stored = stored[stored["split"] == "test"]
    rows = []
    for method in EXPERT_METHODS:
        table = stored[stored["method"] == method].set_index("patient_id")
        if set(patients) <= set(table.index):
            risks = table.loc[patients, "probability"].to_numpy(float)
            rows.append({"name": method, **{k: f(labels, risks) for k, f in _RANKING.items()}})
    if cohort.truth is None:
        return rows
    risks = true_risks(cohort, patients)
    rows.append({"name": "true_risk", **{k: f(labels, risks) for k, f in _RANKING.items()}})
    size = config.expert.num_salient_features
    truth = true_sets(cohort, patients, size)
    rows.append({"name": "constant_set", "true_overlap": best_constant_set(truth, size)[1]})
    salient = next((unit.salient for unit in units if unit.salient), None)
    if salient is not None:
        rows.append({"name": "expert_salience", "true_overlap": mean_jaccard(salient, truth)})
    return rows


def _counts(units: Sequence[UnitAnswers]) -> dict[str, Any]:
    if not units:
        return {"n": 0, "num_positives": 0}
    return {"n": len(units[0].patients), "num_positives": int(units[0].labels.sum())}


def _model(run_dir: Path) -> dict[str, Any] | None:
    return json.loads((run_dir / "config.json").read_text()).get("model")


def _seed_of(folder: Path) -> int:
    return int(folder.name.removeprefix("seed-"))
