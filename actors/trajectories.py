"""From finished trees to the trajectories table and the SFT set."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import pandas as pd

from actors.config import SearchSection

COLUMNS = {
    "patient_id": "string",
    "rank": "int64",
    "text": "string",
    "token_ids": "object",
    "prompt_token_ids": "object",
    "model_written": "object",
    "reward": "float64",
    "reward_cls": "float64",
    "reward_att": "float64",
    "kept": "bool",
    "readable": "bool",
    "correct": "bool",
    "probability": "float64",
    "features": "object",
    "num_steps": "int64",
    "visit_count": "int64",
    "path": "string",
}
"""Columns of the trajectories table and their types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchedTrajectory:
    """One terminal of a tree as a row of the trajectories table."""

    patient_id: str
    text: str
    """The assistant's turn."""
    token_ids: tuple[int, ...]
    """Tokens of `text`, piece by piece as the search saw them."""
    prompt_token_ids: tuple[int, ...]
    """The case prompt, chat template included."""
    model_written: tuple[bool, ...]
    """Whether the model wrote each of `token_ids`; the rest is context."""
    reward: float
    reward_cls: float
    reward_att: float
    readable: bool
    """false = format failure: carries the floor reward and is never kept."""
    correct: bool
    """Whether the probability lies on the label's side of the decision threshold."""
    probability: float | None
    features: tuple[str, ...]
    """Canonical names of the important features."""
    num_steps: int
    """Steps from the root, the final one included."""
    visit_count: int
    path: str
    """Child indices from the root, as in "0/2/1"."""
    rank: int = 0
    """Place among the patient's unique trajectories, from 1: by reward, then shorter."""
    kept: bool = False
    """Whether it belongs to the SFT set."""


def rank_trajectories(
    trajectories: Iterable[SearchedTrajectory], section: SearchSection
) -> tuple[SearchedTrajectory, ...]:
    """One patient's unique trajectories, ranked, the SFT set marked.

    The SFT set is the top `num_kept_trajectories` readable ones by reward, then by fewer tokens;
    with `only_correct`, only those on the label's side of the threshold. It may be empty.
    """
    ordered = sorted(
        trajectories,
        key=lambda row: (not row.readable, -row.reward, len(row.token_ids), row.path),
    )
    unique = list({row.text: row for row in reversed(ordered)}.values())[::-1]
    num_kept = 0
    ranked = []
    for rank, row in enumerate(unique, start=1):
        eligible = row.readable and (row.correct or not section.only_correct)
        kept = eligible and num_kept < section.num_kept_trajectories
        num_kept += int(kept)
        ranked.append(replace(row, rank=rank, kept=kept))
    return tuple(ranked)


def trajectories_table(rows: Sequence[SearchedTrajectory]) -> pd.DataFrame:
    """The trajectories table; an unreadable probability is missing."""
    records = [asdict(row) for row in rows]
    return pd.DataFrame(records, columns=list(COLUMNS)).astype(COLUMNS)
