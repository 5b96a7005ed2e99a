"""A Ray Train trainer beside the driver: started in a thread, watched, ended."""

import logging
import threading
from collections.abc import Callable

from ray.exceptions import RayActorError
from ray.train import (
    ControllerError,
)
from ray.train.torch import TorchTrainer

logger = logging.getLogger(__name__)


_WATCH_INTERVAL_S = 1.0
"""How often the driver looks at the stage's progress."""


def fit_and_watch(
    make_trainer: Callable[[], TorchTrainer], watch: Callable[[], None], *, max_failures: int
) -> None:
    """Run a trainer to its end; its error is raised here.

    Ray Train restarts a group that loses a rank, but not one that loses it before its controller
    has finished starting it: that is a failure of the controller there, and started again here.

    Off the main thread Ray Train installs no interrupt handler of its own: Ctrl-C stays ours, here
    and for the rest of the process.

    Args:
        make_trainer: makes what is run.
        watch: called on this thread about every second until it has ended.
        max_failures: how often a group that lost a rank at its start is started again.

    Raises:
        ray.train.TrainingFailedError: Ray Train's own, as it is.
    """
    num_lost_starts = 0
    while True:
        error = _fit_in_thread(make_trainer(), watch)
        if error is None:
            return
        is_lost_start = isinstance(error, ControllerError) and isinstance(
            error.controller_failure, RayActorError
        )
        if not is_lost_start or num_lost_starts == max_failures:
            raise error
        num_lost_starts += 1
        logger.warning("a rank was lost at its start, its group starts again error=%s", error)


def _fit_in_thread(trainer: TorchTrainer, watch: Callable[[], None]) -> BaseException | None:
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # handed to the calling thread
            failures.append(error)

    thread = threading.Thread(target=fit, name="ray-train-fit", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_WATCH_INTERVAL_S)
        watch()
    return failures[0] if failures else None
