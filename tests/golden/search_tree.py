"""Trees of one patient grown by scripted models, sensible and not."""

import asyncio
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tests.scripted import (
    Script,
    ScriptedGenerator,
    SearchPlan,
    run_scripted,
    sensible,
    tag_soup,
)

SETTINGS = {"num_rollouts": 8, "num_candidates": 2, "max_depth": 4, "seed": 11}
GARBAGE_SETTINGS = {**SETTINGS, "max_depth": 3, "num_rollouts": 4}

LABEL_FREE = {**SETTINGS, "value": "label_free", "balance": False, "usefulness_weight": 0.5}

PLAN = SearchPlan().with_section(**SETTINGS)
GARBAGE_PLAN = SearchPlan().with_section(**GARBAGE_SETTINGS)
LABEL_FREE_PLAN = replace(SearchPlan().with_section(**LABEL_FREE), risk=0.7)


def scripted_search_trees() -> dict[str, Any]:
    """Nodes, ranked trajectories and counts of searches: formats, options, a garbage model."""
    return {
        "guided": _search(PLAN, sensible),
        "free": _search(replace(PLAN, format="free"), sensible),
        "eager": _search(PLAN.with_section(answers="eager"), sensible),
        "label-free": _search(LABEL_FREE_PLAN, sensible),
        "tag soup, guided": _search(GARBAGE_PLAN, tag_soup),
        "tag soup, free": _search(replace(GARBAGE_PLAN, format="free"), tag_soup),
    }


def _search(plan: SearchPlan, script: Script) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        run = asyncio.run(
            run_scripted(plan, ScriptedGenerator(script=script), Path(folder) / "log.jsonl")
        )
    return {
        "nodes": [asdict(node) for node in run.result.nodes],
        "trajectories": [
            {
                "text": row.text.splitlines(),
                "value_kind": row.value_kind,
                "reward": row.reward,
                "features": row.features,
                "path": row.path,
                "kept": row.kept,
                "num_tokens": len(row.token_ids),
                "num_model_tokens": sum(row.model_written),
            }
            for row in run.result.trajectories
        ],
        "counts": asdict(run.result.counts),
        "requests_by_kind": dict(sorted(run.calls.by_kind.items())),
    }
