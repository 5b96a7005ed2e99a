"""The curve of an experiment over numbers of training patients, from folders as it leaves them."""

import json
from pathlib import Path

import pytest

from ehr.seeds import holm
from tests.experiment_folder_sample import SampleExperiment
from training.experiments.curve import (
    Curve,
    curve_difference_rows,
    curve_lines,
    curve_notes,
    curve_rows,
    size_folder,
    sizes_found,
    write_learn_curve,
)
from training.experiments.curve_page import size_figure, write_curve_page
from training.experiments.results_file import read_learn_results, write_learn_results


def make_size(run_dir: Path, size: int | None, arms: tuple[str, ...] = ("stage1", "eag_rl")) -> int:
    """Writes the experiment of a size; returns how many patients it learned from."""
    sample = SampleExperiment(
        run_dir / size_folder(size), arms=arms, seeds=(17, 18), train_patients=size
    )
    sample.write_shared()
    for arm in arms:
        for seed in (17, 18) if arm == "eag_rl" else (17,):
            sample.write_unit(arm, seed)
    write_learn_results(sample.folder)
    return len(sample.cohort.splits["train"])


@pytest.fixture
def curve(tmp_path: Path) -> Curve:
    make_size(tmp_path, None)
    make_size(tmp_path, 10)
    return write_learn_curve(tmp_path)


def test_every_size_has_what_its_own_experiment_found(tmp_path: Path) -> None:
    num_all = make_size(tmp_path, None)
    num_few = make_size(tmp_path, 10)

    curve = write_learn_curve(tmp_path)

    assert [size["train_patients"] for size in curve["sizes"]] == [num_few, num_all]
    assert num_few == 10 < num_all
    for size in curve["sizes"]:
        results = read_learn_results(tmp_path / size["folder"])
        rows = {row["name"]: row for row in size["rows"]}
        assert list(rows) == [
            "stage1",
            "eag_rl",
            "concare",
            "logistic_regression",
            "true_risk",
        ]
        assert rows["eag_rl"]["num_seeds"] == 2
        assert rows["concare"]["num_seeds"] is None
        assert rows["eag_rl"]["measures"] == results["arms"][1]["measures"]
    assert json.loads((tmp_path / "learn" / "curve.json").read_text()) == curve


def test_tables_have_a_column_a_size_and_the_differences_from_the_expert(curve: Curve) -> None:
    rows = curve_rows(curve, "auroc")
    lines = curve_lines(curve)

    assert rows[0] == ["AUROC", "10 patients", "34 patients"]
    assert [row[0] for row in rows[1:]] == [
        "Stage-1",
        "EAG-RL",
        "ConCare",
        "Logistic regression",
        "True risk",
    ]
    assert [row[0] for row in curve_difference_rows(curve)[1:]] == [
        "EAG-RL - ConCare",
        "EAG-RL - Logistic regression",
    ]
    assert any("EAG-RL - ConCare" in line and "[" in line for line in lines)


def test_p_values_of_the_curve_are_adjusted_for_all_its_differences(curve: Curve) -> None:
    rows = [row for size in curve["sizes"] for row in size["differences"]]

    assert len(rows) == 4
    assert [row["p_holm"] for row in rows] == holm([row["p"] for row in rows])
    shown = curve_difference_rows(curve)
    assert shown[0][0] == "Difference in AUROC, p by Holm"
    assert all(", p " in cell for line in shown[1:] for cell in line[1:])


def test_the_curve_says_what_its_intervals_leave_out(curve: Curve) -> None:
    notes = "\n".join(curve_notes(curve))

    assert "one choice of them" in notes
    assert "EAG-RL, 10 patients: two seeds: too few for an interval over seeds" in notes
    assert "Stage-1" not in notes  # no training of its own
    assert notes in "\n".join(curve_lines(curve))


def test_an_arm_that_a_size_lacks_has_a_dash_there(tmp_path: Path) -> None:
    make_size(tmp_path, 10, arms=("eag_rl",))
    make_size(tmp_path, None)

    rows = {row[0]: row[1:] for row in curve_rows(write_learn_curve(tmp_path), "auroc")}

    assert rows["Stage-1"][0] == "-"
    assert rows["Stage-1"][1] != "-"


def test_a_size_without_results_is_no_point(tmp_path: Path) -> None:
    make_size(tmp_path, 10)
    (tmp_path / "train-30" / "cohort").mkdir(parents=True)

    assert [size["train_patients"] for size in write_learn_curve(tmp_path)["sizes"]] == [10]


def test_a_size_that_cannot_be_read_is_named_and_stops_no_other(tmp_path: Path) -> None:
    for size in (10, 20):
        make_size(tmp_path, size)
    make_size(tmp_path, None)
    (tmp_path / "train-10" / "cohort" / "summary.json").unlink()
    (tmp_path / "train-20" / "learn" / "results.json").write_text("{")

    curve = write_learn_curve(tmp_path)

    assert [size["folder"] for size in curve["sizes"]] == ["train-all"]
    assert [problem.split()[0] for problem in curve["problems"]] == ["train-10", "train-20"]
    assert "train-10 is in no number" in "\n".join(curve_lines(curve))
    assert "train-20 is in no number" in write_curve_page(tmp_path, "sample", curve).read_text()


def test_folders_of_sizes_are_found_in_their_order(tmp_path: Path) -> None:
    for name in ("train-100", "train-all", "train-30", "train-x", "other"):
        (tmp_path / name).mkdir()

    assert sizes_found(tmp_path) == [30, 100, None]


def test_an_unfinished_unit_is_named_and_in_no_number(tmp_path: Path) -> None:
    folder = tmp_path / size_folder(10)
    sample = SampleExperiment(folder, arms=("eag_rl",), seeds=(17, 18), train_patients=10)
    sample.write_shared()
    sample.write_unit("eag_rl", 17)
    sample.write_unit("eag_rl", 18, state="training")
    write_learn_results(folder)

    curve = write_learn_curve(tmp_path)
    page = write_curve_page(tmp_path, "sample", curve).read_text()

    (size,) = curve["sizes"]
    assert size["rows"][0]["num_seeds"] == 1
    assert "10 training patients: unfinished: EAG-RL, seed 18" in page


def test_a_picture_shows_arms_and_what_they_are_read_against(curve: Curve) -> None:
    figure = size_figure(curve, "auroc")

    assert figure is not None
    assert {entry.label: entry.is_dashed for entry in figure.legend} == {
        "Stage-1": False,
        "EAG-RL": False,
        "ConCare": True,
        "Logistic regression": True,
        "True risk": True,
    }
    assert figure.svg.count("<circle") == 2 * 5
    assert size_figure(curve, "auroc_one") is None  # patients were asked once


def test_the_page_leads_to_that_of_each_size(curve: Curve, tmp_path: Path) -> None:
    page = write_curve_page(tmp_path, "<b>sample", curve).read_text()

    assert 'href="train-10/learn.html"' in page
    assert "&lt;b&gt;sample" in page
    assert "<b>sample" not in page


def test_before_any_size_is_done_there_is_nothing_to_show(tmp_path: Path) -> None:
    curve = write_learn_curve(tmp_path)

    assert curve_lines(curve) == []
    assert write_curve_page(tmp_path, "sample", curve).is_file()
