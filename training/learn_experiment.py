"""An experiment: arms over seeds, from one shared Stage 1.

RUN is an ordinary run folder with the stages that all arms share. Each arm and seed (a unit) is a
run folder of its own below RUN/arms, in which the shared stages are links to RUN's: whatever reads
a run folder's files reads a unit's. A unit that is finished is not run again; an interrupted one
goes on behind its last committed step. Units that an earlier command made and this one does not
name stay, and enter the results if they were made under the same settings.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from ehr.cohort import Cohort, choose_patients
from ehr.errors import DataError, RunFolderError
from training.arms import Unit, unit_config, units_of
from training.config import RunConfig
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
from training.learn_units import found_units
from training.main_job import STAGES, describe_model
from training.progress import Reporter
from training.report import write_report
from training.report_learn import write_learn_page
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


class Experiment:
    """One experiment in its run folder.

    Args:
        session: of the shared stages; its configuration is what `shared_config` makes.
        redo: a stage that is made again, and all that follows from it.
    """

    def __init__(self, session: Session, redo: str | None) -> None:
        self._session = session
        self._redo = redo
        found = found_units(session.folder.path)
        self._units = units_of(session.config, found)
        planned = {unit.name for unit in self._units}
        self._kept = [unit for unit in found if unit.name not in planned]
        self._describe = lambda: session.model.sha256[:16]
        self._shared = Pipeline(
            STAGES, session.folder, session.config, session.reporter, self._describe
        )

    def look(self) -> tuple[list[Stage], list[Unit]]:
        """The shared stages and the units that are not done.

        Everything is looked at before anything begins: a refused unit must not cost an hour.

        Raises:
            RunFolderError: if anything there was made under another configuration.
        """
        target = "sft" if self._session.config.sft.enabled else "expert"
        shared = self._shared.check(target, self._redo if self._redo in SHARED else None)
        if shared:  # units that wait for a shared stage cannot be looked at yet
            return shared, self._units
        self._require_comparable()
        return [], [unit for unit in self._units if self._look_at(unit, self._redo)]

    def run(self) -> None:
        """Shared stages first, then unit after unit."""
        session, reporter = self._session, self._session.reporter
        shared, waiting = self.look()
        if not shared and not waiting:
            reporter.say("every unit is done; nothing to run")
            return
        session.folder.write_config(session.config, describe_model(session))
        self._remove_what_is_redone()
        session.stages = (*(stage.name for stage in shared), *OWN)
        self._shared.run([each for each in shared if each.name == "cohort"], session, _nothing)
        require_enough_patients_for(session.config, session.cohort, waiting)
        session.deploy_generator()
        self._shared.run([each for each in shared if each.name != "cohort"], session, _nothing)
        self._require_comparable()
        costs = self._costs()
        reporter.say(cost_line(costs, self._finished()))
        for unit in waiting:
            self._run_unit(unit)
            self._write_early(self._write)
            done = self._finished()
            reporter.say(left_line(seconds_left(costs, done), len(costs) - len(done)))

    def lines(self) -> list[str]:
        """The table of all finished units, and where the page is; both are written."""
        self._write()
        run_dir = self._session.folder.path
        return [*learn_table(read_learn_results(run_dir)), f"page: {run_dir / 'learn.html'}"]

    def _folder(self, unit: Unit) -> RunFolder:
        return RunFolder(self._session.folder.path / "arms" / unit.name)

    def _pipeline(self, unit: Unit, reporter: Reporter) -> Pipeline:
        config = unit_config(self._session.config, unit)
        self._link(unit)
        return Pipeline(STAGES, self._folder(unit), config, reporter, self._describe, only=OWN)

    def _look_at(self, unit: Unit, redo: str | None) -> list[Stage]:
        """Those of the unit's stages that are not done."""
        pipeline = self._pipeline(unit, Reporter(Console(quiet=True)))
        has_it = redo in {stage.name for stage in pipeline.wanted("evaluate")}
        try:
            return pipeline.check("evaluate", redo if has_it else None)
        except RunFolderError as error:
            raise RunFolderError(f"unit {unit.name}: {error}") from None

    def _require_comparable(self) -> None:
        """Refuses units that enter the results and were made under another configuration."""
        for unit in self._kept:
            if self._folder(unit).stage("evaluate").done:
                try:
                    self._look_at(unit, None)
                except RunFolderError as error:
                    raise RunFolderError(
                        f"{error}. This command does not name that unit, but it would enter the "
                        "same results: name its arm and seed for --redo to replace it, or remove "
                        f"{self._folder(unit).path}"
                    ) from None

    def _run_unit(self, unit: Unit) -> None:
        session = self._session
        session.reporter.say(f"unit {unit.name}: {unit.arm.text}")
        pipeline = self._pipeline(unit, session.reporter)
        folder, config = self._folder(unit), pipeline.config
        todo = pipeline.check("evaluate")
        folder.write_config(config, describe_model(session))
        pipeline.run(todo, session.unit(config, folder), _nothing)
        self._write_early(lambda: write_report(folder.path))

    def _remove_what_is_redone(self) -> None:
        """Of all units at once: an interruption must not leave old ones among the new.

        What a shared stage is made again for goes from every unit, named by this command or not.
        """
        if self._redo is None:
            return
        if self._redo in SHARED:
            for unit in (*self._units, *self._kept):
                for stage in OWN:
                    self._folder(unit).stage(stage).remove()
            return
        for unit in self._units:
            wanted = self._pipeline(unit, self._session.reporter).wanted("evaluate")
            if self._redo in {stage.name for stage in wanted}:
                for stage in {self._redo, "evaluate"}:
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

    def _write_early(self, write: Callable[[], object]) -> None:
        try:
            write()
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
        cohort: with the patients that it learns from.
        units: those to run.

    Raises:
        DataError: if a step of one draws more patients than there are.
    """
    # torch, which a look at a finished experiment does without
    from training.grpo_batch import require_enough_patients

    labels = [cohort.labels[patient] for patient in cohort.splits["train"]]
    for unit in units:
        if unit.arm.own_stage == "grpo":
            try:
                require_enough_patients(labels, unit_config(config, unit).grpo)
            except DataError as error:
                raise DataError(f"unit {unit.name}: {error}") from None


def _nothing() -> None:
    """After a stage of an experiment nothing else is written."""
