import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.unit.training.test_arms import config
from training.learn_curve import curve_lines, size_folder, write_learn_curve
from training.run_folder import RunFolder, write_json

TEST = [f"p{index}" for index in range(40)]
LABELS = np.arange(40) % 3 == 0


def predictions(method: str, noise: float, patients: list[str] = TEST) -> pd.DataFrame:
    rng = np.random.default_rng(len(method))
    scores = 0.2 + 0.6 * LABELS + noise * rng.normal(size=40)
    return pd.DataFrame(
        {
            "method": method,
            "patient_id": TEST,
            "split": "test",
            "label": LABELS.astype(int),
            "probability": np.clip(scores, 0.01, 0.99),
        }
    )[lambda table: table["patient_id"].isin(patients)]


def make_size(run_dir: Path, size: int | None, num_train: int, seeds: tuple[int, ...]) -> None:
    folder = run_dir / size_folder(size)
    write_json(folder / "cohort" / "summary.json", {"splits": {"train": {"patients": num_train}}})
    RunFolder(folder).write_config(config(), None)
    (folder / "expert").mkdir()
    methods = [predictions(name, 0.3) for name in ("concare", "logistic_regression")]
    pd.concat(methods).to_parquet(folder / "expert" / "predictions.parquet")
    for seed in seeds:
        unit = folder / "arms" / "eag_rl" / f"seed-{seed}"
        (unit / "evaluate").mkdir(parents=True)
        predictions("eag_rl", 0.4, TEST[:30]).to_parquet(unit / "evaluate" / "predictions.parquet")
        row = {"method": "eag_rl", "n": 30, "auroc": 0.5 + seed / 100}
        (unit / "evaluate" / "results.json").write_text(json.dumps([row]))
        record = RunFolder(unit).stage("evaluate")
        record.begin({})
        record.finish(1.0, "")


def test_the_curve_has_every_size_and_everybody_on_the_same_patients(tmp_path: Path) -> None:
    make_size(tmp_path, None, 120, (1,))
    make_size(tmp_path, 10, 10, (1, 2))

    points = write_learn_curve(tmp_path)

    assert [(point.train_patients, point.method, point.seed) for point in points] == [
        (10, "eag_rl", 1),
        (10, "eag_rl", 2),
        (10, "concare", None),
        (10, "logistic_regression", None),
        (120, "eag_rl", 1),
        (120, "concare", None),
        (120, "logistic_regression", None),
    ]
    assert {point.num_test for point in points} == {30}
    lines = curve_lines(tmp_path)
    assert "10 patients" in lines[0]
    assert "120 patients" in lines[0]
    assert any("0.515 (2 seeds)" in line and "0.510" in line for line in lines)


def test_an_unfinished_unit_is_no_point(tmp_path: Path) -> None:
    make_size(tmp_path, 10, 10, (1,))
    (tmp_path / "train-10" / "arms" / "eag_rl" / "seed-2" / "grpo").mkdir(parents=True)

    assert [point.seed for point in write_learn_curve(tmp_path) if point.seed] == [1]


@pytest.mark.parametrize("size", [10, None])
def test_sizes_are_named_by_their_folder(size: int | None, tmp_path: Path) -> None:
    make_size(tmp_path, size, 9, ())

    assert {point.train_patients for point in write_learn_curve(tmp_path)} <= {9}
