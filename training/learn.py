"""`eag-rl learn`: arms of an experiment over seeds, from one shared Stage 1.

RUN is an ordinary run folder with the stages that all arms share. Each arm and seed (a unit) is a
run folder of its own below RUN/arms, in which the shared stages are links to RUN's: whatever reads
a run folder reads a unit's. A unit that is finished is not run again; an interrupted one goes on
behind its last committed step.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ehr.cohort import choose_patients
from ehr.errors import DataError, RunFolderError
from services.environment import prepare_process
from training.arms import Unit, unit_config, units_of
from training.config import RunConfig
from training.learn_curve import curve_lines, size_folder, write_learn_curve
from training.learn_estimate import (
    UnitCost,
    cost_line,
    cost_record,
    left_line,
    mean_length,
    seconds_left,
    unit_cost,
)
from training.learn_results import read_learn_results, write_learn_results
from training.learn_table import learn_table
from training.main_job import STAGES, describe_model
from training.progress import Reporter
from training.report_learn import write_learn_page
from training.report_learn_curve import write_curve_page
from training.run_folder import RunFolder, write_json
from training.session import Session
from training.stages import Pipeline, Stage

logger = logging.getLogger(__name__)

SHARED = ("cohort", "expert", "search", "sft")
"""Stages of which a unit has links to the run's."""

OWN = ("grpo", "direct_sft", "evaluate")
"""Stages of a unit's own."""

_NUM_MEASURED_PROMPTS = 16
"""Prompts whose length is measured for the estimate."""


def learn(config: RunConfig, run_dir: Path, redo: str | None = None) -> list[str]:
    """Runs what is missing of an experiment; returns its table as lines.

    Args:
        config: the experiment, section `learn` included.
        run_dir: where it is kept.
        redo: a stage that is made again, and all that follows from it: a shared one, or one of
            the units' own.

    Raises:
        RunFolderError: if something there was made under another configuration.
        EagRlError: whatever stops a stage; what is finished is kept.
    """
    prepare_process(config.run.verbose)
    reporter = Reporter()
    if not config.learn.train_patients:
        return _one_experiment(config, RunFolder(run_dir), reporter, redo)
    RunFolder(run_dir).create()
    lines: list[str] = []
    curve: list[str] = []
    for size in config.learn.train_patients:
        sized = config.cohort.model_copy(update={"train_patients": size})
        folder = RunFolder(run_dir / size_folder(size))
        reporter.say(f"training patients: {'all' if size is None else size}")
        lines += [
            f"training patients: {'all' if size is None else size}",
            *_one_experiment(config.model_copy(update={"cohort": sized}), folder, reporter, redo),
        ]
        found = write_learn_curve(run_dir)
        page = write_curve_page(run_dir, config.run.name or run_dir.name, found)
        curve = [*curve_lines(found), f"page: {page}"]
    return [*lines, *curve]


def _one_experiment(
    config: RunConfig, folder: RunFolder, reporter: Reporter, redo: str | None
) -> list[str]:
    folder.create()
    config = shared_config(config)
    with folder.lock(), Session(config, folder, reporter) as session:
        experiment = _Experiment(session, redo)
        experiment.run()
        return experiment.lines()


def shared_config(config: RunConfig) -> RunConfig:
    """The configuration of what all arms share: with Stage 1 exactly where an arm needs it."""
    needs_stage1 = any(unit.arm.needs_stage1 for unit in units_of(config))
    tree = config.model_dump()
    tree["sft"]["enabled"] = needs_stage1
    return RunConfig.model_validate(tree)


class _Experiment:
    """One experiment in its run folder.

    Args:
        session: of the shared stages.
        redo: as in `learn`.
    """

    def __init__(self, session: Session, redo: str | None) -> None:
        self._session = session
        self._redo = redo
        self._units = units_of(session.config)
        self._describe = lambda: session.model.sha256[:16]
        self._target = "sft" if session.config.sft.enabled else "expert"

    def run(self) -> None:
        """Shared stages first, then unit after unit."""
        session, reporter = self._session, self._session.reporter
        shared_redo = self._redo if self._redo in SHARED else None
        pipeline = Pipeline(STAGES, session.folder, session.config, reporter, self._describe)
        shared = pipeline.check(self._target, shared_redo)
        # Everything is looked at before anything begins: a refused unit must not cost an hour.
        # Units that wait for a shared stage cannot be looked at yet.
        waiting = [unit for unit in self._units if shared or self._todo(unit)]
        if not shared and not waiting:
            reporter.say("every unit is done; nothing to run")
            return
        session.folder.write_config(session.config, describe_model(session))
        if shared_redo is not None:
            self._remove_units()
        session.stages = (*(stage.name for stage in shared), *OWN)
        first = [stage for stage in shared if not stage.needs]
        pipeline.run([each for each in first if each.name == "cohort"], session, lambda: None)
        self._require_enough_patients(waiting)
        pipeline.run([each for each in first if each.name != "cohort"], session, lambda: None)
        session.deploy_generator()
        pipeline.run([stage for stage in shared if stage.needs], session, lambda: None)
        costs = self._costs()
        reporter.say(cost_line(costs, self._finished()))
        for unit in waiting:
            self._run_unit(unit)
            self._write_early()
            done = self._finished()
            reporter.say(left_line(seconds_left(costs, done), len(costs) - len(done)))

    def _require_enough_patients(self, units: Sequence[Unit]) -> None:
        """Before minutes go into an expert: a unit that can draw no batch is refused."""
        # torch, which a look at a finished experiment does without
        from training.grpo_batch import require_enough_patients

        cohort = self._session.cohort
        labels = [cohort.labels[patient] for patient in cohort.splits["train"]]
        for unit in units:
            if unit.arm.own_stage == "grpo":
                try:
                    require_enough_patients(labels, unit_config(self._session.config, unit).grpo)
                except DataError as error:
                    raise DataError(f"unit {unit.name}: {error}") from None

    def lines(self) -> list[str]:
        """The table of all finished units, and where the page is; both are written."""
        self._write()
        run_dir = self._session.folder.path
        return [*learn_table(read_learn_results(run_dir)), f"page: {run_dir / 'learn.html'}"]

    def _folder(self, unit: Unit) -> RunFolder:
        return RunFolder(self._session.folder.path / "arms" / unit.name)

    def _look(self, unit: Unit, reporter: Reporter) -> tuple[Pipeline, list[Stage]]:
        """The unit's pipeline, and those of its stages that are not done."""
        config = unit_config(self._session.config, unit)
        self._link(unit)
        pipeline = Pipeline(STAGES, self._folder(unit), config, reporter, self._describe, only=OWN)
        has_it = self._redo in {stage.name for stage in pipeline.wanted("evaluate")}
        try:
            return pipeline, pipeline.check("evaluate", self._redo if has_it else None)
        except RunFolderError as error:
            raise RunFolderError(f"unit {unit.name}: {error}") from None

    def _todo(self, unit: Unit) -> list[Stage]:
        return self._look(unit, Reporter(Console(quiet=True)))[1]

    def _run_unit(self, unit: Unit) -> None:
        session = self._session
        session.reporter.say(f"unit {unit.name}: {unit.arm.text}")
        pipeline, todo = self._look(unit, session.reporter)
        folder, config = self._folder(unit), pipeline.config
        folder.write_config(config, describe_model(session))
        pipeline.run(todo, session.unit(config, folder), lambda: None)

    def _remove_units(self) -> None:
        """What was made from a shared stage that is made again."""
        for unit in self._units:
            for stage in OWN:
                self._folder(unit).stage(stage).remove()

    def _link(self, unit: Unit) -> None:
        """Makes the unit's folder, with links to the shared stages."""
        folder = self._folder(unit)
        folder.create()
        for stage in SHARED:
            link = folder.path / stage
            if not link.is_symlink():
                link.symlink_to(Path("..") / ".." / ".." / stage, target_is_directory=True)

    def _finished(self) -> dict[str, float]:
        """Seconds of each finished unit."""
        return {
            unit.name: self._seconds(unit)
            for unit in self._units
            if self._folder(unit).stage("evaluate").done
        }

    def _seconds(self, unit: Unit) -> float:
        records = (self._folder(unit).stage(stage).read() or {} for stage in OWN)
        return sum(record.get("seconds", 0.0) for record in records)

    def _costs(self) -> dict[str, UnitCost]:
        """Tokens of every unit, from the length of some prompts."""
        session = self._session
        cohort, kind = session.cohort, session.config.prompt.kind
        some = choose_patients(cohort, "train", _NUM_MEASURED_PROMPTS, balance=False, seed=0)
        length = mean_length(len(each.token_ids) for each in session.prompts(some, kind))
        sizes = len(cohort.splits["test"]), len(cohort.splits["train"])
        costs = {
            unit.name: unit_cost(unit_config(session.config, unit), unit, length, *sizes)
            for unit in self._units
        }
        known = {name: cost_record(cost) for name, cost in costs.items()}
        write_json(session.folder.path / "learn" / "estimate.json", known)
        return costs

    def _write_early(self) -> None:
        try:
            self._write()
        except Exception:  # a page is not worth a run; `lines` writes it again and raises
            logger.exception("the experiment's results could not be written yet")

    def _write(self) -> None:
        run_dir = self._session.folder.path
        write_learn_results(run_dir)
        write_learn_page(run_dir)
