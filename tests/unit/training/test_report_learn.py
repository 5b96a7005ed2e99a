"""The page of an experiment, while it runs and afterwards."""

import json
from pathlib import Path

import pytest

from tests.experiment_folder_sample import SampleExperiment
from tests.report_page import EVIL, Page
from training.evaluation.methods import RECORD_METHODS
from training.experiments.figures import REFERENCE_COLOURS, mean_curve
from training.experiments.page import write_learn_page
from training.experiments.results_file import write_learn_results
from training.report.page import write_report


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SampleExperiment:
    experiment = SampleExperiment(tmp_path_factory.mktemp("experiment"))
    experiment.write_shared()
    experiment.write_unit("vanilla", 17)
    experiment.write_unit("stage1", 17)
    experiment.write_unit("stage1_grpo", 17)
    experiment.write_unit("stage1_grpo", 18, "training")
    for seed in (17, 18):
        experiment.write_unit("eag_rl", seed)
    write_learn_results(experiment.folder)
    return experiment


def page_of(folder: Path) -> Page:
    return Page(write_learn_page(folder).read_text("utf-8"))


def test_the_page_has_the_table_the_figures_and_the_units(whole: SampleExperiment) -> None:
    estimate = {"eag_rl/seed-17": {"learner_tokens": 123_456}}
    (whole.folder / "learn" / "estimate.json").write_text(json.dumps(estimate))

    page = page_of(whole.folder)

    assert page.open == []
    assert page.scripts == []
    for words in (
        f"{len(whole.cohort.splits['train'])} training patients, ",
        "mean of 2",
        "AUROC: EAG-RL minus the others",
        "R_att above the best constant set",
        "True risk",
        "123,456",
        "1 unit is not finished",
        "Stage-1 + GRPO, seed 18 (grpo running, 2 of 5 steps)",
    ):
        assert words in page.text
    assert not [value for name, value in page.attributes if name in ("src", "onclick", "onerror")]


def test_a_unit_with_a_report_of_its_own_leads_to_it(tmp_path: Path) -> None:
    experiment = SampleExperiment(tmp_path, seeds=(17,))
    experiment.write_shared()
    for arm in ("stage1", "eag_rl"):
        experiment.write_unit(arm, 17)
    write_report(tmp_path / "arms" / "eag_rl" / "seed-17")

    page = page_of(tmp_path)

    links = [value for name, value in page.attributes if name == "href" and "report" in str(value)]
    assert links == ["arms/eag_rl/seed-17/report.html"]


def test_differences_of_each_part_alone_are_in_the_title(tmp_path: Path) -> None:
    experiment = SampleExperiment(tmp_path, seeds=(17,))
    experiment.write_shared()
    for arm in ("stage1_grpo", "eag_rl", "without_adaptive_clip"):
        experiment.write_unit(arm, 17)

    page = page_of(tmp_path)

    assert "AUROC: EAG-RL minus the others, and each part alone" in page.text
    assert "w/o adaptive clip minus Stage-1 + GRPO" in page.text


@pytest.mark.parametrize("begun", [None, "training", "evaluating"])
def test_the_page_needs_no_finished_unit(tmp_path: Path, begun) -> None:
    experiment = SampleExperiment(tmp_path)
    experiment.write_shared()
    if begun is not None:
        experiment.write_unit("eag_rl", 17, begun)

    page = page_of(tmp_path)

    assert "No unit has finished yet." in page.text
    assert ("No unit has trained a step yet." in page.text) == (begun is None)


def test_hostile_names_stay_text(whole: SampleExperiment, tmp_path: Path) -> None:
    experiment = SampleExperiment(tmp_path)
    run = experiment.config.run.model_copy(update={"name": EVIL})
    experiment.config = experiment.config.model_copy(update={"run": run})
    experiment.write_shared()

    page = page_of(tmp_path)

    assert "script" not in page.tags
    assert "img" not in page.tags
    assert "alert('x')" in page.text


def test_a_mean_curve_ends_with_its_shortest_seed() -> None:
    curves = [[(1.0, 2.0), (2.0, 4.0), (3.0, 5.0)], [(1.0, 4.0), (2.0, 8.0)]]

    assert mean_curve(curves) == [(1.0, 3.0), (2.0, 6.0)]


def test_the_page_has_another_cohort_in_a_section_of_its_own(tmp_path: Path) -> None:
    experiment = SampleExperiment(tmp_path, seeds=(17,), other_seed=5)
    experiment.write_shared()
    experiment.write_unit("stage1_grpo", 17)
    experiment.write_unit("eag_rl", 17)

    page = page_of(tmp_path)

    assert page.open == []
    for words in (
        "Another test cohort: synthetic",
        "the same arms trained on synthetic",
        "Logistic regression, shared features",
    ):
        assert words in page.text


def test_the_page_has_no_section_without_another_cohort(whole: SampleExperiment) -> None:
    assert "Another test cohort" not in page_of(whole.folder).text


def test_every_model_of_the_record_has_a_colour_of_its_own() -> None:
    colours = [REFERENCE_COLOURS[method] for method in RECORD_METHODS]

    assert len(set(colours)) == len(RECORD_METHODS)
