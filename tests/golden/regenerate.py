"""Rewrites the golden files: `python -m tests.golden.regenerate [NAME ...]`.

A producer returns what it computes together with the settings behind it. The change that commits a
rewritten file explains every difference.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.golden.losses import tiny_learner_losses
from tests.golden.prompts import rendered_prompts
from tests.golden.search_tree import GARBAGE_SETTINGS, LABEL_FREE, SETTINGS, scripted_search_trees

FOLDER = Path(__file__).parent / "data"


@dataclass(frozen=True, kw_only=True)
class Golden:
    """One golden file."""

    produce: Callable[[], Any]
    """JSON values; texts as lists of lines, so that differences are readable."""
    settings: dict[str, Any]
    """What the values depend on: seeds, sizes, options."""
    packages: tuple[str, ...] = field(default=())
    """Packages whose versions are noted; they are not compared."""


GOLDEN = {
    "prompts": Golden(
        produce=rendered_prompts,
        settings={"case": "written by hand", "features": "BENCHMARK_17", "visits": 2},
    ),
    "search_tree": Golden(
        produce=scripted_search_trees,
        settings={
            "trees": SETTINGS,
            "label-free": {**LABEL_FREE, "risk": 0.7},
            "tag soup": GARBAGE_SETTINGS,
            "models": "tests.scripted",
        },
    ),
    "losses": Golden(
        produce=tiny_learner_losses,
        settings={"seed": 0, "groups": 2, "group_size": 4, "steps": 10, "optimizer": "Adam 0.02"},
        packages=("torch",),
    ),
}
"""Every golden file by name."""


def content(name: str) -> dict[str, Any]:
    """What the file of a name holds when written now."""
    golden = GOLDEN[name]
    return {
        "settings": golden.settings,
        "versions": {package: version(package) for package in golden.packages},
        "value": golden.produce(),
    }


def path_of(name: str) -> Path:
    """The file of a name."""
    return FOLDER / f"{name}.json"


def main(names: list[str]) -> None:
    """Writes the named files, or all."""
    FOLDER.mkdir(exist_ok=True)
    for name in names or GOLDEN:
        text = json.dumps(content(name), indent=1, ensure_ascii=True) + "\n"
        path_of(name).write_text(text)
        sys.stdout.write(f"wrote {path_of(name)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
