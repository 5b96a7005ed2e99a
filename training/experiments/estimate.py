"""What a unit of an experiment will cost: tokens counted before, seconds from measured rates."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from training.config.run import RunConfig
from training.evaluation.selection import candidate_steps
from training.experiments.arms import Unit
from training.readable import duration


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCost:
    """Tokens of one unit, at most: answers may end early, and dynamic sampling need no refill.

    Every prompt counts with the mean length of some.
    """

    prefill_tokens: int
    """Prompts that generators read, each once."""
    decode_tokens: int
    """Tokens that generators write."""
    learner_tokens: int
    """Packed tokens that the learner trains on."""
    refill_prefill_tokens: int = 0
    """Of the prompts: those of refills, of which dynamic sampling may need none."""
    refill_decode_tokens: int = 0
    """Of the tokens written: those of refills."""
    leaves_out_other_cohort: bool = False
    """Answers about `evaluate.other_cohort` come on top: how many patients it has is not known."""

    @property
    def weight(self) -> float:
        """One number to compare units by: forward passes over tokens, of prompts and packed rows.

        The learner's pass for old log-probabilities, forward and backward are some four; a decoded
        token costs an engine many times a prompt's token, because batches are small. Refills are
        not in it: how many there will be depends on the answers.
        """
        prefill = self.prefill_tokens - self.refill_prefill_tokens
        decode = self.decode_tokens - self.refill_decode_tokens
        return prefill + 8 * decode + 4 * self.learner_tokens


def unit_cost(
    config: RunConfig, unit: Unit, prompt_tokens: int, sizes: Mapping[str, int]
) -> UnitCost:
    """Tokens of a unit, at most.

    A step of Stage 2 with `grpo.dynamic_sampling` samples up to `grpo.max_refills` batches beside
    its own, and trains one. Of `evaluate.other_cohort` as many patients are counted as
    `evaluate.num_patients` allows; without that limit none.

    Args:
        config: of the unit.
        unit: the arm and the seed.
        prompt_tokens: mean length of a prompt.
        sizes: patients of each split.
    """
    evaluate, grpo, direct = config.evaluate, config.grpo, config.direct_sft
    asked = min(evaluate.num_patients or sizes["test"], sizes["test"])
    masked = 2 * min(evaluate.faithfulness_patients, asked)
    has_other = evaluate.other_cohort is not None
    others = (evaluate.num_patients or 0) if has_other else 0
    questions = asked * (1 + len(evaluate.feature_orders)) + masked + others
    prefill, decode, learner = (
        questions * prompt_tokens,
        questions * evaluate.num_samples * max(evaluate.max_new_tokens, config.thought_tokens),
        0,
    )
    refilled = 0
    group_tokens = grpo.group_size * grpo.max_new_tokens
    if unit.arm.own_stage == "grpo":
        trained = grpo.steps * grpo.patients_per_step
        refilled = trained * grpo.max_refills if grpo.dynamic_sampling else 0
        prefill += (trained + refilled) * prompt_tokens
        decode += (trained + refilled) * group_tokens
        learner = trained * (prompt_tokens + group_tokens)
        if grpo.select == "validation":
            validated = len(candidate_steps(grpo)) * sizes["val"]
            prefill += validated * prompt_tokens
            decode += validated * grpo.max_new_tokens
    elif unit.arm.own_stage == "direct_sft":
        examples = (
            direct.num_predictions if direct.replay else min(direct.num_predictions, sizes["train"])
        )
        learner = direct.epochs * examples * prompt_tokens
    return UnitCost(
        prefill_tokens=prefill,
        decode_tokens=decode,
        learner_tokens=learner,
        refill_prefill_tokens=refilled * prompt_tokens,
        refill_decode_tokens=refilled * group_tokens,
        leaves_out_other_cohort=has_other and evaluate.num_patients is None,
    )


def seconds_left(costs: Mapping[str, UnitCost], spent: Mapping[str, float]) -> float | None:
    """Seconds that the unfinished units will take, at the rate of the finished ones.

    Args:
        costs: of all units, by name.
        spent: seconds of the finished ones.

    Returns:
        None while no unit is finished: nothing is known of this machine then.
    """
    done = sum(costs[name].weight for name in spent)
    if not done:
        return None
    rate = sum(spent.values()) / done
    return rate * sum(cost.weight for name, cost in costs.items() if name not in spent)


def cost_line(costs: Mapping[str, UnitCost], done: Collection[str]) -> str:
    """What is still to do, for the terminal."""
    left = [cost for name, cost in costs.items() if name not in done]
    has_more = any(cost.leaves_out_other_cohort for cost in left)
    return (
        f"{len(left)} of {len(costs)} units to do: at most "
        f"{sum(cost.prefill_tokens for cost in left):,} prompt tokens to read, "
        f"{sum(cost.decode_tokens for cost in left):,} to write, "
        f"{sum(cost.learner_tokens for cost in left):,} to train on"
        + ("; answers about evaluate.other_cohort are not counted" if has_more else "")
    )


def cost_record(cost: UnitCost) -> dict[str, Any]:
    """For the results file."""
    return asdict(cost)


def left_line(seconds: float | None, num_left: int) -> str:
    """How long the units that are left will take, for the terminal."""
    if not num_left:
        return "all units are done"
    left = f"{num_left} unit{'' if num_left == 1 else 's'} left"
    if seconds is None:
        return f"{left}; how long a unit takes is known when the first one is done"
    return f"{left}, about {duration(seconds)} at the rate of those that are done"


def mean_length(lengths: Iterable[int]) -> int:
    """Mean number of tokens, rounded up; 0 of none."""
    found = list(lengths)
    return -(-sum(found) // len(found)) if found else 0
