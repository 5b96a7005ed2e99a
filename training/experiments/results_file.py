"""RUN/learn/results.json and results.md: what an experiment has found so far.

How the intervals are made, and what they cover, stands in `training.experiments.results`.
"""

import json
from pathlib import Path
from typing import Any

from ehr.errors import DataError
from ehr.whole_files import write_json, write_text
from training.experiments.records import collect
from training.experiments.results import learn_rows
from training.experiments.table import learn_markdown

RESULTS_FILE = "results.json"
"""In RUN/learn."""

MARKDOWN_FILE = "results.md"
"""Beside it: the same as tables."""


def write_learn_results(run_dir: Path) -> dict[str, Any]:
    """Writes `RUN/learn/results.json` from what the experiment has so far, and returns it.

    `RUN/learn/results.md` has the same as Markdown.

    Raises:
        RunFolderError: if the folder has no configuration of this release.
    """
    results = learn_rows(collect(run_dir))
    write_json(run_dir / "learn" / RESULTS_FILE, results)
    write_text(run_dir / "learn" / MARKDOWN_FILE, learn_markdown(results))
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
