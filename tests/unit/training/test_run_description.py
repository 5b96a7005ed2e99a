"""config.json says what the stages in a folder were made with, whatever later commands ask for."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from ehr.cohorts.cohort import save_cohort
from ehr.errors import RunFolderError
from tests.expert_cohort import tiny_cohort
from training.config.loading import load_config
from training.config.run import RunConfig
from training.interop.reward_function import TrajectoryReward
from training.main_job import _describe
from training.run.folder import RunFolder
from training.run.pipeline import Pipeline
from training.run.progress import Display
from training.run.session import Session
from training.run.stages import STAGES

TINY = Path(__file__).parents[3] / "configs" / "tiny.yaml"
METHODS = "evaluate.methods=[vanilla, sft, stage2]"
EVERYTHING = ("cohort", "expert", "search", "sft", "grpo", "evaluate", "report")


@dataclass
class Made:
    """A run folder whose stages were made one command after the other."""

    folder: RunFolder

    def pipeline(self, *settings: str) -> Pipeline:
        config = load_config([TINY], [METHODS, *settings])
        return Pipeline(STAGES, self.folder, config, Display.silent(), lambda: "weights")

    def described(self, stages: tuple[str, ...], *settings: str) -> RunConfig:
        """config.json behind a command that runs these stages, which are recorded as done."""
        pipeline = self.pipeline(*settings)
        todo = [stage for stage in STAGES if stage.name in stages]
        self.folder.write_config(pipeline.described(todo), None)
        for stage in todo:
            record = self.folder.stage(stage.name)
            record.begin(pipeline.key(stage))
            record.finish(1.0, f"output of {stage.name}")
        return self.folder.read_config()


@pytest.fixture
def finished(tmp_path):
    made = Made(RunFolder(tmp_path))
    made.described(EVERYTHING)
    return made


def test_a_side_stage_leaves_the_reward_that_the_run_was_made_with(finished):
    found = finished.described(("direct_sft",), "reward.accuracy_weight=1", "direct_sft.epochs=3")

    assert found.reward.accuracy_weight == 0.6
    assert found.direct_sft.epochs == 3


def test_of_two_stages_that_read_a_setting_the_later_one_is_described(finished):
    found = finished.described(("direct_sft",), "prompt.units=true")

    assert found.prompt.units is False
    assert finished.folder.read_config("direct_sft").prompt.units is True
    assert finished.folder.read_config("search").prompt.units is False


def test_what_no_stage_has_read_is_as_the_last_command_says_it(tmp_path):
    made = Made(RunFolder(tmp_path))
    made.described(("cohort", "expert"), "grpo.steps=3")

    found = made.described(("search",), "grpo.steps=7", "cluster.num_cpus=5", "expert.epochs=9")

    assert (found.grpo.steps, found.cluster.num_cpus) == (7, 5)
    assert found.expert.epochs == 3


def test_settings_of_speed_are_those_of_the_command_that_ran_the_stage(finished):
    found = finished.described(("direct_sft",), "search.num_actors=4", "expert.num_workers=2")

    assert (found.search.num_actors, found.expert.num_workers) == (1, None)


def test_a_stage_that_is_made_again_is_described_anew(finished):
    finished.folder.stage("evaluate").remove()

    found = finished.described(("evaluate",), "evaluate.num_patients=6", "search.num_rollouts=3")

    assert found.evaluate.num_patients == 6
    assert found.search.num_rollouts == 2


def test_an_experiments_own_section_is_not_rewritten_by_other_commands(tmp_path):
    made = Made(RunFolder(tmp_path))
    made.described(("cohort",), "learn.seeds=[1, 2]")

    assert made.described(("expert",), "learn.seeds=[3]").learn.seeds == (1, 2)


def test_an_experiment_stays_described_as_its_units_were_made(finished):
    unit = finished.folder.path / "arms" / "eag_rl" / "seed-17"
    unit.mkdir(parents=True)

    found = finished.described(("evaluate",), "evaluate.num_samples=4", "prompt.units=true")

    assert (found.evaluate.num_samples, found.prompt.units) == (1, False)
    assert finished.folder.read_config("evaluate").evaluate.num_samples == 4


def test_settings_that_do_not_fit_those_of_a_stage_that_stays_are_refused(finished):
    evaluate = [stage for stage in STAGES if stage.name == "evaluate"]
    other = finished.pipeline(
        "grpo.enabled=false", "model.max_model_len=1100", "prompt.max_prompt_tokens=800"
    )
    finished.folder.stage("evaluate").remove()
    finished.folder.stage("grpo").remove()
    finished.described(("grpo",), "grpo.max_new_tokens=1000")

    with pytest.raises(RunFolderError, match=r"does not fit.*max_model_len.*--run-dir"):
        other.described(evaluate)


def test_readers_take_the_reward_from_the_stage_that_was_made_with_it(finished):
    save_cohort(tiny_cohort(), finished.folder.path / "cohort")
    wrong = load_config([TINY], ["reward.accuracy_weight=1", "grpo.accuracy_weight=0.2"])
    finished.folder.write_config(wrong, None)

    reward = TrajectoryReward.of_run(finished.folder.path)

    assert reward._section.accuracy_weight == 0.6
    assert reward._accuracy_weight is None


def test_a_run_that_was_made_with_what_is_refused_today_stays_readable(finished):
    path = finished.folder.path / "config.json"
    record = json.loads(path.read_text())
    record["config"]["search"]["num_kept_trajectories"] = 5
    record["config"]["run"]["name"] = "a/b"
    path.write_text(json.dumps(record))

    found = finished.folder.read_config()

    assert (found.search.num_kept_trajectories, found.run.name) == (5, "a/b")


def test_without_stage_2_the_reward_is_that_of_the_search(tmp_path):
    made = Made(RunFolder(tmp_path))
    made.described(("cohort", "expert", "search"), "reward.margin_bonus=0.25")
    save_cohort(tiny_cohort(), tmp_path / "cohort")
    made.folder.write_config(load_config([TINY]), None)

    assert TrajectoryReward.of_run(tmp_path)._section.margin_bonus == 0.25


def test_a_command_is_told_which_of_its_settings_change_nothing(finished):
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=False, width=300)
    config = load_config([TINY], [METHODS, "reward.accuracy_weight=1"])
    session = Session(config, finished.folder, Display(console))
    report = [stage for stage in STAGES if stage.name == "report"]

    _describe(finished.pipeline("reward.accuracy_weight=1"), report, session)

    assert "not this command's reward.accuracy_weight=1.0;" in terminal.getvalue()
    assert finished.folder.read_config().reward.accuracy_weight == 0.6
