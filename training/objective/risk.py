"""The policy gradient of a written risk without a sample: all hundred numbers are known (ours).

Behind a prefix the answer ends with one of the numbers 0.00 to 0.99, a tens and a units digit or
both in one token, and the reward of each is known. So the expectation over them takes the place of
the one that was sampled: nothing is left to chance but the prefix. Source: the all-action gradient
of Sutton et al. 2001, "Comparing Policy-Gradient Algorithms"; Ciosek & Whiteson 2020, "Expected
Policy Gradients for Reinforcement Learning".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from training.objective.loss import bounded_ratio, clipped_surrogate

NUM_DIGITS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRisks:
    """What is fixed of the numbers of a micro-batch while its policy is trained.

    Line 0 of `places` has the log-probabilities of the tens digits, and behind them those of the
    tokens `pairs`, which write both digits at once. Line 1 + d has those of the units digits behind
    the tens digit d; what stands behind its ten digits is ignored.
    """

    old_logp: Float[Tensor, "sequences places tokens"]
    """Of the digits, and of the pairs, under pi_old, where nothing else can be written."""
    pairs: tuple[int, ...] = ()
    """The number 0 to 99 of each pair, no number twice."""
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
    logp: Float[Tensor, "sequences places tokens"],
    reward: Float[Tensor, "sequences numbers"],
    pairs: Sequence[int] = (),
) -> Float[Tensor, " sequences"]:
    """Mean reward over the numbers that a policy may write, E[R_cls | prefix].

    Args:
        logp: of the tokens, as in `KnownRisks`.
        reward: of each number.
        pairs: the number of each pair.
    """
    mean = (_digits_chance(logp) * reward).sum(1)
    if pairs:
        mean = mean + (_pairs(logp).exp() * reward[:, list(pairs)]).sum(1)
    return mean


def expected_surrogate(
    logp: Float[Tensor, "sequences places tokens"],
    known: KnownRisks,
    clip_low: float,
    clip_high: Float[Tensor, " sequences"],
) -> RiskSurrogate:
    """Clipped surrogate of a number's digits (Eq. 15-17), its mean over the numbers of pi_old.

    sum over numbers n of pi_old(n) [min(rho_t A_n, clip(rho_t) A_n) + min(rho_u A_n, clip(rho_u)
    A_n)], with the ratio rho of the tens digit and of the units digit behind it; of a number in one
    token the one ratio that it has. A_n = (R_n - b) / scale, b the mean reward under pi_old: no
    group is needed for the baseline. Where no ratio is clipped and all are 1 the gradient is that
    of E[R_cls | prefix] / scale.

    Args:
        logp: of the tokens under the policy that is trained, as in `KnownRisks`.
        known: the rewards and what pi_old gave the tokens.
        clip_low: epsilon of Eq. 16.
        clip_high: epsilon(tau) of each trajectory.
    """
    old = known.old_logp
    baseline = expected_reward(old, known.reward, known.pairs)
    advantage = ((known.reward - baseline[:, None]) / known.scale[:, None]).to(logp.dtype)
    bounds = 1 - clip_low, (1 + clip_high.to(logp.dtype))[:, None]
    by_digit = _digits_chance(old)
    surrogate, clipped = torch.zeros_like(clip_high), torch.zeros_like(clip_high)
    for of_digit in (_tens, _units):
        ratio = bounded_ratio(of_digit(logp) - of_digit(old))
        one, share = _clipped(ratio, advantage, bounds, by_digit)
        surrogate, clipped = surrogate + one, clipped + share / 2
    if known.pairs:
        ratio = bounded_ratio(_pairs(logp) - _pairs(old))
        of_pairs = advantage[:, list(known.pairs)]
        one, share = _clipped(ratio, of_pairs, bounds, _pairs(old).exp())
        surrogate, clipped = surrogate + one, clipped + share
    return RiskSurrogate(surrogate=surrogate, clipped=clipped)


def _clipped(
    ratio: Float[Tensor, "sequences numbers"],
    advantage: Float[Tensor, "sequences numbers"],
    bounds: tuple[float, Float[Tensor, "sequences 1"]],
    chance: Float[Tensor, "sequences numbers"],
) -> tuple[Float[Tensor, " sequences"], Float[Tensor, " sequences"]]:
    """Mean surrogate of one token a number, and the chance of one without gradient."""
    lower, upper = bounds
    surrogate = (chance * clipped_surrogate(ratio, advantage, lower, upper)).sum(1)
    with torch.no_grad():
        beyond = torch.where(advantage > 0, ratio > upper, ratio < lower) & (advantage != 0)
        return surrogate, (chance * beyond).sum(1)


def _digits_chance(
    logp: Float[Tensor, "sequences places tokens"],
) -> Float[Tensor, "sequences numbers"]:
    """Of each number as two digits."""
    return (_tens(logp) + _units(logp)).exp()


def _tens(logp: Float[Tensor, "sequences places tokens"]) -> Float[Tensor, "sequences numbers"]:
    return logp[:, 0, :NUM_DIGITS].repeat_interleave(NUM_DIGITS, 1)


def _units(logp: Float[Tensor, "sequences places tokens"]) -> Float[Tensor, "sequences numbers"]:
    return logp[:, 1:, :NUM_DIGITS].flatten(1)


def _pairs(logp: Float[Tensor, "sequences places tokens"]) -> Float[Tensor, "sequences pairs"]:
    return logp[:, 0, NUM_DIGITS:]
