"""What ranks run in tests of their group; little is imported with it, as every rank does that."""

import os
import signal
from pathlib import Path
from typing import Any

from ehr.errors import TrainingError


def die_once(config: dict[str, Any]) -> None:
    marker: Path = config["marker"]
    if not marker.exists():
        marker.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)


def refuse(config: dict[str, Any]) -> None:
    raise TrainingError("expected something else")
