"""An experiment at several numbers of training patients."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ehr.cohorts.few_patients import with_fewer_patients
from ehr.cohorts.loaders import build_cohort
from ehr.errors import DataError, RunFolderError
from training.config.run import RunConfig
from training.evaluation.other_patients import read_other_cohort, require_another_cohort
from training.experiments.arms import units_of
from training.experiments.curve import (
    curve_lines,
    size_folder,
    sizes_found,
    write_learn_curve,
)
from training.experiments.curve_page import write_curve_page
from training.experiments.experiment import Experiment, one_experiment, require_enough_patients_for
from training.experiments.folder import ExperimentFolder
from training.experiments.records import found_units
from training.run.folder import RunFolder
from training.run.progress import Display
from training.run.session import Session


def over_sizes(
    config: RunConfig, folder: RunFolder, display: Display, redo: str | None
) -> list[str]:
    """Runs the experiment once for each number of training patients, and their curve."""
    folder.create()
    _look_at_sizes(config, folder, redo)
    if redo is not None:
        _remove_from_sizes(config, folder, redo)
    sizes = config.learn.train_patients
    lines: list[str] = []
    curve: list[str] = []
    for place, size in enumerate(sizes, 1):
        text = f"training patients: {'all' if size is None else f'{size:,}'}"
        display.say(f"{text} (size {place} of {len(sizes)})")
        of_size = RunFolder(folder.path / size_folder(size))
        lines += [text, *one_experiment(_sized(config, size), of_size, display, None)]
        found = write_learn_curve(folder.path)
        page = write_curve_page(folder.path, config.run.name or folder.path.name, found)
        curve = [*curve_lines(found), f"page: {page}"]
    return [*lines, *curve]


def _look_at_sizes(config: RunConfig, folder: RunFolder, redo: str | None) -> None:
    """Refuses a later size before hours go into an earlier one, and what would enter the curve."""
    without_cohort: list[RunConfig] = []
    planned = config.learn.train_patients
    for size in planned:
        sized, of_size = _sized(config, size), RunFolder(folder.path / size_folder(size))
        if (of_size.path / "config.json").exists():
            with (
                of_size.lock(),
                Session(sized, of_size, Display.silent()) as session,
                _naming(size),
            ):
                Experiment(session, redo).look()
        if not of_size.stage("cohort").done:
            without_cohort.append(sized)
    for size in sizes_found(folder.path):
        if size not in planned:
            of_size = RunFolder(folder.path / size_folder(size))
            with (
                Session(_sized(config, size), of_size, Display.silent()) as session,
                _naming(size),
            ):
                ExperimentFolder(session).require_comparable(
                    found_units(of_size.path),
                    "Add the size to learn.train_patients, for --redo to replace it",
                    place=of_size.path,
                )
    if without_cohort:
        everybody = build_cohort(_sized(config, None).cohort)
        other = read_other_cohort(config)
        for sized in without_cohort:
            size, seed = sized.cohort.train_patients, sized.cohort.train_patients_seed
            with _naming(size):
                few = everybody if size is None else with_fewer_patients(everybody, size, seed)
                require_enough_patients_for(sized, few, units_of(sized))
                if other is not None:
                    require_another_cohort(few, other)


def _remove_from_sizes(config: RunConfig, folder: RunFolder, redo: str) -> None:
    """Removes what is made again from all sizes before the first one runs.

    The cluster is joined once before: one that is too small must not cost what is there.
    """
    experiments: list[Experiment] = []
    with ExitStack() as stack:
        for size in config.learn.train_patients:
            of_size = RunFolder(folder.path / size_folder(size))
            if (of_size.path / "config.json").exists():
                stack.enter_context(of_size.lock())
                session = Session(_sized(config, size), of_size, Display.silent())
                stack.enter_context(session)
                with _naming(size):
                    experiments.append(Experiment(session, redo))
                    shared, _ = experiments[-1].look()
                if len(experiments) == 1:
                    experiments[0].connect(shared)
        for experiment in experiments:
            experiment.remove()


@contextmanager
def _naming(size: int | None) -> Iterator[None]:
    """Errors say which size they are about."""
    try:
        yield
    except (DataError, RunFolderError) as error:
        raise type(error)(f"{size_folder(size)}: {error}") from None


def _sized(config: RunConfig, size: int | None) -> RunConfig:
    """The experiment with so many training patients; None = all."""
    section = config.cohort.model_copy(update={"train_patients": size})
    return config.model_copy(update={"cohort": section})
