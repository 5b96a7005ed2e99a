"""Which step's policy Stage 2 keeps: the last, or the best on the validation patients.

The paper selects its model on the validation set (4.1, appendix F) and says no more. Here every
committed policy, or every `grpo.select_every`-th, is asked greedily about all validation patients,
as Stage 2 asks training patients, and the one with the best AUROC is kept; equal ones are told
apart by mean R, then the earlier is kept. No test patient is involved.

An AUROC of few patients jumps from step to step: of ten against eleven (TJH) it has a standard
error near .1. So where the rarer class has fewer than 50 (the expert's limit too), a step's score
is pooled: the mean over it and the steps looked at before and after it. A single lucky step is not
chosen then. With fewer than `LEAST_OF_A_CLASS` of a class even that says nothing: refused.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from ehr.catalogue.names import FeatureMatcher
from ehr.config import RewardSection
from ehr.errors import DataError
from ehr.language.trajectory import ParsedTrajectory
from ehr.metrics import auroc
from ehr.rewards import RewardContext, reward
from ehr.tables import column
from training.config.grpo import GrpoSection

LEAST_OF_A_CLASS = 5
"""Validation patients of each class, below which no step is chosen by them: an AUROC of four has
steps of a quarter."""

SELECTION_FILE = "selection.json"
"""In RUN/grpo: the step that was chosen, why, and the curve it was chosen from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepScore:
    """What the validation patients say about one step's policy."""

    step: int
    auroc: float
    reward: float
    """Mean R of Eq. 7, C_exp's features equally weighted; decides between equal scores."""
    parse_failure_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The step that is kept, and every step's score."""

    step: int
    scores: tuple[float, ...]
    """AUROC of each step, or its mean over the step and its neighbours."""


def require_validation(labels: Sequence[int], section: GrpoSection) -> None:
    """Refuses validation patients that no step can be chosen by.

    Args:
        labels: outcome of each validation patient.
        section: whether a step is chosen by them at all.

    Raises:
        DataError: if there are fewer than `LEAST_OF_A_CLASS` of a class.
    """
    counts = sum(labels), len(labels) - sum(labels)
    if section.select == "validation" and min(counts) < LEAST_OF_A_CLASS:
        raise DataError(
            f"grpo.select=validation needs {LEAST_OF_A_CLASS} validation patients of each class to "
            f"tell steps apart, there are {counts[0]} positive and {counts[1]} negative; set "
            "grpo.select=last, or use a larger cohort or validation split"
        )


def candidate_steps(section: GrpoSection) -> list[int]:
    """Steps that are looked at: every `select_every`-th one, and the last."""
    every = section.select_every
    return sorted({*range(every, section.steps + 1, every), section.steps})


def is_pooled(labels: Sequence[int]) -> bool:
    """Whether the validation patients are too few for a step's own AUROC."""
    # torch, which whoever reads a choice does without
    from ehr.expert.selection import LEAST_VALIDATION_PATIENTS

    return min(sum(labels), len(labels) - sum(labels)) < LEAST_VALIDATION_PATIENTS


def choose_step(curve: Sequence[StepScore], *, pooled: bool) -> Choice:
    """The best step of a curve; of equal ones that with the higher mean R, then the earlier.

    Args:
        curve: at least one step, ascending.
        pooled: whether a step counts with the steps beside it, as many of them as there are.
    """

    def score(values: Sequence[float]) -> list[float]:
        width = 1 if pooled else 0
        # Rounded: sums of the same numbers in another order must stay equal.
        return [
            round(fmean(values[max(0, place - width) : place + width + 1]), 12)
            for place in range(len(values))
        ]

    scores, rewards = score([each.auroc for each in curve]), score([each.reward for each in curve])
    best = max(range(len(curve)), key=lambda place: (scores[place], rewards[place], -place))
    return Choice(step=curve[best].step, scores=tuple(scores))


def step_score(
    step: int,
    answers: pd.DataFrame,
    section: RewardSection,
    matcher: FeatureMatcher,
    accuracy_weight: float | None,
) -> StepScore:
    """AUROC, mean R and failures of one step's answers.

    Args:
        step: whose policy answered.
        answers: prediction rows of the validation patients, with C_exp.
        section: of the reward.
        matcher: of the cohort's features.
        accuracy_weight: lambda of Stage 2; None = the section's.
    """
    plain = section.model_copy(update={"attention_weighting": "none"})
    rewards = []
    for row in answers.to_dict("records"):
        context = RewardContext(
            patient_id=str(row["patient_id"]),
            label=int(row["label"]),
            salient_features=frozenset(row["salient"]),
        )
        parsed = (
            ParsedTrajectory(failure="unreadable")
            if row["parse_failed"]
            else ParsedTrajectory(
                probability=float(row["probability"]), features=tuple(row["features"])
            )
        )
        rewards.append(reward(parsed, context, plain, matcher, accuracy_weight).total)
    found = auroc(answers["label"].to_numpy(int), answers["probability"].to_numpy(float))
    assert found is not None, "both classes are there"
    return StepScore(
        step=step,
        auroc=found,
        reward=fmean(rewards),
        parse_failure_rate=float(column(answers, "parse_failed").mean()),
    )


def read_selection(folder: Path) -> dict[str, Any] | None:
    """What Stage 2 chose, from RUN/grpo; None where it keeps the last step."""
    path = folder / SELECTION_FILE
    return json.loads(path.read_text()) if path.exists() else None


def selection_text(selection: Mapping[str, Any]) -> str:
    """The choice as a sentence."""
    how = ", each step's pooled with its neighbours'" if selection.get("pooled") else ""
    return (
        f"Stage 2 keeps step {selection.get('step')} by AUROC on {selection.get('num_patients')} "
        f"validation patients ({selection.get('num_positives')} positive){how}"
    )
