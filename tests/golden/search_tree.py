"""Trees of one patient grown by the scripted model, in both formats."""

import asyncio
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tests.scripted import ScriptedGenerator, SearchPlan, run_scripted

SETTINGS = {"num_rollouts": 8, "num_candidates": 2, "max_depth": 4, "seed": 11}


def scripted_search_trees() -> dict[str, Any]:
    """Nodes, ranked trajectories and counts of a search in each format."""
    return {name: _search(name) for name in ("guided", "free")}


def _search(name: str) -> dict[str, Any]:
    plan = replace(SearchPlan().with_section(**SETTINGS), format=name)
    with tempfile.TemporaryDirectory() as folder:
        run = asyncio.run(run_scripted(plan, ScriptedGenerator(), Path(folder) / "log.jsonl"))
    return {
        "nodes": [asdict(node) for node in run.result.nodes],
        "trajectories": [
            {
                "text": row.text.splitlines(),
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
