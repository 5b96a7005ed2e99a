"""`eag-rl learn`: an experiment, or one for every number of training patients and their curve."""

from pathlib import Path

from services.environment import prepare_process
from training.config.run import RunConfig
from training.experiments.arms import shared_config
from training.experiments.experiment import one_experiment
from training.experiments.sizes import (
    over_sizes,
)
from training.run.folder import RunFolder
from training.run.progress import Display


def learn(config: RunConfig, run_dir: Path, redo: str | None = None) -> list[str]:
    """Runs what is missing of an experiment; returns its table as lines.

    Args:
        config: the experiment, section `learn` included.
        run_dir: where it is kept.
        redo: a stage that is made again, and all that follows from it: a shared one, or one of
            the units' own.

    Raises:
        ConfigurationError: if an arm's settings do not fit the experiment's.
        RunFolderError: if something there was made under another configuration.
        EagRlError: whatever stops a stage; what is finished is kept.
    """
    prepare_process(config.run.verbose)
    display = Display()
    shared = shared_config(config)
    if not config.learn.train_patients:
        return one_experiment(shared, RunFolder(run_dir), display, redo)
    return over_sizes(shared, RunFolder(run_dir), display, redo)
