"""From finished trees to the trajectories table and the SFT set."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import pandas as pd

from actors.config import SearchSection
from actors.judge import ValueKind

COLUMNS = {
    "patient_id": "string",
    "rank": "int64",
    "text": "string",
    "token_ids": "object",
    "prompt_token_ids": "object",
    "model_written": "object",
    "value_kind": "string",
    "reward": "float64",
    "reward_cls": "float64",
    "reward_att": "float64",
    "kept": "bool",
    "readable": "bool",
    "correct": "boolean",
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
    value_kind: ValueKind
    """What `reward` is."""
    reward: float
    """What the search maximised: R of Eq. 7, or the label-free value."""
    reward_cls: float | None
    """R_cls of Eq. 4; None in a label-free search."""
    reward_att: float
    """R_att; in a label-free search always the plain Jaccard of Eq. 6."""
    readable: bool
    """false = format failure: carries the floor reward and is never kept."""
    correct: bool | None
    """Whether the probability lies on the label's side of the decision threshold; None in a
    label-free search, which cannot know."""
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
    """Whether it is among the patient's best k: the SFT set, unless the search was label-free."""


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
        eligible = row.readable and (bool(row.correct) or not section.only_correct)
        kept = eligible and num_kept < section.num_kept_trajectories
        num_kept += int(kept)
        ranked.append(replace(row, rank=rank, kept=kept))
    return tuple(ranked)


def trajectories_table(rows: Sequence[SearchedTrajectory]) -> pd.DataFrame:
    """The trajectories table; what is None (a probability that cannot be read) is missing."""
    records = [asdict(row) for row in rows]
    return pd.DataFrame(records, columns=list(COLUMNS)).astype(COLUMNS)
