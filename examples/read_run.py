"""A finished run folder with pandas: `python examples/read_run.py RUN [--plot FILE.png]`.

Needs nothing of the project: the files are JSON, JSON lines and Parquet
(docs/running/run_folder.md). The plot needs matplotlib, which is no dependency; the tables are
printed without it.
"""

# pandas annotates results of indexing too widely for the checker; matplotlib is not there.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false
# pyright: reportMissingImports=false
import argparse
import importlib.util
import json
from pathlib import Path

import pandas as pd

INSTALL_MATPLOTLIB = "pip install matplotlib==3.11.2"


def methods(run: Path) -> pd.DataFrame:
    """A row a method: its AUROC, and the mean risk of patients with and without the event."""
    results = pd.DataFrame(json.loads((run / "evaluate" / "results.json").read_text()))
    table = results.set_index("method")[["n", "auroc", "auroc_low", "auroc_high"]]
    # One row a method and test patient; an unreadable answer has parse_failed and no say here.
    predictions = pd.read_parquet(run / "evaluate" / "predictions.parquet")
    readable = predictions[~predictions["parse_failed"]]
    risk = readable.pivot_table(index="method", columns="label", values="probability")
    table["mean_risk_0"], table["mean_risk_1"] = risk[0], risk[1]
    table["unreadable"] = predictions.groupby("method")["parse_failed"].mean()
    return table


def salient(run: Path, size: int = 5) -> pd.Series:
    """Share of test patients who have a feature among the heaviest by the mean of the members."""
    table = pd.read_parquet(run / "expert" / "salience.parquet")
    table = table[(table["ensemble"] == 0) & (table["split"] == "test")]  # 0 is served
    rows = table.groupby(["patient_id", "feature"])
    # A feature that was never recorded for a patient is not salient for this patient.
    scores = rows["score"].mean().where(rows["observed"].first()).unstack()
    ranks = scores.rank(axis=1, ascending=False)
    return (ranks <= size).mean().sort_values(ascending=False)


def steps(run: Path) -> pd.DataFrame:
    """What Stage 2 logged, a row a step."""
    return pd.read_json(run / "grpo" / "metrics.jsonl", lines=True).set_index("step")


def draw(table: pd.DataFrame, curve: pd.DataFrame, path: Path) -> None:
    """AUROC with 95 % intervals by method, and the reward over the steps of Stage 2."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
    known = table.dropna(subset=["auroc"])
    below, above = known["auroc"] - known["auroc_low"], known["auroc_high"] - known["auroc"]
    left.errorbar(known["auroc"], list(known.index), xerr=[below, above], fmt="o")
    left.set_xlabel("AUROC [95 %]")
    curve[["reward/mean", "reward/cls_mean", "reward/att_mean"]].plot(ax=right, marker=".")
    figure.savefig(path)


def main() -> None:
    """Prints the tables and writes the plot."""
    parser = argparse.ArgumentParser(description="A finished run folder with pandas.")
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--plot", type=Path, default=Path("run.png"), help=".png, .svg or .pdf")
    arguments = parser.parse_args()
    table, curve = methods(arguments.run), steps(arguments.run)
    print(table.to_string(float_format="{:.3f}".format))
    print("\nShare of test patients for whom a feature is salient:")
    print(salient(arguments.run).head(5).to_string(float_format="{:.3f}".format))
    first, last = curve["reward/mean"].iloc[[0, -1]]
    print(f"\nMean reward of Stage 2: {first:.3f} at step {curve.index[0]}, {last:.3f} at the last")
    if importlib.util.find_spec("matplotlib") is None:
        print(f"No plot: matplotlib is not installed; {INSTALL_MATPLOTLIB}")
        return
    draw(table, curve, arguments.plot)
    print(f"The plot is in {arguments.plot}")


if __name__ == "__main__":
    main()
