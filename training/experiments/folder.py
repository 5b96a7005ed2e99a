"""The units of an experiment as they lie in its folder: what is done, and under which settings.

Each unit is a run folder below RUN/arms in which the shared stages are links to RUN's. Looking
writes nothing.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ehr.errors import ConfigurationError, RunFolderError
from training.experiments.arms import Unit, unit_config
from training.experiments.records import OWN_STAGES
from training.run.folder import RunFolder
from training.run.pipeline import Pipeline
from training.run.progress import Display
from training.run.session import Session
from training.run.stages import STAGES

SHARED_STAGES = ("cohort", "expert", "search", "sft")
"""Stages of which a unit has links to the run's."""


class ExperimentFolder:
    """An experiment's units in its run folder.

    Args:
        session: of the shared stages; its configuration is what `shared_config` makes.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def unit(self, unit: Unit) -> RunFolder:
        """The unit's run folder."""
        return RunFolder(self._session.folder.path / "arms" / unit.name)

    def is_done(self, unit: Unit) -> bool:
        """Whether its answers are there: it enters the results."""
        return self.unit(unit).stage("evaluate").done

    def seconds(self, unit: Unit) -> float:
        """What its own stages took, all attempts."""
        records = (self.unit(unit).stage(stage).read() or {} for stage in OWN_STAGES)
        return sum(record.get("seconds", 0.0) for record in records)

    def link(self, unit: Unit) -> None:
        """Makes the unit's folder, with links to the shared stages."""
        folder = self.unit(unit)
        folder.create()
        for stage in SHARED_STAGES:
            link = folder.path / stage
            if not link.is_symlink():
                link.symlink_to(Path("..") / ".." / ".." / stage, target_is_directory=True)

    def pipeline(self, unit: Unit, display: Display, only: Sequence[str] = OWN_STAGES) -> Pipeline:
        """The unit's stages: its own ones, or those in `only`.

        Raises:
            ConfigurationError: if its arm does not fit the experiment's settings.
        """
        session = self._session
        return Pipeline(
            STAGES,
            self.unit(unit),
            unit_config(session.config, unit),
            display,
            lambda: session.model.content,
            only=only,
        )

    def needs(self, unit: Unit) -> set[str]:
        """Names of all stages that its answers follow from, shared ones too, and `evaluate`."""
        return {stage.name for stage in self._whole(unit).wanted("evaluate")}

    def todo(self, unit: Unit, redo: str | None) -> list[str]:
        """Names of its own stages that are not done, or that follow from `redo`.

        What waits for a shared stage that is not done is among them; the rest is looked at.

        Raises:
            RunFolderError: if a stage was begun under another configuration.
        """
        # without an arm that needs Stage 1 there is none, and no search for it
        shared = SHARED_STAGES if self._session.config.sft.enabled else SHARED_STAGES[:2]
        pipeline = self.pipeline(unit, Display.silent(), only=(*shared, *OWN_STAGES))
        has_it = redo in {stage.name for stage in pipeline.wanted("evaluate")}
        try:
            stages = pipeline.check("evaluate", redo if has_it else None)
        except RunFolderError as error:
            raise RunFolderError(
                f"unit {unit.name}: {error}; --redo cohort makes the whole experiment again"
            ) from None
        return [stage.name for stage in stages if stage.name in OWN_STAGES]

    def require_comparable(
        self,
        units: Sequence[Unit],
        advice: str,
        pending: frozenset[str] = frozenset(),
        place: Path | None = None,
    ) -> None:
        """Refuses finished units that would enter the results from under other settings.

        Args:
            units: those that the command does not run.
            advice: how the command would run them.
            pending: shared stages that are still to run; what follows from one is not looked at.
            place: what to remove instead; None = the unit's folder.

        Raises:
            RunFolderError: with the first unit that was made otherwise.
        """
        for unit in units:
            if not self.is_done(unit):
                continue
            path = place or self.unit(unit).path
            # an arm that trains nothing is asked at one seed: naming it means the other unit
            has_way = unit.arm.own_stage is not None or place is not None
            way = f"{advice}, or remove {path}" if has_way else f"Remove {path}"
            try:
                if not pending & self.needs(unit):
                    self._whole(unit).check("evaluate")
                    # its own stages too where a shared one is missing that nobody will make
                    self.pipeline(unit, Display.silent()).check("evaluate")
            except ConfigurationError as error:
                raise RunFolderError(_unnamed(unit, error, f"Remove {path}")) from None
            except RunFolderError as error:
                raise RunFolderError(_unnamed(unit, error, way)) from None

    def remove(self, unit: Unit, redo: str) -> None:
        """Removes what follows from a stage that is made again, the unit's report too."""
        stale: set[str] = set()
        with suppress(ConfigurationError):  # it does not fit these settings: refused when named
            if redo in self.needs(unit):
                stale = self._whole(unit).downstream(redo)
        own = [stage for stage in reversed(OWN_STAGES) if stage in stale]
        for stage in own:
            self.unit(unit).stage(stage).remove()
        if own:
            (self.unit(unit).path / "report.html").unlink(missing_ok=True)

    def _whole(self, unit: Unit) -> Pipeline:
        return self.pipeline(unit, Display.silent(), only=[stage.name for stage in STAGES])


def _unnamed(unit: Unit, error: Exception, way: str) -> str:
    return (
        f"unit {unit.name} is not named by this command and would enter its results, but: {error}. "
        f"{way}"
    )
