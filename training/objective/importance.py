"""Token-level truncated importance sampling: the generator is not quite pi_old.

Eq. 15 takes its expectation under pi_old. The tokens come from the generator: other kernels,
another rounding, merged weights, or a policy some updates older. min(pi_old / pi_generator, C) per
token takes the difference out of the gradient, up to the cap. Source: Yao et al. 2025, "Your
Efficient RL Framework Secretly Brings You Off-Policy RL Training"; verl and OpenRLHF have the same.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from training.objective.advantage import check_finite


def generator_log_ratio(
    old_logp: Float[Tensor, "sequences tokens"],
    generator_logp: Float[Tensor, "sequences tokens"],
    measured: Bool[Tensor, "sequences tokens"],
    sample_ids: Sequence[str] | None = None,
) -> Float[Tensor, "sequences tokens"]:
    """log(pi_old / pi_generator) of each token, 0 where it means nothing.

    Args:
        old_logp: the learner's log-probabilities under pi_old.
        generator_logp: those of the generator that sampled the tokens.
        measured: tokens that the model wrote and that both chose from the same alternatives: all,
            or those of a pattern that the learner follows. Elsewhere the ratio is that of the
            alternatives, not a mismatch.
        sample_ids: names of the trajectories for messages.

    Raises:
        TrainingError: if a measured log-probability is NaN or infinite.
    """
    difference = torch.where(measured, old_logp - generator_logp, torch.zeros_like(old_logp))
    check_finite("log-ratio of learner and generator", difference.sum(1), sample_ids)
    return difference.detach()


def truncated_importance_weights(
    log_ratio: Float[Tensor, "sequences tokens"], cap: float
) -> Float[Tensor, "sequences tokens"]:
    """min(pi_old / pi_generator, C) of each token, without gradient.

    Args:
        log_ratio: of `generator_log_ratio`; tokens that are not measured weigh exactly 1.
        cap: C, at least 1.
    """
    return log_ratio.detach().exp().clamp(max=cap)
