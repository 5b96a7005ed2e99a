"""The learning rate of a step of Stage-2."""

import math

from training.config.grpo import GrpoSection


def learning_rate(step: int, section: GrpoSection) -> float:
    """Learning rate of all updates of a step: linear warm-up, then `grpo.schedule`.

    A function of step and settings alone, so a resumed stage needs no state of it.

    Args:
        step: from 1.
        section: peak, schedule, and how many steps there are.

    Paper gap: the paper names no schedule; `constant` without warm-up is the default.
    """
    if step <= section.warmup_steps:
        return section.learning_rate * step / section.warmup_steps
    first = max(section.warmup_steps, 1)  # the step that has the whole rate
    share = (step - first) / (section.steps - first + 1)
    match section.schedule:
        case "constant":
            return section.learning_rate
        case "linear":
            return section.learning_rate * (1 - share)
        case "cosine":
            return section.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
