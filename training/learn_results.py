"""RUN/learn/results.json: what an experiment has found so far.

How the intervals are made, and what they cover, stands in `training.learn_rows`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ehr.errors import DataError
from training.learn_rows import learn_rows
from training.learn_units import collect
from training.run_folder import write_json

RESULTS_FILE = "results.json"
"""In RUN/learn."""

Results = Mapping[str, Any]
"""What `RUN/learn/results.json` holds."""


def write_learn_results(run_dir: Path) -> dict[str, Any]:
    """Writes `RUN/learn/results.json` from what the experiment has so far, and returns it.

    Raises:
        RunFolderError: if the folder has no configuration of this release.
    """
    results = learn_rows(collect(run_dir))
    write_json(run_dir / "learn" / RESULTS_FILE, results)
    return results


def read_learn_results(run_dir: Path) -> dict[str, Any]:
    """What `write_learn_results` wrote.

    Raises:
        DataError: if nothing has been written.
    """
    path = run_dir / "learn" / RESULTS_FILE
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(
            f"expected the results of an experiment in {path}, but: {error}; "
            "`eag-rl learn CONFIG` writes them after every unit"
        ) from None
