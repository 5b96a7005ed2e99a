"""Another cohort's patients are looked at before a run does anything for them."""

from pathlib import Path

import pytest

from ehr.errors import DataError
from training.config.loading import load_config
from training.evaluation.other_patients import read_other_cohort
from training.main_job import run_stages

TINY = Path(__file__).parents[3] / "configs" / "tiny.yaml"
SAME = "evaluate.other_cohort={source: synthetic, num_patients: 60, num_visits: 2, seed: SEED}"


def test_a_run_with_shared_patients_is_refused_before_its_first_stage(tmp_path: Path):
    config = load_config(
        [TINY], [SAME.replace("SEED", "42"), "evaluate.other_cohort.test_fraction=0.6"]
    )

    with pytest.raises(DataError, match=r"of its 36 test patients.* training and validation"):
        run_stages(config, tmp_path / "run", target="expert", redo=None)

    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_the_cohort_alone_is_built_whatever_is_asked_about_later(tmp_path: Path):
    config = load_config(
        [TINY], [SAME.replace("SEED", "42"), "evaluate.other_cohort.test_fraction=0.6"]
    )

    run_stages(config, tmp_path / "run", target="cohort", redo=None)

    assert (tmp_path / "run" / "cohort" / "summary.json").exists()


def test_there_may_be_no_other_cohort():
    assert read_other_cohort(load_config([TINY])) is None
