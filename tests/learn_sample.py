"""An experiment's folder with made-up answers: what `eag-rl learn` leaves, without a model."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from ehr.cohort import Cohort, save_cohort
from ehr.config import CohortSection
from ehr.rewards import MIN_PROBABILITY, attention_reward
from ehr.synthetic import generate
from ehr.truth import true_risks, true_sets
from tests.unit.training.test_arms import config
from training.evaluation import PREDICTION_COLUMNS, result_rows
from training.run_folder import RunFolder, write_json

SIZE = 5


@cache
def sample_cohort() -> Cohort:
    """Sixty synthetic patients, with their truth."""
    return generate(CohortSection(num_patients=60, num_visits=1))


def answers(method: str, skill: float, seed: int) -> pd.DataFrame:
    """Prediction rows: with `skill` 1 the true risk and the true features, with 0 noise."""
    cohort = sample_cohort()
    rng = np.random.default_rng([seed, len(method)])
    patients = list(cohort.splits["test"])
    truth = true_sets(cohort, patients, SIZE)
    names = [feature.name for feature in cohort.features]
    rows = []
    for patient, risk, true in zip(patients, true_risks(cohort, patients), truth, strict=True):
        noise = rng.uniform(0.02, 0.98)
        named = [name if rng.random() < skill else str(rng.choice(names)) for name in sorted(true)]
        rows.append(
            dict.fromkeys(PREDICTION_COLUMNS)
            | {
                "method": method,
                "patient_id": patient,
                "label": cohort.labels[patient],
                "probability": float(np.clip(skill * risk + (1 - skill) * noise, 0.01, 0.99)),
                "parse_failed": False,
                "text": "<Final answer>\n0.5\n</Final answer>",
                "features": sorted(set(named)),
                "salient": sorted(true),
                "reward_att": attention_reward(set(named), true),
            }
        )
    return pd.DataFrame(rows, columns=list(PREDICTION_COLUMNS))


def with_failures(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """The first answers unreadable, as evaluation writes them."""
    failed = table.copy()
    first = failed.index[:count]
    failed.loc[first, "parse_failed"] = True
    failed.loc[first, "reward_att"] = 0.0
    failed.loc[first, "probability"] = MIN_PROBABILITY * 30
    return failed


def make_unit(run_dir: Path, arm: str, seed: int, table: pd.DataFrame, steps: int = 3) -> Path:
    """A finished unit."""
    folder = begin_unit(run_dir, arm, seed, steps)
    (folder / "evaluate").mkdir()
    table.to_parquet(folder / "evaluate" / "predictions.parquet")
    write_json(folder / "evaluate" / "results.json", result_rows(table, SIZE, 100, 0))
    for stage, seconds in (("grpo", 60.0), ("evaluate", 20.0)):
        record = RunFolder(folder).stage(stage)
        record.begin({})
        record.finish(seconds, "")
    return folder


def begin_unit(run_dir: Path, arm: str, seed: int, steps: int) -> Path:
    """A unit that has committed some steps and is not evaluated."""
    folder = run_dir / "arms" / arm / f"seed-{seed}"
    (folder / "grpo").mkdir(parents=True)
    RunFolder(folder).write_config(config(), None)
    lines = [
        {"step": step, "reward/mean": -1 + 0.1 * step, "tokens/learner": 1000.0}
        for step in range(1, steps + 1)
    ]
    (folder / "grpo" / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return folder


def make_experiment(run_dir: Path, skills: Mapping[str, float], seeds: Sequence[int]) -> Path:
    """A folder with one cohort and, for every arm and seed, answers of the arm's skill."""
    cohort = sample_cohort()
    save_cohort(cohort, run_dir / "cohort")
    write_json(run_dir / "cohort" / "summary.json", {"splits": {}})
    RunFolder(run_dir).write_config(config(), {"name": "tiny", "description": "made up"})
    (run_dir / "expert").mkdir()
    patients = list(cohort.splits["test"])
    pd.DataFrame(
        {
            "method": "concare",
            "patient_id": patients,
            "split": "test",
            "label": [cohort.labels[patient] for patient in patients],
            "probability": true_risks(cohort, patients),
        }
    ).to_parquet(run_dir / "expert" / "predictions.parquet")
    for arm, skill in skills.items():
        for seed in seeds:
            make_unit(run_dir, arm, seed, answers(arm, skill, seed))
    return run_dir
