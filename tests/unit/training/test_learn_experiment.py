"""What an experiment finds in its folder, refuses and removes, before and without any training."""

import io
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ehr.cohorts.cohort import save_cohort
from ehr.cohorts.loaders import build_cohort
from ehr.errors import ConfigurationError, DataError, ResourceError, RunFolderError
from ehr.language.chat import ChatFrame
from services.models import LocalModel
from training.config.loading import load_config
from training.config.run import RunConfig
from training.experiments.arms import shared_config, unit_config, units_of
from training.experiments.curve import size_folder
from training.experiments.experiment import Experiment
from training.experiments.folder import SHARED_STAGES
from training.experiments.learn import learn
from training.experiments.records import OWN_STAGES, found_units
from training.run.folder import RunFolder
from training.run.pipeline import Pipeline
from training.run.progress import Display
from training.run.session import Session
from training.run.stages import STAGES

CONFIGS = Path(__file__).parents[3] / "configs"
SHORT = ("prompt.kind=short_answer", "search.method=samples", "evaluate.faithfulness_patients=0")


def settings(*more: str) -> RunConfig:
    return load_config([CONFIGS / "tiny.yaml"], [*SHORT, *more])


class Folder:
    """An experiment's folder with stages marked as done, as if they had run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def session(self, config: RunConfig, make: type[Session] = Session) -> Session:
        session = make(config, RunFolder(self.path), Display(Console(file=io.StringIO())))
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
        self._finish(self.path, shared, "sft" if shared.sft.enabled else "expert", SHARED_STAGES)
        for unit in units_of(shared):
            folder = self.path / "arms" / unit.name
            folder.mkdir(parents=True)
            for stage in SHARED_STAGES:
                (folder / stage).symlink_to(self.path / stage)
            self._finish(folder, unit_config(shared, unit), "evaluate", OWN_STAGES)

    def _finish(self, path: Path, config: RunConfig, target: str, only: tuple[str, ...]) -> None:
        folder = RunFolder(path)
        folder.create()
        folder.write_config(config, None)
        content = self.session(config).model.content
        pipeline = Pipeline(STAGES, folder, config, Display(), lambda: content, only=only)
        for stage in pipeline.wanted(target):
            record = folder.stage(stage.name)
            record.begin(pipeline.key(stage))
            for output in stage.outputs:
                (record.folder / output).write_text("done")
            if stage.name == "cohort":
                save_cohort(build_cohort(config.cohort), record.folder)
            record.finish(1.0, "output")

    def experiment(self, config: RunConfig, redo: str | None = None) -> Experiment:
        return Experiment(self.session(shared_config(config)), redo)

    def done(self) -> dict[str, set[str]]:
        """Units with the stages of their own that are done."""
        return {
            f"{path.parent.name}/{path.name}": {
                stage for stage in OWN_STAGES if RunFolder(path).stage(stage).done
            }
            for path in sorted(self.path.glob("arms/*/seed-*"))
        }


ALL = ("learn.arms=[stage1,eag_rl]", "learn.seeds=[17,18]")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path)
    made.finish(settings(*ALL))
    return made


def test_a_finished_experiment_has_nothing_to_do(folder: Folder) -> None:
    same = settings(*ALL)

    assert folder.experiment(same).look() == ([], [])


def test_a_search_that_no_arm_needs_is_not_waited_for(tmp_path: Path) -> None:
    config = load_config(
        [CONFIGS / "tiny.yaml"],
        [
            "search.value=label_free", "search.balance=false", "search.only_correct=false",
            "sft.enabled=false", "learn.arms=[vanilla,without_stage1]", "learn.seeds=[17]",
        ],
    )  # fmt: skip
    made = Folder(tmp_path)
    made.finish(config)

    assert made.experiment(config).look() == ([], [])


def test_a_seed_more_is_one_unit_more(folder: Folder) -> None:
    more = settings("learn.arms=[stage1,eag_rl]", "learn.seeds=[19]")

    _, waiting = folder.experiment(more).look()

    assert [unit.name for unit in waiting] == ["eag_rl/seed-19"]


def test_a_unit_that_is_not_named_is_refused_where_it_was_made_otherwise(folder: Folder) -> None:
    other = settings(
        "learn.arms=[without_adaptive_clip]", "learn.seeds=[17]", "grpo.learning_rate=0.01"
    )

    with pytest.raises(RunFolderError, match=r"unit eag_rl/seed-17 .*grpo\.learning_rate") as told:
        folder.experiment(other).look()

    assert "not named by this command" in str(told.value)
    assert str(folder.path / "arms" / "eag_rl" / "seed-17") in str(told.value)


def test_a_unit_that_is_not_named_and_does_not_fit_is_told_as_such(tmp_path: Path) -> None:
    made = Folder(tmp_path)
    made.finish(settings("learn.arms=[rare_features]", "learn.seeds=[17]"))
    other = settings("learn.arms=[vanilla]", "reward.attention_weighting=stability")

    with pytest.raises(RunFolderError, match="unit rare_features/seed-17 is not named"):
        made.experiment(other).look()


def test_what_waits_for_no_shared_stage_is_refused_before_that_begins(tmp_path: Path) -> None:
    made = Folder(tmp_path)
    made.finish(settings("learn.arms=[vanilla]", "learn.seeds=[17]"))

    for arms in ("[eag_rl]", "[vanilla,eag_rl]"):
        with pytest.raises(RunFolderError, match=r"unit vanilla/seed-17.*evaluate\.num_patients"):
            made.experiment(settings(f"learn.arms={arms}", "evaluate.num_patients=5")).look()


def test_looking_writes_nothing(folder: Folder) -> None:
    before = sorted(folder.path.rglob("*"))

    folder.experiment(settings("learn.arms=[stage1,eag_rl]", "learn.seeds=[17,18,99]")).look()

    assert sorted(folder.path.rglob("*")) == before


def test_a_cluster_that_does_not_answer_is_said_before_anything_is_written(
    folder: Folder,
) -> None:
    before = sorted(folder.path.rglob("*"))
    elsewhere = ("cluster.address=nowhere.invalid:6379", "learn.seeds=[19]")

    with pytest.raises(ResourceError, match=r"no Ray cluster at nowhere\.invalid:6379"):
        folder.experiment(settings("learn.arms=[stage1,eag_rl]", *elsewhere)).run()

    assert sorted(folder.path.rglob("*")) == before


def test_a_folder_without_a_stage_is_no_unit(folder: Folder) -> None:
    (folder.path / "arms" / "eag_rl" / "seed-99").mkdir()

    found = [unit.name for unit in found_units(folder.path)]

    assert found == ["stage1/seed-17", "eag_rl/seed-17", "eag_rl/seed-18"]


class NoRoom(Session):
    """A session whose cluster is too small."""

    def connect(self, stages: Collection[str] = (), listen: bool = False) -> Any:
        raise ResourceError("the cluster is too small")


class Room(NoRoom):
    """A session whose cluster is asked for nothing."""

    def connect(self, stages: Collection[str] = (), listen: bool = False) -> Any:
        return None


def redone(folder: Folder, config: RunConfig, redo: str) -> Experiment:
    experiment = Experiment(folder.session(shared_config(config), Room), redo)
    experiment.look()
    experiment.remove()
    return experiment


def test_one_stage_made_again_goes_from_every_named_unit_at_once(folder: Folder) -> None:
    report = folder.path / "arms" / "eag_rl" / "seed-17" / "report.html"
    report.write_text("old")

    experiment = redone(folder, settings(*ALL), "grpo")

    assert folder.done() == {
        "eag_rl/seed-17": set(),
        "eag_rl/seed-18": set(),
        "stage1/seed-17": {"evaluate"},
    }
    assert not report.exists()
    assert [unit.name for unit in experiment.look()[1]] == ["eag_rl/seed-17", "eag_rl/seed-18"]


def test_evaluation_made_again_keeps_what_was_trained(folder: Folder) -> None:
    redone(folder, settings("learn.arms=[eag_rl]", "learn.seeds=[17]"), "evaluate")

    assert folder.done() == {
        "eag_rl/seed-17": {"grpo"},
        "eag_rl/seed-18": {"grpo", "evaluate"},
        "stage1/seed-17": {"evaluate"},
    }


def test_another_stage_1_leaves_no_unit_of_the_old_one_and_every_other_unit(tmp_path: Path) -> None:
    made = Folder(tmp_path)
    made.finish(
        settings("learn.arms=[vanilla,sft,stage1,eag_rl,without_stage1]", "learn.seeds=[17]")
    )

    redone(made, settings("learn.arms=[eag_rl]", "learn.seeds=[17]"), "sft")

    assert made.done() == {
        "eag_rl/seed-17": set(),
        "sft/seed-17": {"direct_sft", "evaluate"},
        "stage1/seed-17": set(),
        "vanilla/seed-17": {"evaluate"},
        "without_stage1/seed-17": {"grpo", "evaluate"},
    }
    assert not (tmp_path / "sft" / "stage.json").exists()
    assert (tmp_path / "search" / "stage.json").exists()


@pytest.mark.parametrize("redo", ["grpo", "sft", "cohort"])
@pytest.mark.parametrize(
    ("make_session", "setting", "error"),
    [
        (NoRoom, "grpo.steps=2", ResourceError),
        (Room, "grpo.patients_per_step=64", DataError),
    ],
)
def test_a_refused_command_removes_nothing(
    folder: Folder, redo: str, make_session: type[Session], setting: str, error: type[Exception]
) -> None:
    before = folder.done()
    session = folder.session(shared_config(settings(*ALL, setting)), make_session)

    with pytest.raises(error):
        Experiment(session, redo).run()

    assert folder.done() == before
    assert (folder.path / "sft" / "stage.json").exists()


def test_a_cohort_that_cannot_be_costs_nothing(folder: Folder) -> None:
    before = folder.done()
    other = settings(*ALL, "cohort.train_patients=9999")

    with pytest.raises(DataError, match="9999"):
        Experiment(folder.session(shared_config(other), Room), "cohort").run()

    assert folder.done() == before


def test_a_stage_that_waits_for_nothing_redone_is_looked_at_before_anything_goes(
    tmp_path: Path,
) -> None:
    made = Folder(tmp_path)
    made.finish(settings("learn.arms=[sft]", "learn.seeds=[17]"))
    other = settings("learn.arms=[sft]", "learn.seeds=[17]", "learner.lora_rank=4")

    with pytest.raises(RunFolderError, match=r"unit sft/seed-17: direct_sft.*--redo cohort makes"):
        made.experiment(other, redo="expert").look()

    assert made.done() == {"sft/seed-17": {"direct_sft", "evaluate"}}


def test_only_what_a_named_arm_has_is_made_again(folder: Folder) -> None:
    with pytest.raises(ConfigurationError, match=r"--redo sft: no arm of learn.arms \(vanilla\)"):
        folder.experiment(settings("learn.arms=[vanilla]"), redo="sft").look()


def test_a_removed_unit_leaves_no_results_behind(folder: Folder) -> None:
    (folder.path / "learn").mkdir()
    old = [folder.path / name for name in ("learn/results.json", "learn/results.md", "learn.html")]
    for path in old:
        path.write_text("old")

    redone(folder, settings(*ALL), "evaluate")

    assert not any(path.exists() for path in old)


def test_a_unit_without_the_stage_1_it_came_from_is_compared_all_the_same(folder: Folder) -> None:
    shutil.rmtree(folder.path / "sft")
    other = settings("learn.arms=[vanilla]", "grpo.learning_rate=0.01")

    with pytest.raises(RunFolderError, match=r"unit stage1/seed-17 is not named"):
        folder.experiment(other).look()


def no_engine(self: Session) -> None:
    raise ResourceError("no engine")


def test_what_is_made_again_is_gone_before_the_first_unit_begins(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Room, "deploy_generator", no_engine)
    session = folder.session(shared_config(settings(*ALL)), Room)

    with pytest.raises(ResourceError, match="no engine"):
        Experiment(session, "grpo").run()

    assert folder.done()["eag_rl/seed-17"] == folder.done()["eag_rl/seed-18"] == set()


def test_what_is_made_again_is_gone_from_every_size_before_the_first_one_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = ("learn.arms=[vanilla]", "learn.seeds=[17]")
    sizes = [Folder(tmp_path / size_folder(size)) for size in (10, 20)]
    for size, of_size in zip((10, 20), sizes, strict=True):
        of_size.finish(settings(f"cohort.train_patients={size}", *arms))
    monkeypatch.setattr(Session, "connect", Room.connect)
    monkeypatch.setattr(Session, "deploy_generator", no_engine)

    with pytest.raises(ResourceError, match="no engine"):
        learn(settings("learn.train_patients=[10,20]", *arms), tmp_path, redo="evaluate")

    assert [of_size.done() for of_size in sizes] == [{"vanilla/seed-17": set()}] * 2


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
    arms = ("learn.arms=[vanilla]", "learn.seeds=[17]")
    Folder(tmp_path / size_folder(10)).finish(settings("cohort.train_patients=10", *arms))
    before = sorted(tmp_path.rglob("*"))
    other = settings("learn.train_patients=[20]", "cohort.seed=5", *arms)

    with pytest.raises(RunFolderError, match=r"train-10: .*cohort\.seed.*Add the size"):
        learn(other, tmp_path)

    assert sorted(tmp_path.rglob("*")) == before


def test_a_finished_cohort_that_is_too_small_is_refused_before_another_size_begins(
    tmp_path: Path,
) -> None:
    ten = settings("cohort.train_patients=10", "learn.arms=[vanilla]", "learn.seeds=[17]")
    Folder(tmp_path / size_folder(10)).finish(ten)
    shutil.rmtree(tmp_path / size_folder(10) / "arms")
    more = ("learn.arms=[without_stage1]", "grpo.patients_per_step=16", "grpo.balance=false")

    with pytest.raises(DataError, match=r"train-10: .*grpo\.patients_per_step"):
        learn(settings("learn.train_patients=[30,10]", *more), tmp_path)

    assert not (tmp_path / "train-30").exists()


def test_another_cohort_of_the_same_patients_is_refused_at_once(tmp_path: Path) -> None:
    same = "evaluate.other_cohort={num_patients: 40, num_visits: 2, test_fraction: 0.5}"
    config = settings("cohort.num_patients=40", same)

    with pytest.raises(DataError, match=r"evaluate\.other_cohort must have other test patients"):
        Experiment(Folder(tmp_path).session(shared_config(config)), "cohort").look()
