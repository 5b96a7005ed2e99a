"""The expected surrogate of a written risk, against a loop over the hundred numbers."""

import math

import pytest
import torch

from training.objective.logprob import FORBIDDEN
from training.objective.loss import LossDenominators, SampledTokens, policy_loss
from training.objective.risk import KnownRisks, expected_reward, expected_surrogate

NUM_SEQUENCES, CLIP_LOW = 3, 0.2
CLIP_HIGH = torch.tensor([0.2, 0.3, 0.4], dtype=torch.float64)


PAIRS = (37, 5, 99)
"""Numbers that a tokenizer writes in one token."""


def digits(seed, pairs=(), spread=1.0):
    """Log-probabilities of digits, and of pairs at the first place."""
    generator = torch.Generator().manual_seed(seed)
    shape = NUM_SEQUENCES, 11, 10 + len(pairs)
    scores = spread * torch.randn(*shape, generator=generator, dtype=torch.float64)
    scores[:, 1:, 10:] = FORBIDDEN
    return scores.log_softmax(-1)


def known(old_logp, pairs=()):
    generator = torch.Generator().manual_seed(99)
    return KnownRisks(
        old_logp=old_logp,
        reward=-torch.rand(NUM_SEQUENCES, 100, generator=generator, dtype=torch.float64) * 4,
        scale=torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64),
        pairs=pairs,
    )


def ways_to_write(pairs):
    """Every number and the places of its tokens, in each way that there is."""
    digits = [(n, [(0, n // 10), (1 + n // 10, n % 10)]) for n in range(100)]
    return digits + [(n, [(0, 10 + i)]) for i, n in enumerate(pairs)]


def by_hand(logp, risks, sequence):
    """Surrogate and clipped share of one sequence, way by way."""
    old, high = risks.old_logp[sequence], float(CLIP_HIGH[sequence])
    rewards = risks.reward[sequence].tolist()
    ways = [
        (n, places, math.exp(sum(float(old[place]) for place in places)))
        for n, places in ways_to_write(risks.pairs)
    ]
    assert sum(chance for _, _, chance in ways) == pytest.approx(1)
    baseline = sum(chance * rewards[n] for n, _, chance in ways)
    surrogate = clipped = 0.0
    for n, places, chance in ways:
        a = (rewards[n] - baseline) / float(risks.scale[sequence])
        for place in places:
            ratio = math.exp(float(logp[sequence][place] - old[place]))
            bounded = max(1 - CLIP_LOW, min(ratio, 1 + high))
            surrogate += chance * min(ratio * a, bounded * a)
            is_clipped = ratio > 1 + high if a > 0 else ratio < 1 - CLIP_LOW
            clipped += chance * is_clipped / len(places)
    return surrogate, clipped


@pytest.mark.parametrize("pairs", [(), PAIRS], ids=["digit by digit", "some in one token"])
def test_the_expected_surrogate_is_the_mean_over_all_numbers(pairs):
    logp, risks = digits(1, pairs), known(digits(2, pairs), pairs)

    found = expected_surrogate(logp, risks, CLIP_LOW, CLIP_HIGH)

    expected = [by_hand(logp, risks, sequence) for sequence in range(NUM_SEQUENCES)]
    assert found.surrogate.tolist() == pytest.approx([surrogate for surrogate, _ in expected])
    assert found.clipped.tolist() == pytest.approx([clipped for _, clipped in expected])
    assert 0 < found.clipped.min() < found.clipped.max() < 1


@pytest.mark.parametrize("pairs", [(), PAIRS], ids=["digit by digit", "some in one token"])
def test_at_ratio_one_the_gradient_is_that_of_the_expected_reward_by_the_scale(pairs):
    old = digits(3, pairs)
    risks, scores = known(old, pairs), old.clone().requires_grad_()

    def gradient(of):
        return torch.autograd.grad(of(scores.log_softmax(-1)), scores)[0]

    surrogate = gradient(
        lambda logp: expected_surrogate(logp, risks, CLIP_LOW, CLIP_HIGH).surrogate.sum()
    )
    reward = gradient(lambda logp: (expected_reward(logp, risks.reward, pairs) / risks.scale).sum())

    torch.testing.assert_close(surrogate, reward, atol=1e-12, rtol=1e-9)
    assert reward.abs().max() > 1e-3


def test_without_a_preference_there_is_nothing_to_learn():
    logp = digits(1).requires_grad_()
    risks = known(digits(2))
    flat = KnownRisks(
        old_logp=risks.old_logp, reward=torch.full_like(risks.reward, -1), scale=risks.scale
    )

    found = expected_surrogate(logp, flat, CLIP_LOW, CLIP_HIGH)

    (gradient,) = torch.autograd.grad(found.surrogate.sum(), logp)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize(("ratio", "is_pushed"), [(1.0, True), (1.19, True), (1.21, False)])
def test_a_risen_digit_beyond_the_clip_is_pushed_no_further(ratio, is_pushed):
    # All mass on tens digit 3; behind it 7 is right and 2 is not: the others cannot be written.
    old = torch.full((1, 11, 10), -60.0, dtype=torch.float64)
    old[0, 0, 3] = 0.0
    old[0, 4, 7] = old[0, 4, 2] = math.log(0.5)
    reward = torch.zeros(1, 100, dtype=torch.float64)
    reward[0, 37] = 1.0
    risks = KnownRisks(old_logp=old, reward=reward, scale=torch.ones(1, dtype=torch.float64))
    logp = old.clone()
    logp[0, 4, 7] += math.log(ratio)
    logp.requires_grad_()

    found = expected_surrogate(logp, risks, 0.2, torch.tensor([0.2], dtype=torch.float64))

    (gradient,) = torch.autograd.grad(found.surrogate.sum(), logp)
    assert gradient[0, 4, 7] == pytest.approx(0.25 * ratio if is_pushed else 0.0)
    assert gradient[0, 4, 2] == pytest.approx(-0.25)
    # A half of the mass, one of its two digits.
    assert found.clipped[0] == pytest.approx(0.0 if is_pushed else 0.25)


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "sum"])
def test_the_expected_surrogate_has_the_denominators_of_the_tokens_it_stands_for(aggregation):
    # One trajectory of 3 + 2 tokens, one of 1 + 2: the last two of each are the number's digits.
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    zero = torch.zeros(2, 5)
    on_digits = torch.tensor([[0.0, 0, 0, 1, 1], [0, 1, 1, 0, 0]]) * torch.tensor([[2.0], [-3.0]])
    counts = LossDenominators(num_sequences=4, num_tokens=20)

    def loss(advantage, expected=None):
        sampled = SampledTokens(old_logp=zero, advantage=advantage, mask=mask)
        high = torch.full((2,), 0.2)
        return policy_loss(zero, sampled, 0.2, high, aggregation, counts, expected=expected).loss

    assert loss(zero, on_digits.sum(1)) == pytest.approx(float(loss(on_digits)))
