"""What an experiment finds in its folder, refuses and removes, before and without any training."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from ehr.chat import ChatFrame
from ehr.errors import ConfigurationError, DataError, RunFolderError
from services.models import LocalModel
from training.arms import shared_config, unit_config, units_of
from training.config import RunConfig
from training.config_loading import load_config
from training.learn import learn
from training.learn_curve import size_folder
from training.learn_experiment import OWN, SHARED, Experiment
from training.main_job import STAGES
from training.progress import Reporter
from training.run_folder import RunFolder
from training.session import Session
from training.stages import Pipeline

CONFIGS = Path(__file__).parents[3] / "configs"
SHORT = ("prompt.kind=short_answer", "search.method=samples", "evaluate.faithfulness_patients=0")


def settings(*more: str) -> RunConfig:
    return load_config([CONFIGS / "tiny.yaml"], [*SHORT, *more])


class Folder:
    """An experiment's folder with stages marked as done, as if they had run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def session(self, config: RunConfig) -> Session:
        session = Session(config, RunFolder(self.path), Reporter(Console(file=io.StringIO())))
        session.model = LocalModel(
            path=self.path,
            name="none",
            source="none",
            sha256="0" * 64,
            description="none",
            chat=ChatFrame(prefix="", suffix=""),
        )
        return session

    def finish(self, config: RunConfig) -> None:
        """Marks every stage of the experiment as done under its settings."""
        shared = shared_config(config)
        self._finish(self.path, shared, SHARED)
        for unit in units_of(shared):
            folder = self.path / "arms" / unit.name
            folder.mkdir(parents=True)
            for stage in SHARED:
                (folder / stage).symlink_to(self.path / stage)
            self._finish(folder, unit_config(shared, unit), OWN)

    def _finish(self, path: Path, config: RunConfig, only: tuple[str, ...]) -> None:
        folder = RunFolder(path)
        folder.create()
        folder.write_config(config, None)
        describe = lambda: "0" * 16  # noqa: E731
        pipeline = Pipeline(STAGES, folder, config, Reporter(), describe, only=only)
        for stage in pipeline.wanted(None):
            record = folder.stage(stage.name)
            record.begin(pipeline.key(stage))
            for output in stage.outputs:
                (record.folder / output).write_text("done")
            record.finish(1.0, "output")

    def experiment(self, config: RunConfig, redo: str | None = None) -> Experiment:
        return Experiment(self.session(shared_config(config)), redo)

    def done(self) -> dict[str, set[str]]:
        """Units with the stages of their own that are done."""
        return {
            f"{path.parent.name}/{path.name}": {
                stage for stage in OWN if RunFolder(path).stage(stage).done
            }
            for path in sorted(self.path.glob("arms/*/seed-*"))
        }


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path)
    made.finish(settings("learn.arms=[stage1,eag_rl]", "learn.seeds=[17,18]"))
    return made


def test_a_finished_experiment_has_nothing_to_do(folder: Folder) -> None:
    same = settings("learn.arms=[stage1,eag_rl]", "learn.seeds=[17,18]")

    assert folder.experiment(same).look() == ([], [])


def test_a_seed_more_is_one_unit_more(folder: Folder) -> None:
    more = settings("learn.arms=[stage1,eag_rl]", "learn.seeds=[19]")

    _, waiting = folder.experiment(more).look()

    assert [unit.name for unit in waiting] == ["eag_rl/seed-19"]


def test_a_unit_that_is_not_named_is_refused_where_it_was_made_otherwise(folder: Folder) -> None:
    other = settings(
        "learn.arms=[without_adaptive_clip]", "learn.seeds=[17]", "grpo.learning_rate=0.01"
    )

    with pytest.raises(RunFolderError, match=r"unit eag_rl/seed-17: .*grpo\.learning_rate") as told:
        folder.experiment(other).look()

    assert "does not name that unit" in str(told.value)
    assert str(folder.path / "arms" / "eag_rl" / "seed-17") in str(told.value)


def test_one_stage_made_again_goes_from_every_named_unit_at_once(folder: Folder) -> None:
    same = settings("learn.arms=[stage1,eag_rl]", "learn.seeds=[17,18]")
    experiment = folder.experiment(same, redo="grpo")
    _, waiting = experiment.look()

    experiment._remove_what_is_redone()

    assert [unit.name for unit in waiting] == ["eag_rl/seed-17", "eag_rl/seed-18"]
    assert folder.done() == {
        "eag_rl/seed-17": set(),
        "eag_rl/seed-18": set(),
        "stage1/seed-17": {"evaluate"},
    }


def test_evaluation_made_again_keeps_what_was_trained(folder: Folder) -> None:
    one = settings("learn.arms=[eag_rl]", "learn.seeds=[17]")

    folder.experiment(one, redo="evaluate")._remove_what_is_redone()

    assert folder.done() == {
        "eag_rl/seed-17": {"grpo"},
        "eag_rl/seed-18": {"grpo", "evaluate"},
        "stage1/seed-17": {"evaluate"},
    }


def test_another_stage_1_leaves_no_unit_of_the_old_one(folder: Folder) -> None:
    one = settings("learn.arms=[eag_rl]", "learn.seeds=[17]")

    folder.experiment(one, redo="sft")._remove_what_is_redone()

    assert set().union(*folder.done().values()) == set()


def test_what_an_arm_makes_of_the_settings_is_checked_before_anything_is_written(
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "run"
    invalid = settings("learn.arms=[stage1,rare_features]", "reward.attention_weighting=stability")

    with pytest.raises(ConfigurationError, match=r"arm rare_features of learn\.arms"):
        learn(invalid, run_dir)

    assert not run_dir.exists()


def test_stage_1_where_it_does_not_fit_is_named_with_the_arms_that_need_it() -> None:
    without = load_config(
        [CONFIGS / "tiny.yaml"],
        ["prompt.kind=short_answer", "sft.enabled=false", "learn.arms=[vanilla,stage1]"],
    )

    with pytest.raises(ConfigurationError, match=r"learn\.arms \(stage1 need"):
        shared_config(without)


@pytest.mark.parametrize(("sizes", "told"), [("[30,4]", "train-4"), ("[10,9999]", "train-9999")])
def test_a_size_that_cannot_be_is_refused_before_the_first_one_begins(
    tmp_path: Path, sizes: str, told: str
) -> None:
    config = settings(f"learn.train_patients={sizes}", "grpo.patients_per_step=6")

    with pytest.raises(DataError, match=told):
        learn(config, tmp_path)

    assert not list(tmp_path.glob("train-*"))


def test_a_size_made_otherwise_is_refused_before_another_one_begins(tmp_path: Path) -> None:
    arms = ("learn.arms=[stage1]", "learn.seeds=[17]")
    ten = settings("cohort.train_patients=10", *arms)
    Folder(tmp_path / size_folder(10)).finish(ten)
    other = settings("learn.train_patients=[20]", "cohort.seed=5", *arms)

    with pytest.raises(RunFolderError, match=r"train-10: .*cohort\.seed"):
        learn(other, tmp_path)

    assert not (tmp_path / "train-20").exists()
