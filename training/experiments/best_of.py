"""The best of so many plain answers at a given budget, and what a search is worth beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from ehr.metrics import bootstrap_mean

NUM_ORDERS = 200
"""Orders of the answers over which the best of a budget is averaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer to a patient's question, and what it cost."""

    text: str
    """Answers of one text count once."""
    reward: float
    """R of Eq. 7."""
    readable: bool
    costs: Mapping[str, int]
    """`decode_tokens` and `requests`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """What a search of one patient found and cost."""

    answers: tuple[Answer, ...]
    """Its unique trajectories; their own costs are not known and empty."""
    costs: Mapping[str, int]
    """Of the whole search: `decode_tokens` and `requests`."""


def top_value(answers: Sequence[Answer], num_kept: int, floor: float) -> float:
    """Mean R of the `num_kept` best readable answers with different texts, or of as many as are.

    Args:
        answers: of one patient.
        num_kept: k; 1 = the best answer.
        floor: what a patient without a readable answer is worth: R of a format failure.
    """
    values = {answer.text: answer.reward for answer in answers if answer.readable}
    return fmean(sorted(values.values(), reverse=True)[:num_kept]) if values else floor


def num_affordable(costs: Sequence[int], budget: float) -> int:
    """How many answers, in their order, cost no more than the budget together."""
    return int(np.searchsorted(np.cumsum(costs), budget, side="right"))


def best_of_budget(
    answers: Sequence[Answer], cost: str, budget: float, num_kept: int, floor: float, seed: int = 0
) -> float:
    """Expected `top_value` of the answers that a budget pays for.

    Answers are independent draws, so that each order of them could have come: the mean over
    `NUM_ORDERS` orders says the same with less noise. An answer that would exceed the budget is
    not drawn; an exact tie in cost is.

    Args:
        answers: of one patient, preferably more than the budget pays for.
        cost: `decode_tokens` or `requests`.
        budget: what may be spent, in the same unit.
        num_kept: k.
        floor: what nothing readable is worth.
        seed: of the orders.
    """
    costs = [answer.costs[cost] for answer in answers]
    if budget >= sum(costs):
        return top_value(answers, num_kept, floor)
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(NUM_ORDERS):
        order = rng.permutation(len(answers))
        drawn = order[: num_affordable([costs[index] for index in order], budget)]
        values.append(top_value([answers[index] for index in drawn], num_kept, floor))
    return fmean(values)


def comparison(
    searched: Mapping[str, Searched],
    sampled: Mapping[str, Sequence[Answer]],
    cost: str,
    num_kept: int,
    floor: float,
    share: float = 1.0,
) -> dict[str, Any]:
    """Search minus plain answers at equal cost, paired by patient.

    Args:
        searched: searches by patient.
        sampled: plain answers of the same patients.
        cost: what is equal: `decode_tokens` or `requests`.
        num_kept: k of both.
        floor: what nothing readable is worth.
        share: plain answers get so many times what the search of that patient cost.

    Returns:
        `search`, `samples`, `difference` and its 95 % interval over patients (`low`, `high`),
        `minimal_detectable`, `p`, `num_patients`, `num_samples`: plain answers that a patient's
        budget pays for on average, and `num_short`: patients whose plain answers all
        together cost less than the budget, so that more of them could have been better.

    Raises:
        ValueError: if the patients are not the same.
    """
    _refuse_other_patients(searched, sampled)
    patients = sorted(searched)
    tree = [top_value(searched[patient].answers, num_kept, floor) for patient in patients]
    budgets = [share * searched[patient].costs[cost] for patient in patients]
    plain = [
        best_of_budget(sampled[patient], cost, budget, num_kept, floor, seed=number)
        for number, (patient, budget) in enumerate(zip(patients, budgets, strict=True))
    ]
    spent = [sum(answer.costs[cost] for answer in sampled[patient]) for patient in patients]
    num_samples = [
        budget * len(sampled[patient]) / has
        for patient, budget, has in zip(patients, budgets, spent, strict=True)
    ]
    drawn = bootstrap_mean(np.subtract(tree, plain))
    low, high = drawn.interval()
    return {
        "equal": cost,
        "share": share,
        "num_kept": num_kept,
        "num_patients": len(patients),
        "num_samples": fmean(num_samples),
        "num_short": sum(has < may for has, may in zip(spent, budgets, strict=True)),
        "search": fmean(tree),
        "samples": fmean(plain),
        "difference": fmean(tree) - fmean(plain),
        "low": low,
        "high": high,
        "minimal_detectable": drawn.minimal_detectable(),
        "p": drawn.p_value(fmean(tree) - fmean(plain)),
    }


def _refuse_other_patients(
    searched: Mapping[str, Searched], sampled: Mapping[str, Sequence[Answer]]
) -> None:
    if set(searched) != set(sampled) or not searched:
        only = sorted(set(searched) ^ set(sampled))
        raise ValueError(
            f"expected searches and plain answers of the same patients, {len(only)} have only one "
            f"({only[:5]}); use the same search.num_patients, balance and seed for both"
        )
