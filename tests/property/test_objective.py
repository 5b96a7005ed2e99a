import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.objective_cases import flat_policy_loss
from training.objective.advantage import group_advantages, is_dead
from training.objective.clip import min_max_clip_high
from training.objective.loss import LossDenominators

rewards = st.lists(
    st.floats(min_value=-4.7, max_value=0.7, allow_subnormal=False), min_size=2, max_size=16
).map(lambda values: torch.tensor(values, dtype=torch.float64))
entropies = st.lists(st.floats(min_value=0, max_value=11, width=32), min_size=2, max_size=16).map(
    lambda values: torch.tensor(values)
)


@given(rewards)
def test_advantages_are_normalized_or_all_zero(reward):
    advantage = group_advantages(reward)

    assert advantage.mean().abs() < 1e-6
    assert advantage.square().mean().item() == pytest.approx(0 if is_dead(reward) else 1, abs=1e-6)


@given(rewards, st.floats(min_value=0.5, max_value=3), st.floats(min_value=-5, max_value=5))
def test_advantages_ignore_scale_and_shift(reward, scale, shift):
    spread = torch.cat([reward, torch.tensor([-5.0, 1.0], dtype=torch.float64)])

    torch.testing.assert_close(
        group_advantages(spread * scale + shift), group_advantages(spread), rtol=1e-6, atol=1e-6
    )


@given(rewards, st.randoms())
def test_advantages_follow_the_order_of_the_rewards(reward, random):
    order = random.sample(range(len(reward)), len(reward))

    torch.testing.assert_close(group_advantages(reward[order]), group_advantages(reward)[order])


@given(entropies)
def test_upper_clips_stay_in_range_and_follow_the_entropy(entropy):
    clip_high = min_max_clip_high(entropy, torch.ones(len(entropy), dtype=torch.bool), 0.2, 0.4)

    low, high = torch.tensor(0.2), torch.tensor(0.4)
    assert (clip_high >= low).all()
    assert (clip_high <= high).all()
    assert (clip_high[entropy.argsort()].diff() >= 0).all()


@given(entropies)
def test_the_largest_clip_is_attained_iff_entropies_differ(entropy):
    clip_high = min_max_clip_high(entropy, torch.ones(len(entropy), dtype=torch.bool), 0.2, 0.4)

    differ = bool(entropy.max() - entropy.min() > 1e-6)
    assert bool((clip_high == 0.4).any()) == differ
    assert bool((clip_high[entropy.argmin()] == 0.2).all())


@given(st.integers(0, 10_000), st.sampled_from(["sequence_mean", "token_mean", "sum"]))
def test_the_loss_does_not_depend_on_the_order_of_sequences(seed, aggregation):
    generator = torch.Generator().manual_seed(seed)
    logp = -torch.rand(6, 4, generator=generator, dtype=torch.float64)
    old_logp = -torch.rand(6, 4, generator=generator, dtype=torch.float64)
    advantage = torch.randn(6, generator=generator, dtype=torch.float64)
    mask = torch.rand(6, 4, generator=generator) > 0.3
    clip_high = 0.2 + 0.2 * torch.rand(6, generator=generator, dtype=torch.float64)
    order = torch.randperm(6, generator=generator)
    counts = LossDenominators(num_sequences=6, num_tokens=max(1, int(mask.sum())))

    one = flat_policy_loss(logp, old_logp, advantage, mask, 0.2, clip_high, aggregation, counts)
    other = flat_policy_loss(
        logp[order], old_logp[order], advantage[order], mask[order], 0.2, clip_high[order],
        aggregation, counts,
    )  # fmt: skip

    torch.testing.assert_close(one.loss, other.loss)
    assert one.num_clipped_high == other.num_clipped_high
