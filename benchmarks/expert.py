"""How well the expert predicts, beside regression and boosting on the same patients and inputs.

    python -m benchmarks.expert CONFIG... [section.key=value ...] [--split-seeds 42 43 44]

For every split seed: the whole members of the configuration's expert section, whose mean is the
risk that the expert stage gives to test patients, and both baselines, in this process.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from benchmarks.record import RESULTS, write_result
from ehr.cohorts.cohort import Cohort
from ehr.cohorts.loaders import build_cohort
from ehr.config import ExpertSection
from ehr.errors import ConfigurationError, DataError
from ehr.expert.baselines import BASELINES
from ehr.expert.selection import fit_ensembles
from ehr.expert.view import ExpertScaler
from ehr.metrics import auprc, auroc
from training.config.loading import load_config

DEMO = Path(__file__).resolve().parent.parent / "configs" / "demo.yaml"


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="*", help="YAML files and section.key=value")
    parser.add_argument("--split-seeds", nargs="+", type=int, default=(42, 43, 44))
    parser.add_argument("--quick", action="store_true", help="the first split seed only")
    parser.add_argument("--json", type=Path, default=RESULTS / "expert.json")
    arguments = parser.parse_args()
    files = [Path(name) for name in arguments.config if "=" not in name] or [DEMO]
    seeds = arguments.split_seeds[: 1 if arguments.quick else None]
    overrides = [name for name in arguments.config if "=" in name]
    torch.set_num_threads(1)  # as a worker of the expert stage
    rows: list[dict[str, Any]] = []
    try:
        for seed in seeds:
            config = load_config(files, [*overrides, f"cohort.seed={seed}"])
            cohort = build_cohort(config.cohort)
            rows += compared(cohort, config.expert, seed)
            print(table(rows[-1 - len(BASELINES) :]), flush=True)
    except (ConfigurationError, DataError) as error:
        parser.error(str(error))
    means = mean_rows(rows)
    print(table(means))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    write_result(arguments.json, rows + means, {})


def models(
    cohort: Cohort, section: ExpertSection
) -> dict[str, Callable[[], Float[np.ndarray, " patients"]]]:
    """What trains each model and answers for the test patients, in the order of their split."""
    scaler = ExpertScaler.fit(cohort, cohort.splits["train"])
    train, test = (
        [scaler.transform(cohort.cases[patient]) for patient in cohort.splits[split]]
        for split in ("train", "test")
    )
    labels = [cohort.labels[patient] for patient in cohort.splits["train"]]

    def concare() -> Float[np.ndarray, " patients"]:
        # One pair of half-samples is the least there is; only the whole members are asked.
        few = section.model_copy(update={"members": 2, "num_ensembles": 1})
        return fit_ensembles(cohort, few)[0].fair_risk(test)

    return {"concare": concare} | {
        name: lambda baseline=baseline: baseline(train, labels, test, section.seed)
        for name, baseline in BASELINES.items()
    }


def compared(cohort: Cohort, section: ExpertSection, seed: int) -> list[dict[str, Any]]:
    """One row a model: its performance on the cohort's test patients."""
    labels = [cohort.labels[patient] for patient in cohort.splits["test"]]
    rows: list[dict[str, Any]] = []
    for name, model in models(cohort, section).items():
        started = time.process_time()
        risk = model()
        rows.append(
            {
                "cohort": cohort.name,
                "num_features": len(cohort.features),
                "method": name,
                "split_seed": seed,
                "whole_members": section.whole_members if name == "concare" else None,
                "auroc": auroc(labels, risk),
                "auprc": auprc(labels, risk),
                "cpu_seconds": time.process_time() - started,
            }
        )
    return rows


def mean_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean of each model over the split seeds."""
    methods = dict.fromkeys(row["method"] for row in rows)
    result: list[dict[str, Any]] = []
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        figures = {
            name: float(np.mean([row[name] for row in own]))
            for name in ("auroc", "auprc", "cpu_seconds")
        }
        result.append(dict(own[0]) | {"split_seed": "mean"} | figures)
    return result


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a model."""
    return "\n".join(
        f"{row['cohort']:<16} {row['num_features']:>3} features  split {row['split_seed']!s:<5} "
        f"{row['method']:<20} AUROC {100 * row['auroc']:5.1f}  AUPRC {100 * row['auprc']:5.1f}  "
        f"{row['cpu_seconds']:6.1f} CPU s"
        for row in rows
    )


if __name__ == "__main__":
    main()
