"""An experiment: arms over seeds, from one shared Stage 1.

RUN is an ordinary run folder with the stages that all arms share. Each arm and seed (a unit) is a
run folder of its own below RUN/arms, in which the shared stages are links to RUN's: whatever reads
a run folder's files reads a unit's. A unit that is finished is not run again; an interrupted one
goes on behind its last committed step. Units that an earlier command made and this one does not
name stay, and enter the results if they were made under the same settings.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial

from ehr.cohorts.cohort import Cohort, choose_patients
from ehr.cohorts.loaders import build_cohort
from ehr.errors import ConfigurationError, DataError, os_error_text
from ehr.whole_files import write_json
from training.config.run import RunConfig
from training.evaluation.other_patients import read_other_cohort, require_another_cohort
from training.experiments.arms import Unit, unit_config, units_of
from training.experiments.estimate import (
    UnitCost,
    cost_line,
    cost_record,
    left_line,
    mean_length,
    seconds_left,
    unit_cost,
)
from training.experiments.folder import SHARED_STAGES, ExperimentFolder
from training.experiments.page import write_learn_page
from training.experiments.records import OWN_STAGES, found_units
from training.experiments.results_file import read_learn_results, write_learn_results
from training.experiments.table import learn_table
from training.grpo.patients import require_patients
from training.main_job import WORK, GrowingReport, describe_model
from training.preflight import require_fitting_inputs
from training.report.page import write_report
from training.run.folder import RunFolder
from training.run.pipeline import Pipeline
from training.run.progress import Display
from training.run.session import Session
from training.run.stages import STAGES, Stage

logger = logging.getLogger(__name__)

_NUM_MEASURED_PROMPTS = 16
"""Prompts whose length is measured for the estimate."""

_NAME_IT = "Name its arm and seed, for --redo to replace it"


class Experiment:
    """One experiment in its run folder.

    Args:
        session: of the shared stages; its configuration is what `shared_config` makes.
        redo: a stage that is made again, and all that follows from it.
    """

    def __init__(self, session: Session, redo: str | None) -> None:
        self._session = session
        self._redo = redo
        self._folder = ExperimentFolder(session)
        found = found_units(session.folder.path)
        self._units = units_of(session.config, found)
        planned = {unit.name for unit in self._units}
        self._kept = [unit for unit in found if unit.name not in planned]
        self._shared = Pipeline(
            STAGES,
            session.folder,
            session.config,
            session.display,
            lambda: session.model.content,
        )

    def look(self) -> tuple[list[Stage], list[Unit]]:
        """The shared stages and the units that are not done.

        Everything is looked at before anything begins, and nothing is written: a refused unit must
        not cost an hour. Units that wait for a shared stage are looked at again behind it.

        Raises:
            RunFolderError: if anything there was made under another configuration.
            DataError: if the training patients are too few for a step of a unit, or among those of
                `evaluate.other_cohort`.
        """
        session = self._session
        self._require_a_unit_with_the_redone_stage()
        target = "sft" if session.config.sft.enabled else "expert"
        shared = self._shared.check(target, self._redo if self._redo in SHARED_STAGES else None)
        pending = frozenset(stage.name for stage in shared)
        waiting = [unit for unit in self._units if self._folder.todo(unit, self._redo)]
        self._folder.require_comparable(self._kept, _NAME_IT, pending)
        if waiting and ("cohort" not in pending or self._redo is not None):
            is_there = "cohort" not in pending
            cohort = session.cohort if is_there else build_cohort(session.config.cohort)
            require_enough_patients_for(session.config, cohort, waiting)
            if (other := read_other_cohort(session.config)) is not None:
                require_another_cohort(cohort, other)
        return shared, waiting

    def _require_a_unit_with_the_redone_stage(self) -> None:
        if self._redo is not None:
            stages = set().union(*(self._folder.needs(unit) for unit in self._units))
            if self._redo not in stages:
                arms = ", ".join(self._session.config.learn.arms)
                raise ConfigurationError(
                    f"--redo {self._redo}: no arm of learn.arms ({arms}) has this stage; name one "
                    "that has it"
                )

    def remove(self) -> None:
        """Removes what is made again, after a look at it.

        It goes from all units at once: a stop must leave no old one among the new. What follows
        from a shared stage goes from units that the command does not name as well. Results go
        first and shared stages last, so that a stop in between leaves nothing that looks finished.
        """
        if self._redo is None:
            return
        run_dir = self._session.folder.path
        for path in (run_dir / "learn.html", *(run_dir / "learn").glob("results.*")):
            path.unlink(missing_ok=True)
        kept = self._kept if self._redo in SHARED_STAGES else []
        for unit in (*self._units, *kept):
            self._folder.remove(unit, self._redo)
        if self._redo in SHARED_STAGES:
            self._shared.remove(self._redo)
        self._redo = None

    def connect(self, shared: Sequence[Stage]) -> None:
        """Joins the cluster, which must have room for these stages and for those of units."""
        self._session.connect([*(stage.name for stage in shared), *OWN_STAGES])

    def run(self) -> None:
        """Shared stages first, then unit after unit."""
        session, display = self._session, self._session.display
        shared, waiting = self.look()
        if not shared and not waiting:
            display.say("every unit is done; nothing to run")
            return
        session.require_cluster()
        model = describe_model(session)
        if self._redo is not None:
            self.connect(shared)  # a cluster that is too small must not cost what is there
            self.remove()
        session.folder.write_config(session.config, model)
        built = [each for each in shared if each.name == "cohort"]
        page = GrowingReport(session)  # of the shared stages: something to look at early
        self._shared.run(built, WORK, session, page.write)
        require_enough_patients_for(session.config, session.cohort, waiting)
        require_fitting_inputs(session, _looked_at(shared, waiting))
        if built and (other := read_other_cohort(session.config)) is not None:
            require_another_cohort(session.cohort, other)
        self.connect(shared)
        session.deploy_generator()
        self._shared.run(
            [each for each in shared if each.name != "cohort"], WORK, session, page.write
        )
        self._folder.require_comparable(self._kept, _NAME_IT)
        waiting = [unit for unit in self._units if self._folder.todo(unit, None)]
        costs = self._costs()
        display.say(cost_line(costs, self._finished()))
        for unit in waiting:
            self._run_unit(unit)
            self._write_early(self._write)
            done = self._finished()
            display.say(left_line(seconds_left(costs, done), len(costs) - len(done)))

    def lines(self) -> list[str]:
        """The table of all finished units, and where the page is; both are written."""
        for unit in (*self._units, *self._kept):
            folder = self._folder.unit(unit).path
            if self._folder.is_done(unit) and not (folder / "report.html").exists():
                self._write_early(partial(write_report, folder))
        self._write()
        run_dir = self._session.folder.path
        return [*learn_table(read_learn_results(run_dir)), f"page: {run_dir / 'learn.html'}"]

    def _run_unit(self, unit: Unit) -> None:
        session = self._session
        session.display.say(f"unit {unit.name}: {unit.arm.text}")
        self._folder.link(unit)
        pipeline, folder = self._folder.pipeline(unit, session.display), self._folder.unit(unit)
        todo = pipeline.check("evaluate")
        folder.write_config(pipeline.config, describe_model(session))
        pipeline.run(todo, WORK, session.unit(pipeline.config, folder), _nothing)
        self._write_early(partial(write_report, folder.path))

    def _finished(self) -> dict[str, float]:
        """Seconds of each finished unit."""
        return {
            unit.name: self._folder.seconds(unit)
            for unit in self._units
            if self._folder.is_done(unit)
        }

    def _costs(self) -> dict[str, UnitCost]:
        """Tokens of every unit, from the length of some prompts."""
        session = self._session
        cohort, kind = session.cohort, session.config.prompt.kind
        some = choose_patients(cohort, "train", _NUM_MEASURED_PROMPTS, balance=False, seed=0)
        length = mean_length(len(each.token_ids) for each in session.prompts(some, kind))
        sizes = {split: len(ids) for split, ids in cohort.splits.items()}
        costs = {
            unit.name: unit_cost(unit_config(session.config, unit), unit, length, sizes)
            for unit in self._units
        }
        known = {name: cost_record(cost) for name, cost in costs.items()}
        write_json(session.folder.path / "learn" / "estimate.json", known)
        return costs

    def _write_early(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            text = os_error_text(error, self._session.folder.path)
            self._session.display.say(f"results could not be written yet: {text}")
        except Exception:  # a page is not worth a run; `lines` writes the results again and raises
            logger.exception("results could not be written yet")

    def _write(self) -> None:
        run_dir = self._session.folder.path
        write_learn_results(run_dir)
        write_learn_page(run_dir)


def require_enough_patients_for(config: RunConfig, cohort: Cohort, units: Sequence[Unit]) -> None:
    """Refuses a unit that can draw no batch, before minutes go into an expert.

    Args:
        config: of the experiment.
        cohort: with the patients that it learns from, and those that choose a step.
        units: those to run.

    Raises:
        DataError: if a step of one draws more patients than there are, or a class has too few
            validation patients to choose a step by.
    """
    for unit in units:
        if unit.arm.own_stage == "grpo":
            try:
                require_patients(cohort, unit_config(config, unit))
            except DataError as error:
                raise DataError(f"unit {unit.name}: {error}") from None


def _looked_at(shared: Sequence[Stage], waiting: Sequence[Unit]) -> set[str]:
    """Stages to run that are the same for all units; of Stage 2 each unit has its own settings."""
    own = {unit.arm.own_stage for unit in waiting} - {None, "grpo"}
    asked = {"evaluate"} if waiting else set()
    return {stage.name for stage in shared} | {str(stage) for stage in own} | asked


def _nothing() -> None:
    """After a stage of a unit nothing else is written."""


def one_experiment(
    config: RunConfig, folder: RunFolder, display: Display, redo: str | None
) -> list[str]:
    """Runs one experiment; returns its result as lines."""
    folder.create()
    with folder.lock(), Session(config, folder, display) as session:
        experiment = Experiment(session, redo)
        experiment.run()
        return experiment.lines()
