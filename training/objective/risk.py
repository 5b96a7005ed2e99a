"""The policy gradient of a written risk without a sample: all hundred numbers are known (ours).

Behind a prefix the answer ends with one of the numbers 0.00 to 0.99, a tens and a units digit, and
the reward of each is known. So the expectation over them takes the place of the one that was
sampled: nothing is left to chance but the prefix. Source: the all-action gradient of Sutton et al.
2001, "Comparing Policy-Gradient Algorithms"; Ciosek & Whiteson 2020, "Expected Policy Gradients for
Reinforcement Learning".
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from training.objective.loss import bounded_ratio, clipped_surrogate

NUM_DIGITS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRisks:
    """What is fixed of the numbers of a micro-batch while its policy is trained.

    Line 0 of `places` has the log-probabilities of the tens digits, line 1 + d those of the units
    digits behind the tens digit d.
    """

    old_logp: Float[Tensor, "sequences places digits"]
    """Of the digits under pi_old, where nothing but a digit can be written."""
    reward: Float[Tensor, "sequences numbers"]
    """R_cls of each number, 0.00 first."""
    scale: Float[Tensor, " sequences"]
    """What an advantage is divided by, above 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskSurrogate:
    """The expected surrogate, and what the clip did to it."""

    surrogate: Float[Tensor, " sequences"]
    """Sum over a number's tokens, as their sampled surrogates would add up on average."""
    clipped: Float[Tensor, " sequences"]
    """Probability under pi_old of a digit without gradient, mean of the two digits; constant."""


def expected_reward(
    logp: Float[Tensor, "sequences places digits"], reward: Float[Tensor, "sequences numbers"]
) -> Float[Tensor, " sequences"]:
    """Mean reward over the numbers that a policy may write, E[R_cls | prefix].

    Args:
        logp: of the digits, as in `KnownRisks`.
        reward: of each number.
    """
    return (_of_numbers(logp).exp() * reward).sum(1)


def expected_surrogate(
    logp: Float[Tensor, "sequences places digits"],
    known: KnownRisks,
    clip_low: float,
    clip_high: Float[Tensor, " sequences"],
) -> RiskSurrogate:
    """Clipped surrogate of a number's two digits (Eq. 15-17), its mean over the numbers of pi_old.

    sum over numbers n of pi_old(n) [min(rho_t A_n, clip(rho_t) A_n) + min(rho_u A_n, clip(rho_u)
    A_n)], with the ratio rho of the tens digit and of the units digit behind it. A_n = (R_n - b) /
    scale, b the mean reward under pi_old: no group is needed for the baseline. Where no ratio is
    clipped and both are 1 the gradient is that of E[R_cls | prefix] / scale.

    Args:
        logp: of the digits under the policy that is trained, as in `KnownRisks`.
        known: the rewards and what pi_old gave the digits.
        clip_low: epsilon of Eq. 16.
        clip_high: epsilon(tau) of each trajectory.
    """
    old = _of_numbers(known.old_logp).exp()
    baseline = (old * known.reward).sum(1, keepdim=True)
    advantage = ((known.reward - baseline) / known.scale[:, None]).to(logp.dtype)
    ratio = bounded_ratio(logp - known.old_logp)
    lower, upper = 1 - clip_low, (1 + clip_high.to(logp.dtype))[:, None]
    total, clipped = torch.zeros_like(advantage), torch.zeros_like(advantage)
    for of_digit in (_tens(ratio), _units(ratio)):
        total = total + clipped_surrogate(of_digit, advantage, lower, upper)
        with torch.no_grad():
            is_clipped = torch.where(advantage > 0, of_digit > upper, of_digit < lower)
            clipped = clipped + (is_clipped & (advantage != 0)).to(logp.dtype) / 2
    return RiskSurrogate(surrogate=(old * total).sum(1), clipped=(old * clipped).sum(1))


def _of_numbers(
    logp: Float[Tensor, "sequences places digits"],
) -> Float[Tensor, "sequences numbers"]:
    return _tens(logp) + _units(logp)


def _tens(
    values: Float[Tensor, "sequences places digits"],
) -> Float[Tensor, "sequences numbers"]:
    return values[:, 0].repeat_interleave(NUM_DIGITS, 1)


def _units(
    values: Float[Tensor, "sequences places digits"],
) -> Float[Tensor, "sequences numbers"]:
    return values[:, 1:].flatten(1)
