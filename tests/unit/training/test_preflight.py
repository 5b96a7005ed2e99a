"""What a run's settings need of its cohort, asked before any long stage."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from ehr.cohorts.cohort import save_cohort
from ehr.errors import ConfigurationError, DataError
from tests.expert_cohort import tiny_cohort
from training.config.loading import load_config
from training.preflight import require_fitting_cohort, require_fitting_inputs
from training.run.folder import RunFolder
from training.run.progress import Display
from training.run.session import Session

TINY = Path(__file__).parents[3] / "configs" / "tiny.yaml"
COHORT = tiny_cohort()
NUM_TEST = len(COHORT.splits["test"])
NUM_TRAIN = len(COHORT.splits["train"])


@pytest.mark.parametrize(
    ("stage", "settings", "error", "expected"),
    [
        (
            "evaluate",
            [f"evaluate.num_patients={NUM_TEST + 1}"],
            ConfigurationError,
            rf"evaluate\.num_patients is {NUM_TEST + 1}, but the test split has {NUM_TEST}",
        ),
        (
            "expert",
            [f"expert.num_salient_features={len(COHORT.features) + 1}"],
            ConfigurationError,
            r"expert\.num_salient_features is .*cohort\.source=synthetic",
        ),
        (
            "grpo",
            [f"grpo.patients_per_step={NUM_TRAIN + 1}", "grpo.balance=false"],
            DataError,
            r"grpo\.patients_per_step",
        ),
    ],
)
def test_settings_that_ask_for_more_than_the_cohort_has(stage, settings, error, expected):
    config = load_config([TINY], settings)

    with pytest.raises(error, match=expected):
        require_fitting_cohort(config, COHORT, [stage])
    require_fitting_cohort(config, COHORT, ["sft"])  # reads none of them


@pytest.mark.parametrize("num", [f"{NUM_TEST}", "null"])
def test_all_test_patients_may_be_asked_about(num):
    config = load_config([TINY], [f"evaluate.num_patients={num}"])

    require_fitting_cohort(config, COHORT, ["evaluate"])


def said(folder: Path, stage: str, *settings: str) -> str:
    save_cohort(COHORT, folder / "cohort")
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=False, width=200)
    config = load_config([TINY], settings)

    require_fitting_inputs(Session(config, RunFolder(folder), Display(console)), [stage])

    return terminal.getvalue()


def test_a_row_that_a_switched_off_stage_leaves_out_is_said(tmp_path):
    told = said(tmp_path, "evaluate", "grpo.enabled=false")

    assert "evaluate.methods: stage2 left out" in told


def test_a_search_of_more_patients_than_there_are_is_said(tmp_path):
    more = f"search.num_patients={NUM_TRAIN + 1}"

    told = said(tmp_path, "search", more)

    assert f"{more.replace('=', ' is ')}, but the train split has {NUM_TRAIN} patients" in told
    assert said(tmp_path, "search", f"search.num_patients={NUM_TRAIN}") == ""
    assert said(tmp_path, "search", "search.num_patients=null") == ""
    assert said(tmp_path, "evaluate", more) == ""


def test_the_patients_of_the_searched_split_count(tmp_path):
    others = ("search.split=test", "search.value=label_free", "search.balance=false")
    num = f"search.num_patients={NUM_TEST + 1}"

    told = said(tmp_path, "search", *others, num, "sft.enabled=false")

    assert f"the test split has {NUM_TEST} patients" in told
