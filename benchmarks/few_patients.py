"""How well models of the record predict with few training patients.

    python -m benchmarks.few_patients CONFIG... [section.key=value ...] --sizes 10 30 100 all

For every size and seed: ConCare's whole members, logistic regression and boosting, trained on the
same nested choice of patients and asked about the same test patients. All training patients are
one choice, whatever the seed. 95 % intervals are over test patients and choices of training
patients (`ehr.seeds`); of one choice or two they are over test patients only. Choices that take
most of the training patients overlap, and differ less than patients drawn anew would.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from benchmarks.expert import DEMO, models
from benchmarks.record import RESULTS, write_result
from ehr.cohorts.cohort import Cohort
from ehr.cohorts.few_patients import with_fewer_patients
from ehr.cohorts.loaders import build_cohort
from ehr.config import ExpertSection
from ehr.errors import ConfigurationError, DataError
from ehr.metrics import Metric, auprc, auroc, bootstrap
from ehr.seeds import of_resamples, seeds_note
from training.config.loading import load_config

RESAMPLES = 1000
"""Of patients, behind an interval: its ends move by some hundredth of its width."""

ALL = "all"
"""Size that means every training patient."""


def main() -> None:
    """Runs the curve."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="*", help="YAML files and section.key=value")
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=["10", "30", "100", ALL],
        help="numbers of training patients, or `all`",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[0, 1, 2, 3, 4],
        help="cohort.train_patients_seed of each choice",
    )
    parser.add_argument("--quick", action="store_true", help="two seeds of the smallest size")
    parser.add_argument(
        "--json",
        type=Path,
        default=RESULTS / "few_patients.json",
        help="file for the numbers (benchmarks/results/few_patients.json)",
    )
    arguments = parser.parse_args()
    files = [Path(name) for name in arguments.config if "=" not in name] or [DEMO]
    overrides = [name for name in arguments.config if "=" in name]
    sizes, seeds = arguments.sizes, arguments.seeds
    if arguments.quick:
        sizes, seeds = sizes[:1], seeds[:2]
    torch.set_num_threads(1)  # as a worker of the expert stage
    rows: list[dict[str, Any]] = []
    try:
        config = load_config(files, overrides)
        cohort = build_cohort(config.cohort)
        require_sizes(cohort, sizes)
        for size in sizes:
            rows += points(cohort, config.expert, size, seeds)
            write_result(arguments.json, rows, {})
            print(table([row for row in rows if row["size"] == size]), flush=True)
    except (ConfigurationError, DataError) as error:
        parser.error(str(error))


def require_sizes(cohort: Cohort, sizes: Sequence[str]) -> None:
    """Refuses sizes that the cohort cannot give, before hours go into those ahead of them.

    Raises:
        ConfigurationError: if a size is neither a number nor `ALL`.
        DataError: if the training split has fewer patients.
    """
    for size in sizes:
        if size != ALL:
            if not size.isdecimal():
                raise ConfigurationError(
                    f"--sizes: expected numbers of training patients or {ALL!r}, got {size!r}"
                )
            with_fewer_patients(cohort, int(size), seed=0)  # the seed changes no count


def points(
    cohort: Cohort, section: ExpertSection, size: str, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """One row a model: its mean metrics over seeds with one size of the training split.

    Args:
        cohort: at its full size.
        section: of the expert; its whole members answer.
        size: number of training patients, or `ALL`.
        seeds: of the choice of patients; the first one only for `ALL`.

    Raises:
        DataError: if the training split has fewer patients.
        ValueError: if the size is neither a number nor `ALL`.
    """
    labels = np.array([cohort.labels[patient] for patient in cohort.splits["test"]])
    chosen = list(seeds[:1] if size == ALL else seeds)
    risks: dict[str, list[Float[np.ndarray, " patients"]]] = {}
    seconds: dict[str, float] = {}
    num_train = num_validation = 0
    for seed in chosen:
        few = cohort if size == ALL else with_fewer_patients(cohort, int(size), seed)
        num_train, num_validation = len(few.splits["train"]), len(few.splits["val"])
        for name, model in models(few, section).items():
            started = time.process_time()
            risks.setdefault(name, []).append(model())
            seconds[name] = seconds.get(name, 0.0) + time.process_time() - started
    return [
        {
            "cohort": cohort.name,
            "num_features": len(cohort.features),
            "size": size,
            "train_patients": num_train,
            "validation_patients": num_validation,
            "test_patients": len(labels),
            "seeds": chosen,
            "method": name,
            **mean_with_interval(labels, np.stack(each)),
            "cpu_seconds_a_seed": seconds[name] / len(chosen),
        }
        for name, each in risks.items()
    ]


def mean_with_interval(
    labels: Int[np.ndarray, " patients"], risks: Float[np.ndarray, "seeds patients"]
) -> dict[str, Any]:
    """Mean AUROC and AUPRC over seeds, each seed's, and the 95 % interval of the mean.

    `seeds_note` says where seeds are too few for an interval over them.
    """
    found: dict[str, Any] = {"seeds_note": seeds_note(len(risks))}
    for name, metric, point in (("auroc", Metric.AUROC, auroc), ("auprc", Metric.AUPRC, auprc)):
        # One seed of the resamples: the same patients are drawn for all rows.
        drawn = [bootstrap(labels, risk, metric, RESAMPLES, seed=0).values for risk in risks]
        by_seed = np.array([point(labels, risk) for risk in risks], dtype=float)
        assert np.isfinite(by_seed).all(), "every test split has both classes"
        mean = of_resamples(by_seed, np.stack(drawn, axis=1))
        low, high = (float(end) for end in mean.interval(is_share=True))
        found |= {
            name: float(by_seed.mean()),
            f"{name}_low": low,
            f"{name}_high": high,
            f"{name}_by_seed": by_seed.tolist(),
        }
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a model."""
    return "\n".join(
        f"{row['cohort']:<14} {row['train_patients']:>5} training patients  "
        f"{row['method']:<20} AUROC {row['auroc']:.3f} [{row['auroc_low']:.3f}, "
        f"{row['auroc_high']:.3f}]  AUPRC {row['auprc']:.3f} [{row['auprc_low']:.3f}, "
        f"{row['auprc_high']:.3f}]  {row['seeds_note'] or str(len(row['seeds'])) + ' seeds'}  "
        f"{row['cpu_seconds_a_seed']:.1f} CPU s"
        for row in rows
    )


if __name__ == "__main__":
    main()
